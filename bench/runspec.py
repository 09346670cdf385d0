"""What a run is, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Init(BaseModel):
    """The checkpoint that a run's parameters start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    """Of the file; empty in the plan of a sweep whose checkpoint is not here."""
    embedding: int | Literal["mean"] | None = None
    """What the new task's embedding starts from: a row of the table of a multi-task checkpoint, or the mean of all its
    rows. None: a checkpoint of one task, which has none."""
    path: str
    """Where the file was; no part of the identity."""


class RunSpec(BaseModel):
    """One run: an agent with all its hyperparameters, on one task, from one kind of observation, with one seed.

    The identity (`hash`) covers exactly what decides the result: agent, hyperparameters, task, observation kind, seed,
    action repeat, the number of environments and the checkpoint that it starts from, if any. The budget and the
    evaluation schedule are not part of it: a longer run is the same run, further on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str
    hyperparameters: dict[str, Any]
    """Every hyperparameter with its value, defaults included, so that a changed default is another run."""
    variant: str = "default"
    """Label of the overrides in tables and figures."""
    task: str
    domain: str
    domain_version: str
    obs: Literal["state", "rgb"] = "state"
    seed: int = Field(ge=0)
    num_envs: int = Field(default=1, ge=1)
    action_repeat: int = Field(ge=1)
    budget_env_steps: int = Field(ge=1)
    eval_every_env_steps: int = Field(ge=1)
    eval_episodes: int = Field(default=10, ge=1)
    init: Init | None = None
    """The checkpoint that is finetuned; None: parameters are drawn by the seed."""

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits of SHA-256 over what decides the result."""
        decisive: dict[str, Any] = {
            "agent": self.agent,
            "hyperparameters": self.hyperparameters,
            "task": self.task,
            "obs": self.obs,
            "seed": self.seed,
            "num_envs": self.num_envs,
            "action_repeat": self.action_repeat,
        }
        if self.init is not None:  # left out where there is none, so that older runs keep their hash
            decisive["init"] = self.init.model_dump(exclude={"path"})
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def run_id(self) -> str:
        """`agent/task/seed<k>-<hash>`: the path below the sweep's folder; an agent's `:` becomes a dot."""
        return f"{self.agent.replace(':', '.')}/{self.task}/seed{self.seed}-{self.hash}"

    @property
    def budget_agent_steps(self) -> int:
        """The budget in actions chosen by the agent."""
        return self.budget_env_steps // self.action_repeat
