"""Hyperparameters of TD-MPC2. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.precision import Precision
from agents.presets import Preset
from bench.errors import UserError
from bench.tasks import Task, task_set

ARCHITECTURES: dict[int, dict[str, int]] = {
    1: {"enc_dim": 256, "mlp_dim": 384, "latent_dim": 128, "num_enc_layers": 2, "num_q": 2},
    5: {"enc_dim": 256, "mlp_dim": 512, "latent_dim": 512, "num_enc_layers": 2, "num_q": 5},
    19: {"enc_dim": 1024, "mlp_dim": 1024, "latent_dim": 768, "num_enc_layers": 3, "num_q": 5},
    48: {"enc_dim": 1792, "mlp_dim": 1792, "latent_dim": 768, "num_enc_layers": 4, "num_q": 5},
    317: {"enc_dim": 4096, "mlp_dim": 4096, "latent_dim": 1376, "num_enc_layers": 5, "num_q": 8},
}
"""Widths and depths of each model size; the key is the rounded number of parameters in millions."""

LARGE_ACTION_SIZE = 20
"""From this action size on, the planner takes `EXTRA_ITERATIONS` more iterations."""
EXTRA_ITERATIONS = 2

MIN_SEED_AGENT_STEPS = 1000
SEED_EPISODES = 5

MT30_ARCHITECTURES: dict[int, dict[str, int]] = {
    5: {"task_dim": 64},
    19: {"task_dim": 64, "latent_dim": 512},
    48: {"task_dim": 64},
}
"""Where the authors' models of the 30 tasks of `mt30` differ from `ARCHITECTURES`."""

ARCHITECTURE_KEYS = frozenset(
    [
        "model_size",
        "enc_dim",
        "mlp_dim",
        "latent_dim",
        "num_enc_layers",
        "num_channels",
        "image_size",
        "frame_stack",
        "num_q",
        "task_dim",
        "layer_norm",
        "simnorm",
        "simnorm_dim",
        "log_std_min",
        "log_std_max",
        "regression",
        "num_bins",
        "vmin",
        "vmax",
    ]
)
"""Hyperparameters that parameters are made for: others would give them another meaning."""

MULTITASK_BATCH_SIZE = 1024
"""Slices in a batch where the authors train several tasks."""

PAPER = {"squashed_entropy": True, "lasting_dropout": True}
"""Where the paper's algorithm differs from the authors' current one and that changes what is learned."""


