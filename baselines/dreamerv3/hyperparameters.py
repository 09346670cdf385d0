"""Hyperparameters of DreamerV3: two generations, each with presets by size. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.presets import Preset


def _sizes_2023(deter: int, units: int, layers: int, cnn_depth: int) -> dict[str, int]:
    heads = dict.fromkeys(("reward_layers", "continue_layers", "actor_layers", "critic_layers"), layers)
    return {"deter": deter, "hidden": units, "units": units, "cnn_depth": cnn_depth} | heads


def _sizes_2024(deter: int, units: int, classes: int) -> dict[str, int]:
    return {"deter": deter, "hidden": units, "units": units, "classes": classes, "cnn_depth": classes} | {
        "vector_units": units
    }


SIZES: dict[int, dict[str, dict[str, int]]] = {
    2023: {
        "small": _sizes_2023(512, 512, 2, 32),
        "medium": _sizes_2023(1024, 640, 3, 48),
        "large": _sizes_2023(2048, 768, 4, 64),
        "xlarge": _sizes_2023(4096, 1024, 5, 96),
    },
    2024: {
        "1M": _sizes_2024(512, 64, 4),
        "12M": _sizes_2024(2048, 256, 16),
        "25M": _sizes_2024(3072, 384, 24),
        "50M": _sizes_2024(4096, 512, 32),
        "100M": _sizes_2024(6144, 768, 48),
        "200M": _sizes_2024(8192, 1024, 64),
        "400M": _sizes_2024(12288, 1536, 96),
    },
}
"""Widths and depths by generation and size, with the authors' names of the sizes."""

GENERATIONS: dict[int, dict[str, Any]] = {
    2023: {"size": "small"},
    2024: {
        "size": "12M",
        "blocks": 8,
        "vector_layers": 3,
        "reward_layers": 1,
        "continue_layers": 1,
        "actor_layers": 3,
        "critic_layers": 3,
        "dyn_scale": 1.0,
        "replay_value_scale": 0.3,
        "model_lr": 4e-5,
        "actor_lr": 4e-5,
        "critic_lr": 4e-5,
        "burn_in": 8,
        "replay_capacity": 5_000_000,
        "random_prefill": False,
    },
}
"""What a generation changes in the defaults below, which are those of 2023."""

IMAGE_STRIDE = 16
"""The image encoder halves the picture four times."""


