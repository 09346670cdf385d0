"""Hyperparameters of TD-MPC. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.presets import Preset
from bench.tasks import Task

DOMAIN_SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "humanoid": {"iterations": 12, "latent_dim": 100},
        "dog": {"iterations": 8, "latent_dim": 100, "batch_size": 2048, "lr": 3e-4},
    }
)
"""What the authors set by the body of a DMControl task; every other body has the defaults."""

PIXEL_SETTINGS: Mapping[str, Any] = MappingProxyType({"batch_size": 256, "lr": 3e-4})
"""What they set for image observations, before the settings of the body."""

SHIFT_FRACTION = 21
"""Images are shifted by up to 1 / 21 of their size: 4 pixels of 84."""


class Hyperparameters(BaseModel):
    """TD-MPC for one task; the defaults are those of nicklashansen/tdmpc for state observations.

    Settings by the task (`task_defaults`): humanoid and dog have a larger latent state and more planning, dog a larger
    batch and a smaller learning rate; image observations have a smaller batch and learning rate. Two things belong to
    the environment and are no hyperparameters: steps and action repeat are the task table's, which are the TD-MPC2
    paper's (budgets of 2 to 14 million env steps; action repeat 2, in MyoSuite 1). The authors of TD-MPC repeat an
    action 8 times in cartpole, 2 in finger, walker, humanoid and dog, 4 in every other body, for 0.5 million env steps
    (3 for humanoid and for images, 5 for dog). Outside DMControl the settings that the TD-MPC2 paper used are not
    public: the defaults are taken there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("the authors' settings by the body, and for images those of their curves to 3M env steps"),
        "pixels-100k": Preset("the authors' table from images at 100k env steps", {"lr": 1e-3, "batch_size": 512}),
    }
    free: ClassVar[frozenset[str]] = frozenset([
        "min_std", "min_std_start", "max_std", "temperature", "momentum", "priority_alpha", "priority_beta",
        "discount", "lr", "grad_clip_norm", "tau", "rho", "consistency_coef", "reward_coef", "value_coef",
    ])  # fmt: skip
    """Those that change neither speed nor memory: what was measured with others serves."""

    # Architecture
    enc_dim: int = Field(default=256, ge=1)
    """Width of the hidden layer of the encoder of state observations."""
    mlp_dim: int = Field(default=512, ge=1)
    """Width of the hidden layers of dynamics, reward, policy and Q."""
    latent_dim: int = Field(default=50, ge=1)
    """Size of the latent state z; 100 for humanoid and dog."""
    num_channels: int = Field(default=32, ge=1)
    """Channels of each convolution of the encoder of images."""
    image_size: int = Field(default=84, ge=1)
    """Height and width of image observations, in pixels."""
    frame_stack: int = Field(default=3, ge=1)
    """Pictures that make up one image observation."""

    # Planning
    horizon: int = Field(default=5, ge=1)
    """H, agent steps that the model is rolled out in training, and in planning at the end of the schedule."""
    horizon_start: int = Field(default=1, ge=1)
    """Planning horizon at the start of the schedule."""
    iterations: int = Field(default=6, ge=1)
    """Iterations of one plan; 12 for humanoid, 8 for dog."""
    num_samples: int = Field(default=512, ge=1)
    """Action sequences drawn in each iteration."""
    num_elites: int = Field(default=64, ge=1)
    """Best sequences that the plan's mean and standard deviation are refitted to."""
    mixture_coef: float = Field(default=0.05, ge=0)
    """Sequences from the policy, as a fraction of num_samples; they come on top of them."""
    min_std: float = Field(default=0.05, gt=0)
    """Lower bound of the plan's standard deviation at the end of the schedule, and the policy's standard deviation
    wherever it acts: in planning, in the TD target and in its own loss."""
    min_std_start: float = Field(default=0.5, gt=0)
    """Lower bound of the plan's standard deviation at the start of the schedule."""
    max_std: float = Field(default=2.0, gt=0)
    """Upper bound of the plan's standard deviation, and where it starts."""
    temperature: float = Field(default=0.5, gt=0)
    """Elites are weighted by exp(temperature * value)."""
    momentum: float = Field(default=0.1, ge=0, lt=1)
    """Weight of the plan's mean before an iteration in the one after it."""
    schedule_agent_steps: int = Field(default=25_000, ge=1)
    """Agent steps in which the planning horizon and min_std go linearly from start to end."""

    # Training
    batch_size: int = Field(default=512, ge=1)
    """B, slices of replay in an update; 2048 for dog, else 256 from images."""
    buffer_size: int = Field(default=1_000_000, ge=1)
    """Transitions kept in replay."""
    priority_alpha: float = Field(default=0.6, ge=0)
    """A slice is drawn in proportion to priority ** priority_alpha."""
    priority_beta: float = Field(default=0.4, ge=0)
    """Exponent of the importance weights; constant."""
    seed_agent_steps: int = Field(default=5000, ge=1)
    """Uniformly random agent steps, rounded up to whole episodes, and updates in the burst that ends the episode after
    them."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """Discount for each agent step, whatever the action repeat."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of model and policy; 3e-4 for dog and from images."""
    grad_clip_norm: float = Field(default=10.0, gt=0)
    """Largest gradient norm of the model, and of the policy."""
    target_every: int = Field(default=2, ge=1)
    """Updates from one step of the target to the next."""
    tau: float = Field(default=0.01, gt=0, le=1)
    """Rate at which the target follows."""
    rho: float = Field(default=0.5, gt=0, le=1)
    """Weight of a loss t agent steps ahead is rho ** t."""
    consistency_coef: float = Field(default=2.0, ge=0)
    """Weight of the latent consistency loss."""
    reward_coef: float = Field(default=0.5, ge=0)
    """Weight of the reward loss."""
    value_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""

    @classmethod
    def task_defaults(cls, task: Task, obs: str) -> dict[str, Any]:
        """The authors' settings for a body of DMControl and for images; the body's win."""
        body = task.name.split("-")[0] if task.domain == "dmcontrol" else ""
        return {**(PIXEL_SETTINGS if obs == "rgb" else {}), **DOMAIN_SETTINGS.get(body, {})}

    @model_validator(mode="after")
    def _check(self) -> Hyperparameters:
        if self.num_elites > self.num_samples + self.num_pi_trajs:
            raise ValueError(f"num_elites must be at most num_samples ({self.num_samples}) and those of the policy")
        if self.horizon_start > self.horizon:
            raise ValueError(f"horizon_start {self.horizon_start} must be at most horizon {self.horizon}")
        if not self.min_std <= self.min_std_start <= self.max_std:
            raise ValueError(
                f"min_std {self.min_std}, min_std_start {self.min_std_start}, max_std {self.max_std} must ascend"
            )
        return self

    @property
    def num_pi_trajs(self) -> int:
        """Action sequences from the policy."""
        return int(self.mixture_coef * self.num_samples)

    def plan_horizon(self, agent_steps: int) -> int:
        """Planning horizon of an episode that began after so many agent steps."""
        return int(self._scheduled(self.horizon_start, self.horizon, agent_steps))

    def std_floor(self, agent_steps: int) -> float:
        """Lower bound of the plan's standard deviation after so many agent steps."""
        return self._scheduled(self.min_std_start, self.min_std, agent_steps)

    def _scheduled(self, start: float, end: float, agent_steps: int) -> float:
        done = min(agent_steps / self.schedule_agent_steps, 1.0)
        return (1 - done) * start + done * end
