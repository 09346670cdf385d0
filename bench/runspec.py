"""What a run is, and the identity that follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MULTITASK = "multitask"
"""Stands for the domain of a run that learns several tasks."""

ADDED_LATER: Mapping[str, Any] = MappingProxyType({"precision": "float32"})
"""Hyperparameters that agents got later, with the value at which a run is what it was before."""


def decisive(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters without those added later that change nothing: equal for runs of before and of now."""
    return {key: value for key, value in hyperparameters.items() if (key, value) not in ADDED_LATER.items()}


class OfflineSpec(BaseModel):
    """What a run learns from that takes no env steps: a fixed dataset of several tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[str, ...] = Field(min_length=1)
    """In the order of their numbers in the agent."""
    domain_versions: dict[str, str]
    """Domain -> the simulator that evaluates its tasks."""
    dataset: str
    """The dataset's fingerprint; empty in the plan of a sweep whose dataset is not here."""
    data: str
    """Where the dataset lies. No part of the identity: it may be moved."""
    updates: int = Field(ge=1)
    """The budget."""
    eval_every_updates: int = Field(ge=1)


class Init(BaseModel):
    """The checkpoint that a run's parameters start from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    """Of the file; empty in the plan of a sweep whose checkpoint is not here."""
    embedding: int | Literal["mean"] | None = None
    """What the new task's embedding starts from: a row of the table of a multi-task checkpoint, or the mean of all its
    rows. None: a checkpoint of one task, which has none."""
    task: str | None = None
    """The task, or number, by which the row was asked for; no part of the identity, nor is `path`."""
    path: str
    """Where the file was."""


class RunSpec(BaseModel):
    """One run: an agent with all its hyperparameters, on one task, from one kind of observation, with one seed.

    The identity (`hash`) covers exactly what decides the result: agent, hyperparameters, task, observation kind, seed,
    action repeat, the number of environments and the checkpoint that it starts from, if any; offline, also the tasks in
    their order and the dataset. The budget and the evaluation schedule are not part of it: a longer run is the same
    run, further on.

    A run with `offline` takes no env step: its axis is updates, its action repeat 1 (evaluation takes each task's own),
    its env-step budget and schedule 0, its `task` a label of all its tasks.
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
    budget_env_steps: int = Field(ge=0)
    eval_every_env_steps: int = Field(ge=0)
    eval_episodes: int = Field(default=10, ge=1)
    """Of each task."""
    init: Init | None = None
    """The checkpoint that is finetuned; None: parameters are drawn by the seed."""
    offline: OfflineSpec | None = None
    """What it learns from instead of env steps; None: it learns online."""

    @model_validator(mode="after")
    def _check(self) -> RunSpec:
        steps = (self.budget_env_steps, self.eval_every_env_steps)
        if self.offline is None and min(steps) < 1:
            raise ValueError("budget_env_steps and eval_every_env_steps must be at least 1")
        if self.offline is not None and (*steps, self.action_repeat, self.num_envs) != (0, 0, 1, 1):
            raise ValueError("a run that learns offline takes no env steps")
        return self

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits of SHA-256 over what decides the result; see `decisive`."""
        facts: dict[str, Any] = {
            "agent": self.agent,
            "hyperparameters": decisive(self.hyperparameters),
            "task": self.task,
            "obs": self.obs,
            "seed": self.seed,
            "num_envs": self.num_envs,
            "action_repeat": self.action_repeat,
        }
        if self.init is not None:  # left out where there is none, so that older runs keep their hash
            facts["init"] = self.init.model_dump(include={"sha256", "embedding"})
        if self.offline is not None:
            facts |= {"tasks": self.offline.tasks, "dataset": self.offline.dataset}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def run_id(self) -> str:
        """`agent/task/seed<k>-<hash>`: the path below the sweep's folder; an agent's `:` becomes a dot."""
        return f"{self.agent.replace(':', '.')}/{self.task}/seed{self.seed}-{self.hash}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that it is evaluated on."""
        return (self.task,) if self.offline is None else self.offline.tasks

    @property
    def axis(self) -> Literal["env_steps", "updates"]:
        """What its progress and its results are shown over."""
        return "env_steps" if self.offline is None else "updates"

    @property
    def clock(self) -> Literal["agent_steps", "updates"]:
        """What its training loop counts: `axis` is this times the action repeat."""
        return "agent_steps" if self.offline is None else "updates"

    @property
    def budget(self) -> int:
        """The budget on its axis."""
        return self.budget_env_steps if self.offline is None else self.offline.updates

    @property
    def clock_budget(self) -> int:
        """The budget on its clock: actions chosen by the agent, or updates."""
        return self.budget // self.action_repeat

    @property
    def clock_between_evals(self) -> int:
        """What lies between evaluations, on its clock."""
        every = self.eval_every_env_steps if self.offline is None else self.offline.eval_every_updates
        return every // self.action_repeat

    @property
    def budget_agent_steps(self) -> int:
        """The budget in actions chosen by the agent; 0 offline."""
        return self.budget_env_steps // self.action_repeat