class Hyperparameters(BaseModel):
    """DreamerV3; the defaults are what the TD-MPC2 paper compares with: generation 2023, small, train ratio 512.

    `generation` and `size` fill the fields that they govern unless those are given, so that a dump shows the numbers
    that are used. 2024 has the authors' later algorithm at size 12M, which they ran on DMControl with the same train
    ratio and action repeat as 2023; lengths, batch and constants that are not listed under it are the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("what the TD-MPC2 paper compares with: generation 2023, small, train ratio 512"),
        "nature": Preset("the reworked algorithm of the Nature article, at size 12M", {"generation": 2024}),
    }
    free: ClassVar[frozenset[str]] = frozenset([
        "unimix", "free_nats", "dyn_scale", "rep_scale", "discount", "return_lambda", "entropy_scale",
        "return_rate", "slow_rate", "model_lr", "actor_lr", "critic_lr", "evaluate_with",
    ])  # fmt: skip
    """Those that change neither speed nor memory: what was measured with others serves."""

    generation: Literal[2023, 2024] = 2023
    """Which DreamerV3: that of the first preprint (2023), or the reworked one of the Nature article (2024)."""
    size: str = "small"
    """Size of the model: small, medium, large or xlarge (2023); 1M, 12M, 25M, 50M, 100M, 200M or 400M (2024)."""

    # Architecture
    deter: int = Field(default=512, ge=1)
    """D, size of the deterministic (recurrent) part of the state; by size unless given."""
    stoch: int = Field(default=32, ge=1)
    """S, categorical variables in the stochastic part of the state."""
    classes: int = Field(default=32, ge=2)
    """C, classes of each; by size unless given."""
    unimix: float = Field(default=0.01, ge=0, lt=1)
    """Share of the uniform distribution that is mixed into each categorical."""
    hidden: int = Field(default=512, ge=1)
    """Width of the hidden layers of the recurrent state-space model; by size unless given."""
    blocks: int = Field(default=1, ge=1)
    """Blocks of the recurrent layer: 1 in 2023, which has none; 8 in 2024. Divides deter."""
    units: int = Field(default=512, ge=1)
    """Width of the heads, the actor and the critic; by size unless given."""
    reward_layers: int = Field(default=2, ge=1)
    """Hidden layers of the reward head; by generation or size unless given, like the next three."""
    continue_layers: int = Field(default=2, ge=1)
    """Hidden layers of the continue head."""
    actor_layers: int = Field(default=2, ge=1)
    """Hidden layers of the actor."""
    critic_layers: int = Field(default=2, ge=1)
    """Hidden layers of the critic."""
    vector_layers: int = Field(default=5, ge=1)
    """Hidden layers of the encoder and of the decoder of state vectors."""
    vector_units: int = Field(default=1024, ge=1)
    """Their width: 1024 at every size in 2023; by size unless given in 2024."""
    cnn_depth: int = Field(default=32, ge=1)
    """Channels of the first convolution are a small multiple of this; by size unless given."""
    image_size: int = Field(default=64, ge=IMAGE_STRIDE, multiple_of=IMAGE_STRIDE)
    """Height and width in pixels of the pictures."""
    frame_stack: int = Field(default=1, ge=1)
    """Pictures in one observation; the recurrent state remembers, so one is enough."""
    bins: int = Field(default=255, ge=3)
    """Bins of the two-hot reward and value, between symexp(-20) and symexp(20). Odd in 2024."""

    # World model
    free_nats: float = Field(default=1.0, ge=0)
    """Divergences below this many nats cost nothing more and teach nothing."""
    dyn_scale: float = Field(default=0.5, ge=0)
    """Weight of the divergence that trains the prior; by generation unless given."""
    rep_scale: float = Field(default=0.1, ge=0)
    """Weight of the divergence that trains the posterior."""

    # Behaviour
    horizon: int = Field(default=15, ge=1)
    """H, agent steps of an imagined trajectory."""
    discount: float = Field(default=1 - 1 / 333, gt=0, lt=1)
    """gamma, for each agent step."""
    return_lambda: float = Field(default=0.95, ge=0, le=1)
    """lambda of the lambda-returns."""
    entropy_scale: float = Field(default=3e-4, ge=0)
    """Weight of the policy's entropy."""
    return_rate: float = Field(default=0.01, gt=0, le=1)
    """Rate at which the 5 and 95 percentiles of returns are followed."""
    slow_rate: float = Field(default=0.02, gt=0, le=1)
    """Rate at which the slow critic follows the critic."""
    slow_scale: float = Field(default=1.0, ge=0)
    """Weight of the slow critic as a regulariser of the critic."""
    replay_value_scale: float = Field(default=0.0, ge=0)
    """Weight of the critic's loss on replayed states: 0 in 2023, which has none."""

    # Training
    model_lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the world model; by generation unless given, like the next two."""
    actor_lr: float = Field(default=3e-5, gt=0)
    """Learning rate of the actor."""
    critic_lr: float = Field(default=3e-5, gt=0)
    """Learning rate of the critic."""
    batch_size: int = Field(default=16, ge=1)
    """B, sequences in an update."""
    batch_length: int = Field(default=64, ge=2)
    """T, observations of a sequence that are learned from."""
    burn_in: int = Field(default=0, ge=0)
    """Observations before those, over which the recurrent state is built up. With 0 a sequence starts from the initial
    state, as in 2023."""
    train_ratio: int = Field(default=512, ge=1)
    """Replayed observations, B * T an update, for each agent step."""
    replay_capacity: int = Field(default=1_000_000, ge=1)
    """Transitions kept, for each run."""
    prefill_windows: int = Field(default=1024, ge=1)
    """Sequences that replay holds when learning begins."""
    random_prefill: bool = True
    """Whether actions are uniformly random until then; if not, the untrained policy acts."""
    evaluate_with: Literal["mean", "sample"] = "mean"
    """The action in evaluation: tanh of the policy's mean, or a draw from the policy as in the authors' curves."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        generation = values.get("generation", 2023)
        if generation not in GENERATIONS:
            return values
        filled = GENERATIONS[generation] | values
        sizes = SIZES[generation]
        if filled["size"] not in sizes:
            raise ValueError(f"size {filled['size']!r} is none of generation {generation}: {', '.join(sizes)}")
        return GENERATIONS[generation] | sizes[filled["size"]] | values

    @model_validator(mode="after")
    def _check(self) -> Hyperparameters:
        if self.deter % self.blocks:
            raise ValueError(f"deter {self.deter} must be a multiple of blocks {self.blocks}")
        if self.generation == 2023:
            for name, only in {"blocks": 1, "replay_value_scale": 0.0}.items():
                if getattr(self, name) != only:
                    raise ValueError(f"{name} belongs to generation 2024; 2023 has {only}")
        else:
            if self.bins % 2 == 0:
                raise ValueError(f"bins {self.bins} must be odd in generation 2024, which has one at zero")
            if 4 * self.cnn_depth % self.blocks:
                raise ValueError(f"4 * cnn_depth {self.cnn_depth} must be a multiple of blocks {self.blocks}")
        return self

    @property
    def slice_length(self) -> int:
        """L, observations in a slice of replay: those learned from, the burn-in, and always one at least before."""
        return self.batch_length + max(1, self.burn_in)

    def prefill_agent_steps(self, num_envs: int) -> int:
        """Agent steps of a run after which its replay holds `prefill_windows` slices.

        k agent steps of one environment are k + 1 observations and k + 2 - L slices.
        """
        of_each = -(-self.prefill_windows // num_envs)
        return num_envs * (of_each + self.slice_length - 2)

    def updates_by(self, agent_steps: int, num_envs: int) -> int:
        """Updates made when a run has taken so many agent steps.

        One when the prefill ends; from then on exactly `train_ratio` observations are replayed for each agent step.
        """
        learning = agent_steps - self.prefill_agent_steps(num_envs)
        return 0 if learning < 0 else 1 + learning * self.train_ratio // (self.batch_size * self.batch_length)
