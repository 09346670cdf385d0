"""Hyperparameters of SimbaV2. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.presets import Preset
from bench.tasks import Task

SOURCE_ENV_STEPS = 1_000_000
"""The authors' budget in every domain, over which their learning rate falls."""


class SimbaV2(BaseModel):
    """SimbaV2 (Lee et al. 2025), the authors' settings for online learning.

    By the task (unless set): updates for each agent step, two critics where episodes terminate, and the length of the
    learning rate's schedule. The action repeat is the task table's; the authors have 2 on MyoSuite, the table 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("the authors' settings for online learning, one update for each env step"),
    }
    free: ClassVar[frozenset[str]] = frozenset([
        "discount_denom", "discount_min", "discount_max", "shift", "vmax", "log_std_min", "log_std_max",
        "init_temperature", "target_entropy", "lr_start", "lr_end", "lr_decay_agent_steps", "tau",
    ])  # fmt: skip
    """Those that change neither speed nor memory: what was measured with others serves."""

    batch_size: int = Field(default=256, ge=1)
    """Transitions in a batch, for each run."""
    replay_capacity: int = Field(default=1_000_000, ge=1)
    """Transitions kept, for each run."""
    seed_agent_steps: int = Field(default=5000, ge=0)
    """Uniformly random agent steps before the first update."""
    updates_per_agent_step: int = Field(default=2, ge=1)
    """Updates for each agent step after that; by the task its action repeat, so one for each env step."""
    double_q: bool = False
    """Two critics, the smaller of which counts; by the task whether its episodes can terminate."""
    discount_denom: float = Field(default=5.0, gt=0)
    """discount = 1 - discount_denom / episode length in agent steps, between discount_min and discount_max."""
    discount_min: float = Field(default=0.95, ge=0, le=1)
    """Smallest discount."""
    discount_max: float = Field(default=0.995, ge=0, le=1)
    """Largest discount."""
    actor_dim: int = Field(default=128, ge=1)
    """Width of the actor."""
    actor_blocks: int = Field(default=1, ge=1)
    """Blocks of the actor."""
    critic_dim: int = Field(default=512, ge=1)
    """Width of each critic."""
    critic_blocks: int = Field(default=2, ge=1)
    """Blocks of each critic."""
    shift: float = Field(default=3.0, gt=0)
    """Constant appended to an input before it is projected to the sphere, which keeps its magnitude."""
    num_bins: int = Field(default=101, ge=2)
    """Bins of the distribution of returns."""
    vmax: float = Field(default=5.0, gt=0)
    """The bins lie between -vmax and vmax; rewards are scaled so that returns stay there."""
    log_std_min: float = -10.0
    """Lower bound of the policy's log standard deviation, before the tanh of the action."""
    log_std_max: float = 2.0
    """Upper bound of the same."""
    init_temperature: float = Field(default=0.01, gt=0)
    """Weight alpha of the entropy at the start."""
    target_entropy: float = -0.5
    """The temperature is learned towards this entropy for each dimension of the action."""
    lr_start: float = Field(default=1e-4, gt=0)
    """Adam's learning rate at the first update, for actor, critic and temperature."""
    lr_end: float = Field(default=5e-5, gt=0)
    """The same at the end of a linear schedule, and from then on."""
    lr_decay_agent_steps: int = Field(default=SOURCE_ENV_STEPS // 2, ge=1)
    """Agent steps over which it falls; by the task a million env steps."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Step of the target critic towards the critic, after each update."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> SimbaV2:
        for low, high in (("log_std_min", "log_std_max"), ("discount_min", "discount_max")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} {getattr(self, low)} must be at most {high} {getattr(self, high)}")
        return self

    @classmethod
    def task_defaults(cls, task: Task, obs: str) -> dict[str, Any]:
        """One update for each env step, double critics where episodes terminate, a schedule of a million env steps."""
        return {
            "updates_per_agent_step": task.action_repeat,
            "double_q": task.terminates,
            "lr_decay_agent_steps": SOURCE_ENV_STEPS // task.action_repeat,
        }

    def discount(self, episode_agent_steps: int) -> float:
        """gamma, from the length of an episode in agent steps."""
        gamma = 1.0 - self.discount_denom / episode_agent_steps
        return min(max(gamma, self.discount_min), self.discount_max)
