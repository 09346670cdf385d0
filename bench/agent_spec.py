"""What an agent is told of its environments: its `AgentSpec`, from a row of the task table and its hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agents.multitask import multitask_spec
from agents.protocol import AgentSpec, TaskSpec
from bench.envs import ObsKind, agents_pixels, obs_spec
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
