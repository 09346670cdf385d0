"""One agent for several tasks: its specification, and a view of it that plays one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agents.protocol import AgentSpec, TaskSpec
from bench.tasks import Task


def multitask_spec(tasks: Sequence[Task], budget_agent_steps: int = 1) -> AgentSpec:
    """What an agent of these tasks needs to know: the sizes of the largest, from state observations.

    Args:
        tasks: rows of the task table; their order gives them their numbers.
        budget_agent_steps: agent steps of training (an agent that learns offline takes none).
    """
    specs = tuple(TaskSpec(task.name, task.obs_size, task.action_size, task.episode_agent_steps) for task in tasks)
    return AgentSpec(
        obs_shape=(max(task.obs_size for task in specs),),
        obs_kind="state",
        action_size=max(task.action_size for task in specs),
        episode_agent_steps=max(task.episode_agent_steps for task in specs),
        budget_agent_steps=budget_agent_steps,
        tasks=specs,
    )


def pad(obs: Tensor, size: int) -> Tensor:
    """Observations (..., O) with zeros at the end, (..., size)."""
    return torch.nn.functional.pad(obs, (0, size - obs.shape[-1]))


class OneTask:
    """A multi-task agent as an agent of one of its tasks, for whatever calls `act` as the protocol says.

    Args:
        agent: the multi-task agent.
        spec: its specification.
        number: of the task, its place in `spec.tasks`.
    """

    def __init__(self, agent: Any, spec: AgentSpec, number: int) -> None:
        self.agent, self.number = agent, number
        self.obs_size = spec.obs_shape[0]
        self.action_size = spec.tasks[number].action_size

    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """Actions (R, N, A of the task) for its own observations (R, N, O of the task)."""
        task = torch.full(first.shape, self.number, device=first.device)
        action: Tensor = self.agent.act(pad(obs, self.obs_size), first, explore, task)
        return action[..., : self.action_size]


class SomeTasks:
    """A multi-task agent that plays several of its tasks at once, all of one shape, for `bench.evaluation.Evaluator`:
    to it, each run and task is a run of its own.

    Args:
        agent: the multi-task agent, of R runs.
        spec: its specification.
        numbers: of the G tasks, their places in `spec.tasks`.
    """

    def __init__(self, agent: Any, spec: AgentSpec, numbers: Sequence[int]) -> None:
        self.agent, self.numbers = agent, list(numbers)
        self.obs_size = spec.obs_shape[0]
        self.action_size = spec.tasks[self.numbers[0]].action_size

    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """Actions (R * G, N, A of the tasks) for their own observations (R * G, N, O of the tasks), run by run."""
        groups, envs = len(self.numbers), first.shape[1]
        task = torch.tensor(self.numbers, device=first.device).repeat_interleave(envs)  # (G * N,)
        padded = pad(obs, self.obs_size).reshape(-1, groups * envs, self.obs_size)
        runs = len(padded)
        flat = first.reshape(runs, groups * envs)
        action: Tensor = self.agent.act(padded, flat, explore, task.expand(runs, -1))
        return action.reshape(runs * groups, envs, -1)[..., : self.action_size]
