"""What an agent is told of its environments: its `AgentSpec`, from a row of the task table and its hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from agents.multitask import multitask_spec
from agents.protocol import AgentSpec, Sizes, TaskSpec
from agents.registry import get as get_agent
from bench.envs import ObsKind, agents_pixels, obs_spec
from bench.errors import UserError
from bench.runspec import RunSpec
from bench.tasks import Task
from bench.tasks import get as get_task


def of_task(
    task: Task,
    obs: ObsKind,
    hyperparameters: Mapping[str, Any],
    num_envs: int = 1,
    action_repeat: int | None = None,
    budget_env_steps: int | None = None,
) -> AgentSpec:
    """What the agent of a task is told.

    Args:
        task: a row of the task table.
        obs: kind of observation.
        hyperparameters: all of the agent's; they say which pictures it wants.
        num_envs: N.
        action_repeat: the table's by default; an episode lasts as many env steps whatever it is.
        budget_env_steps: the table's by default.

    Raises:
        UserError: no environment gives this kind of observation.
    """
    pixels = agents_pixels(hyperparameters)
    repeat = action_repeat or task.action_repeat
    return AgentSpec(
        obs_shape=obs_spec(task, obs, pixels)[0],
        obs_kind=obs,
        action_size=task.action_size,
        episode_agent_steps=task.episode_env_steps // repeat,
        budget_agent_steps=(budget_env_steps or task.budget_env_steps) // repeat,
        num_envs=num_envs,
        frame_stack=pixels.stack if obs == "rgb" else 1,
    )


def of_run(spec: RunSpec) -> AgentSpec:
    """What the agent of a run is told; finetuned from a model of several tasks, it has the embedding of its own."""
    if spec.offline is not None:
        return multitask_spec([get_task(name) for name in spec.offline.tasks])
    task = get_task(spec.task)
    told = of_task(
        task,
        spec.obs,
        spec.hyperparameters,
        num_envs=spec.num_envs,
        action_repeat=spec.action_repeat,
        budget_env_steps=spec.budget_env_steps,
    )
    if spec.init is None or spec.init.embedding is None:
        return told
    return replace(told, tasks=(TaskSpec(task.name, task.obs_size, told.action_size, told.episode_agent_steps),))


def of_fleet(specs: Sequence[RunSpec]) -> AgentSpec:
    """What the agent of a fleet is told: where its runs differ in size, the largest sizes and those of each.

    Raises:
        UserError: they differ in size, and the agent or what they learn from does not allow that.
    """
    told = [of_run(spec) for spec in specs]
    if len({(one.obs_shape, one.action_size) for one in told}) == 1:
        return told[0]
    first, tasks = specs[0], ", ".join(dict.fromkeys(spec.task for spec in specs))
    problem = None
    if not get_agent(first.agent).pads:
        problem = f"{first.agent} trains runs of equal sizes only"
    elif first.obs != "state" or any(spec.init is not None for spec in specs):
        problem = "only runs from state observations that start from no checkpoint can be padded"
    elif len({one.episode_agent_steps for one in told}) > 1:
        problem = "their episodes are of different lengths"
    if problem is not None:
        raise UserError(f"{tasks} differ in size and cannot be one fleet: {problem}; train them one after the other")
    return replace(
        told[0],
        obs_shape=(max(one.obs_shape[0] for one in told),),
        action_size=max(one.action_size for one in told),
        sizes=tuple(Sizes(one.obs_shape[0], one.action_size) for one in told),
    )
