"""Hyperparameters of soft actor-critic. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.precision import Precision
from agents.presets import Preset
from bench.tasks import Task


class SAC(BaseModel):
    """Soft actor-critic (Haarnoja et al. 2018) as in pytorch_sac, which has one set for all tasks.

    Two things follow the TD-MPC2 paper's account of its SAC instead: the batch (512; pytorch_sac has 1024) and the task
    table's action repeat (pytorch_sac has none), which belongs to the environment and is no hyperparameter here.

    pytorch_sac learns from states only. From pixels the defaults are those of CURL, whose base it is then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    presets: ClassVar[Mapping[str, Preset]] = {
        "paper": Preset("as the TD-MPC2 paper says of its SAC: batches of 512"),
        "authors": Preset("pytorch_sac to the letter: batches of 1024", {"batch_size": 1024}),
    }
    free: ClassVar[frozenset[str]] = frozenset([
        "discount", "actor_lr", "critic_lr", "alpha_lr", "init_temperature", "log_std_min", "log_std_max",
        "tau", "alpha_beta1", "encoder_tau",
    ])  # fmt: skip
    """Those that change neither speed nor memory: what was measured with others serves."""

    precision: Precision = "float32"
    """In which precision matrix products and convolutions are computed: float32, tf32 (on a GPU) or bf16."""
    batch_size: int = Field(default=512, ge=1)
    """Transitions in a batch, for each run."""
    replay_capacity: int = Field(default=1_000_000, ge=1)
    """Transitions kept, for each run."""
    seed_agent_steps: int = Field(default=5000, ge=0)
    """Uniformly random agent steps before the first update; from then on one update for each agent step."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """Discount for each agent step."""
    hidden_dim: int = Field(default=1024, ge=1)
    """Width of each hidden layer of the actor and the critics."""
    hidden_layers: int = Field(default=2, ge=1)
    """Hidden layers of the actor and the critics."""
    actor_lr: float = Field(default=1e-4, gt=0)
    """Adam's learning rate for the actor."""
    critic_lr: float = Field(default=1e-4, gt=0)
    """Adam's learning rate for the critics."""
    alpha_lr: float = Field(default=1e-4, gt=0)
    """Adam's learning rate for the logarithm of the temperature."""
    init_temperature: float = Field(default=0.1, gt=0)
    """Weight alpha of the entropy at the start. It is learned, towards an entropy of -action_size."""
    log_std_min: float = -5.0
    """Lower bound of the policy's log standard deviation, before the tanh of the action."""
    log_std_max: float = 2.0
    """Upper bound of the same."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Step of the target critics towards the critics."""
    target_every: int = Field(default=2, ge=1)
    """Updates from one step of the target critics to the next; the first update makes one."""
    actor_every: int = Field(default=1, ge=1)
    """Updates from one step of the actor and the temperature to the next; the first update makes one."""
    alpha_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's beta1 for the temperature."""
    image_size: int = Field(default=84, ge=1)
    """Height and width of the pictures, in pixels. Of no effect from states, like all that follow."""
    frame_stack: int = Field(default=3, ge=1)
    """Last pictures that make up an observation."""
    num_channels: int = Field(default=32, ge=1)
    """Channels of each of the four convolutions."""
    feature_dim: int = Field(default=50, ge=1)
    """Outputs of the linear layer between the convolutions and the actor, and of that before the critics."""
    encoder_tau: float = Field(default=0.05, gt=0, le=1)
    """Step of the slow convolutions and trunk of the target critics towards the critics' own."""

    @classmethod
    def task_defaults(cls, task: Task, obs: str) -> dict[str, Any]:
        """From pixels: the settings of CURL that concern soft actor-critic. No task is set apart."""
        if obs != "rgb":
            return {}
        return {
            "batch_size": 512,
            "replay_capacity": 100_000,
            "seed_agent_steps": 1000,
            "actor_lr": 1e-3,
            "critic_lr": 1e-3,
            "tau": 0.01,
            "log_std_min": -10.0,
            "actor_every": 2,
            "alpha_beta1": 0.5,
        }

    @model_validator(mode="after")
    def _bounds_in_order(self) -> SAC:
        if self.log_std_min >= self.log_std_max:
            raise ValueError(f"log_std_min {self.log_std_min} must be below log_std_max {self.log_std_max}")
        return self