class Hyperparameters(BaseModel):
    """TD-MPC2; the defaults are the paper's.

    `model_size` fills enc_dim, mlp_dim, latent_dim, num_enc_layers and num_q unless they are given, and `preset` what
    it names, so that a dump shows what is used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    presets: ClassVar[Mapping[str, Preset]] = {
        "current": Preset("the authors' current algorithm, with the paper's constants"),
        "paper": Preset("the algorithm of the paper", PAPER),
    }
    free: ClassVar[frozenset[str]] = frozenset([
        "preset", "log_std_min", "log_std_max", "vmin", "vmax", "min_std", "max_std", "temperature", "lr",
        "enc_lr_scale", "grad_clip_norm", "tau", "rho", "consistency_coef", "reward_coef", "value_coef",
        "termination_coef", "entropy_coef", "discount_denom", "discount_min", "discount_max",
    ])  # fmt: skip
    """Those that change neither speed nor memory: what was measured with others serves."""

    preset: Literal["current", "paper"] = "current"
    """The authors' current algorithm, or that of the paper: with squashed_entropy and lasting_dropout."""

    # Architecture
    model_size: Literal[1, 5, 19, 48, 317] = 5
    """Size of the model in millions of parameters."""
    enc_dim: int = Field(default=256, ge=1)
    """Width of the encoder's hidden layers; by model_size unless given."""
    mlp_dim: int = Field(default=512, ge=1)
    """Width of the hidden layers of dynamics, reward, policy and Q; by model_size unless given."""
    latent_dim: int = Field(default=512, ge=1)
    """Size of the latent state z; by model_size unless given. A multiple of simnorm_dim."""
    num_enc_layers: int = Field(default=2, ge=1)
    """The encoder has max(num_enc_layers - 1, 1) hidden layers; by model_size unless given."""
    num_channels: int = Field(default=32, ge=1)
    """Channels of each convolution of the encoder of images."""
    image_size: int = Field(default=64, ge=1)
    """Height and width of images in pixels (obs rgb only)."""
    frame_stack: int = Field(default=3, ge=1)
    """Images that make up one observation (obs rgb only)."""
    num_q: int = Field(default=5, ge=2)
    """Q-functions in the ensemble; by model_size unless given."""
    task_dim: int = Field(default=96, ge=1)
    """T, size of the embedding of a task; a model of one task has none."""
    layer_norm: bool = True
    """Whether there is a LayerNorm in every layer but the last of reward, policy and Q."""
    simnorm: bool = True
    """Whether SimNorm ends encoder and dynamics; if not, nothing follows their last layer."""
    simnorm_dim: int = Field(default=8, ge=1)
    """Size of each simplex that SimNorm cuts a latent state into."""
    dropout: float = Field(default=0.01, ge=0, lt=1)
    """Dropout probability in the first layer of each Q-function."""
    log_std_min: float = -10.0
    """Lower end of the policy's log standard deviation."""
    log_std_max: float = 2.0
    """Upper end of the policy's log standard deviation."""
    regression: Literal["discrete", "continuous"] = "discrete"
    """Rewards and values as distributions over bins (cross-entropy) or one number in symlog space (squared error)."""
    num_bins: int = Field(default=101, ge=2)
    """Bins of the discrete regression of rewards and values."""
    vmin: float = -10.0
    """First bin, in symlog space."""
    vmax: float = 10.0
    """Last bin, in symlog space."""

    # Terminations
    episodic: bool = False
    """Whether to learn when episodes end by themselves, and plan with it; on where the task table says that they do."""

    # Planning
    mpc: bool = True
    """Whether to plan; if not, the policy acts."""
    horizon: int = Field(default=3, ge=1)
    """H, agent steps that the model is rolled out, in planning and in training."""
    iterations: int = Field(default=6, ge=1)
    """MPPI iterations of one plan; two more where the action has 20 or more dimensions."""
    num_samples: int = Field(default=512, ge=2)
    """Action sequences evaluated in each iteration."""
    num_elites: int = Field(default=64, ge=1)
    """Best sequences that the plan's mean and standard deviation are refitted to."""
    num_pi_trajs: int = Field(default=24, ge=0)
    """Sequences among num_samples that come from the policy."""
    min_std: float = Field(default=0.05, gt=0)
    """Lower bound of the plan's standard deviation."""
    max_std: float = Field(default=2.0, gt=0)
    """Upper bound of the plan's standard deviation, and where it starts."""
    temperature: float = Field(default=0.5, gt=0)
    """Elites are weighted by exp(temperature * value)."""
    uncertainty_coef: float = Field(default=0.0, ge=0)
    """c in reward - c mean(Q) std(Q), over the ensemble: test-time regularisation of models trained offline."""

    # Computing
    precision: Precision = "float32"
    """In which precision matrix products and convolutions are computed: float32, tf32 (on a GPU) or bf16."""

    # Training
    batch_size: int = Field(default=256, ge=1)
    """B, slices of replay in an update."""
    buffer_size: int = Field(default=1_000_000, ge=1)
    """Transitions kept in replay."""
    seed_agent_steps: int | None = Field(default=None, ge=1)
    """Agent steps before learning, and updates in the burst that ends them; if not given, five episodes (one of each
    environment where there are more than five) and at least 1000."""
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate."""
    enc_lr_scale: float = Field(default=0.3, gt=0)
    """The encoder learns at lr * enc_lr_scale."""
    grad_clip_norm: float = Field(default=20.0, gt=0)
    """Largest gradient norm of the world model, and of the policy."""
    tau: float = Field(default=0.01, gt=0, le=1)
    """Rate at which the target Q-functions and the running scale of Q follow."""
    rho: float = Field(default=0.5, gt=0, le=1)
    """Weight of a loss t agent steps ahead is rho ** t."""
    consistency_coef: float = Field(default=20.0, ge=0)
    """Weight of the latent consistency loss."""
    reward_coef: float = Field(default=0.1, ge=0)
    """Weight of the reward loss."""
    value_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    termination_coef: float = Field(default=1.0, ge=0)
    """Weight of the termination loss."""
    entropy_coef: float = Field(default=1e-4, ge=0)
    """Weight of the policy's entropy."""
    squashed_entropy: bool = False
    """Whether the entropy in the loss is that of the action after tanh; by preset unless given."""
    lasting_dropout: bool = False
    """Whether dropout stays on in the targets and in planning; by preset unless given."""
    discount_denom: float = Field(default=5.0, gt=0)
    """discount = 1 - discount_denom / episode length, between discount_min and discount_max."""
    discount_min: float = Field(default=0.95, ge=0, le=1)
    """Smallest discount."""
    discount_max: float = Field(default=0.995, ge=0, le=1)
    """Largest discount."""

    @classmethod
    def task_defaults(cls, task: Task, obs: str) -> dict[str, Any]:
        """The authors' settings for tasks whose episodes end by themselves (their Gymnasium tasks)."""
        return {"episodic": True, "discount_max": 0.99, "rho": 0.7} if task.terminates else {}

    @classmethod
    def multitask_defaults(cls, tasks: Sequence[Task], given: Mapping[str, Any]) -> dict[str, Any]:
        """The authors' settings for several tasks: batches of 1024, and what their models of `mt30` differ in."""
        own = MT30_ARCHITECTURES.get(given.get("model_size", 5), {}) if list(tasks) == list(task_set("mt30")) else {}
        return {"batch_size": MULTITASK_BATCH_SIZE, **own}

    @model_validator(mode="before")
    @classmethod
    def _fill_architecture(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        if given.get("preset") == "paper":
            given = PAPER | given
        size = given.get("model_size", 5)
        known = size in ARCHITECTURES if isinstance(size, int) else False
        return (ARCHITECTURES[size] if known else {}) | given

    @model_validator(mode="after")
    def _check(self) -> Hyperparameters:
        if self.latent_dim % self.simnorm_dim:
            raise ValueError(f"latent_dim {self.latent_dim} must be a multiple of simnorm_dim {self.simnorm_dim}")
        if max(self.num_elites, self.num_pi_trajs) > self.num_samples:
            raise ValueError(f"num_elites and num_pi_trajs must be at most num_samples ({self.num_samples})")
        for low, high in (
            ("vmin", "vmax"),
            ("log_std_min", "log_std_max"),
            ("min_std", "max_std"),
            ("discount_min", "discount_max"),
        ):
            if getattr(self, low) > getattr(self, high) or (low == "vmin" and self.vmin == self.vmax):
                raise ValueError(f"{low} {getattr(self, low)} must be below {high} {getattr(self, high)}")
        return self

    def plan_iterations(self, action_size: int) -> int:
        """MPPI iterations for an action of this size."""
        return self.iterations + (EXTRA_ITERATIONS if action_size >= LARGE_ACTION_SIZE else 0)

    def padding_class(self, action_size: int) -> int:
        """What runs of one padded fleet must have in common: see `agents.protocol`."""
        return self.plan_iterations(action_size)

    def discount(self, episode_agent_steps: int) -> float:
        """gamma, from the length of an episode in agent steps."""
        gamma = 1.0 - self.discount_denom / episode_agent_steps
        return min(max(gamma, self.discount_min), self.discount_max)

    def seed_phase(self, num_envs: int, episode_agent_steps: int) -> int:
        """Agent steps of the seed phase, in which every environment finishes an episode.

        Raises:
            UserError: the length that was set is too short for that, so there would be nothing to learn from.
        """
        shortest = num_envs * episode_agent_steps
        if self.seed_agent_steps is None:
            return max(MIN_SEED_AGENT_STEPS, SEED_EPISODES * episode_agent_steps, shortest)
        if self.seed_agent_steps < shortest:
            raise UserError(
                f"seed_agent_steps {self.seed_agent_steps} ends before every environment has finished an episode: "
                f"give at least {shortest} ({num_envs} x {episode_agent_steps} agent steps)"
            )
        return self.seed_agent_steps
