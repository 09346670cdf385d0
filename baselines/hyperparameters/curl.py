"""Hyperparameters of CURL. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from agents.presets import Preset
from baselines.hyperparameters.sac import SAC
from bench.tasks import Task


class CURL(SAC):
    """CURL (Laskin, Srinivas, Abbeel 2020): the authors' code, with the batch that they say their final runs had.

    Their code has 32 transitions in a batch by default and 128 in its script; the paper says 512 and so did they later.
    The action repeat is the task table's; theirs was 8 for cartpole, 2 for finger and walker, 4 elsewhere.
    """

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("batches of 512, as the authors say of their final runs; a lower learning rate on cheetah"),
        "script": Preset(
            "the script in the authors' repository: batches of 128, one learning rate for every task",
            {"batch_size": 128, "actor_lr": 1e-3, "critic_lr": 1e-3, "encoder_lr": 1e-3},
        ),
    }
    free: ClassVar[frozenset[str]] = SAC.free | {"encoder_lr"}

    batch_size: int = Field(default=512, ge=2)
    """Transitions in a batch, for each run. Each is the negative of all others in the contrastive loss."""
    replay_capacity: int = Field(default=100_000, ge=1)
    """Transitions kept, for each run."""
    seed_agent_steps: int = Field(default=1000, ge=0)
    """Uniformly random agent steps before the first update; from then on one update for each agent step."""
    actor_lr: float = Field(default=1e-3, gt=0)
    """Adam's learning rate for the actor."""
    critic_lr: float = Field(default=1e-3, gt=0)
    """Adam's learning rate for the critics and their encoder."""
    encoder_lr: float = Field(default=1e-3, gt=0)
    """Adam's learning rate for the encoder in each of its two steps on the contrastive loss, and for the similarity."""
    log_std_min: float = -10.0
    """Lower bound of the policy's log standard deviation, before the tanh of the action."""
    tau: float = Field(default=0.01, gt=0, le=1)
    """Step of the target critics towards the critics."""
    actor_every: int = Field(default=2, ge=1)
    """Updates from one step of the actor and the temperature to the next; the first update makes one."""
    alpha_beta1: float = Field(default=0.5, ge=0, lt=1)
    """Adam's beta1 for the temperature."""
    image_size: int = Field(default=100, ge=1)
    """Height and width of the pictures before they are cropped, in pixels."""
    crop_size: int = Field(default=84, ge=1)
    """Height and width of what the networks see, in pixels."""
    shadows: bool = True
    """Whether the pictures show shadows and reflections, most of the cost of drawing them without a GPU."""

    @model_validator(mode="after")
    def _crop_within_image(self) -> CURL:
        if self.crop_size > self.image_size:
            raise ValueError(f"crop_size {self.crop_size} must be at most image_size {self.image_size}")
        return self

    @classmethod
    def task_defaults(cls, task: Task, obs: str) -> dict[str, Any]:
        """A lower learning rate for cheetah tasks, as the paper's table has it for cheetah-run."""
        lr = 2e-4
        return {"actor_lr": lr, "critic_lr": lr, "encoder_lr": lr} if task.name.startswith("cheetah-") else {}
