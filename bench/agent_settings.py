"""What an agent is trained with: its hyperparameters and where each comes from, and the protocol by domain and task.

Light on purpose: loads no torch, unless a user's agent does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents import registry
from bench.envs import check_supported
from bench.errors import UserError
from bench.tasks import Task, tasks


@dataclass(frozen=True)
class Setting:
    """One hyperparameter."""

    key: str
    value: Any
    source: str
    """`default`, `task` (by the row of the task table), `preset`, or `given`."""
    about: str


def settings(agent: str, overrides: Mapping[str, Any], task: Task | None, obs: str) -> list[Setting]:
    """Every hyperparameter of an agent on a task, in its order.

    Raises:
        UserError: an unknown agent, preset or key, or a value out of range.
    """
    fields = registry.get(agent).hyperparameters_model().model_fields
    values = registry.resolve_hyperparameters(agent, overrides, task, obs)
    of_task = registry.task_defaults(agent, task, obs)
    preset = {"preset": overrides["preset"]} if "preset" in overrides else {}
    without = registry.resolve_hyperparameters(agent, {}, task, obs)
    with_preset = registry.resolve_hyperparameters(agent, preset, task, obs)

    def source(key: str) -> str:
        if key in overrides:
            return "given"
        if with_preset[key] != without[key]:
            return "preset"
        return "task" if key in of_task else "default"

    return [Setting(key, values[key], source(key), field.description or "") for key, field in fields.items()]


@dataclass(frozen=True)
class Protocol:
    """Tasks that are trained alike: all but the seed is the same for them."""

    domain: str
    env_steps: int
    action_repeat: int
    episode_agent_steps: int
    eval_every_env_steps: int
    hyperparameters: dict[str, Any]
    """Those that the agent sets by the task."""
    tasks: tuple[str, ...]


def protocols(agent: str, obs: str) -> list[Protocol]:
    """The protocol on every task that gives such observations, those alike together."""
    found: dict[str, Protocol] = {}
    for task in tasks():
        try:
            check_supported(task, obs)
        except UserError:
            continue
        own = Protocol(
            domain=task.domain,
            env_steps=task.budget_env_steps,
            action_repeat=task.action_repeat,
            episode_agent_steps=task.episode_agent_steps,
            eval_every_env_steps=task.eval_every_env_steps,
            hyperparameters=registry.task_defaults(agent, task, obs),
            tasks=(),
        )
        before = found.setdefault(repr(own), own)
        found[repr(own)] = Protocol(**{**vars(before), "tasks": (*before.tasks, task.name)})
    return list(found.values())
