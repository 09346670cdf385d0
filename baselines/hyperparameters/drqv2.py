"""Hyperparameters of DrQ-v2. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.precision import Precision
from agents.presets import Preset
from bench.tasks import Task

EASY = frozenset(
    {
        "cartpole-balance",
        "cartpole-balance-sparse",
        "cartpole-swingup",
        "cup-catch",
        "finger-spin",
        "hopper-stand",
        "pendulum-swingup",
        "walker-stand",
        "walker-walk",
    }
)
"""The authors' easy tasks. Their hard ones are the humanoid's; all others are medium."""


class DrQv2(BaseModel):
    """DrQ-v2 (Yarats et al. 2021): the authors' settings for a task of medium difficulty."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("the authors' settings by difficulty class and task"),
    }
    free: ClassVar[frozenset[str]] = frozenset(
        ["discount", "lr", "tau", "std_start", "std_end", "std_decay_agent_steps", "std_clip"]
    )
    """Those that change neither speed nor memory: what was measured with others serves."""

    precision: Precision = "float32"
    """In which precision matrix products and convolutions are computed: float32, tf32 (on a GPU) or bf16."""
    batch_size: int = Field(default=256, ge=1)
    """Slices of `n_step` transitions in a batch, for each run."""
    replay_capacity: int = Field(default=1_000_000, ge=1)
    """Transitions kept, for each run."""
    seed_agent_steps: int = Field(default=2000, ge=1)
    """Uniformly random agent steps before the first update; every environment must finish an episode in them."""
    update_every: int = Field(default=2, ge=1)
    """Agent steps from one update to the next."""
    n_step: int = Field(default=3, ge=1)
    """Rewards summed before the critic's target bootstraps."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """Discount for each agent step."""
    lr: float = Field(default=1e-4, gt=0)
    """Adam's learning rate for the encoder, the actor and the critics."""
    tau: float = Field(default=0.01, gt=0, le=1)
    """Step of the target critics towards the critics, after each update."""
    std_start: float = Field(default=1.0, ge=0)
    """Standard deviation of the exploration noise at the first agent step."""
    std_end: float = Field(default=0.1, ge=0)
    """The same once it has fallen."""
    std_decay_agent_steps: int = Field(default=500_000, ge=1)
    """Agent steps, from the first one on, in which it falls linearly from `std_start` to `std_end`."""
    std_clip: float = Field(default=0.3, gt=0)
    """Largest size of the noise on actions in the losses. Acting in training is not clipped."""
    image_size: int = Field(default=84, ge=1)
    """Height and width of the pictures, in pixels."""
    frame_stack: int = Field(default=3, ge=1)
    """Last pictures that make up an observation."""
    shadows: bool = True
    """Whether the pictures show shadows and reflections, most of the cost of drawing them without a GPU."""
    shift_pad: int = Field(default=4, ge=0)
    """Largest random shift of a picture along each axis, in pixels."""
    num_channels: int = Field(default=32, ge=1)
    """Channels of each of the four convolutions."""
    feature_dim: int = Field(default=50, ge=1)
    """Outputs of the linear layer between the convolutions and the actor, and of that before the critics."""
    hidden_dim: int = Field(default=1024, ge=1)
    """Width of the two hidden layers of the actor and of each critic."""

    @model_validator(mode="after")
    def _std_falls(self) -> DrQv2:
        if self.std_end > self.std_start:
            raise ValueError(f"std_end {self.std_end} must be at most std_start {self.std_start}")
        return self

    @classmethod
    def task_defaults(cls, task: Task, obs: str) -> dict[str, Any]:
        """The authors' settings by difficulty class and task.

        Easy tasks explore for 100,000 agent steps, medium ones for 500,000, hard ones for 2,000,000. Dog tasks, which
        the authors do not have, are taken for hard; the other tasks that they do not have are medium.
        """
        body = task.name.split("-", 1)[0]
        values: dict[str, Any] = {}
        if task.name in EASY:
            values["std_decay_agent_steps"] = 100_000
        if body in ("humanoid", "dog"):
            values |= {"std_decay_agent_steps": 2_000_000, "lr": 8e-5, "feature_dim": 100}
        if body == "walker":
            values |= {"n_step": 1, "batch_size": 512}
        if task.name == "quadruped-run":
            values["replay_capacity"] = 100_000
        return values
