"""What speed is measured on: a task with its simulator, or made-up environments of given sizes without any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agents.protocol import AgentSpec
from bench import agent_spec
from bench.envs import ObsKind, agents_pixels
from bench.envs.stepping import Pool
from bench.envs.synthetic import SyntheticPool
from bench.tasks import Task

SYNTHETIC_EPISODE_AGENT_STEPS = 500
SYNTHETIC_BUDGET_AGENT_STEPS = 1_000_000
"""A replay of the paper's size is full by then: memory is stated for it."""


@dataclass(frozen=True)
class World:
    """Environments of one kind."""

    task: Task | None
    """None: made up, of the two sizes below."""
    obs_size: int = 0
    action_size: int = 0
    env_ms: float = 0.0
    """An agent step of made-up environments takes at least so long, while the learner may compute."""
    env_workers: int = 0
    """Processes that step a task's environments; 0 steps them in this one."""

    def spec(self, obs: ObsKind, hyperparameters: Mapping[str, Any], num_envs: int) -> AgentSpec:
        """What an agent is told of it."""
        if self.task is not None:
            return agent_spec.of_task(self.task, obs, hyperparameters, num_envs)
        pixels = agents_pixels(hyperparameters)
        return AgentSpec(
            obs_shape=pixels.obs_shape if obs == "rgb" else (self.obs_size,),
            obs_kind=obs,
            action_size=self.action_size,
            episode_agent_steps=SYNTHETIC_EPISODE_AGENT_STEPS,
            budget_agent_steps=SYNTHETIC_BUDGET_AGENT_STEPS,
            num_envs=num_envs,
            frame_stack=pixels.stack if obs == "rgb" else 1,
        )

    def pool(self, spec: AgentSpec, hyperparameters: Mapping[str, Any], runs: int) -> Pool:
        """The environments of so many runs."""
        count = runs * spec.num_envs
        if self.task is None:
            stack = spec.frame_stack if spec.obs_kind == "rgb" else 0
            length = spec.episode_agent_steps
            return SyntheticPool(count, spec.obs_shape, spec.action_size, length, stack, self.env_ms)
        from bench.envs.pool import EnvPool

        pixels = agents_pixels(hyperparameters)
        return EnvPool([self.task] * count, spec.obs_kind, workers=self.env_workers, pixels=pixels)

    @property
    def facts(self) -> dict[str, Any]:
        """As they stand in the file of measurements."""
        if self.task is not None:
            return {"task": self.task.name, "synthetic": None, "env_workers": self.env_workers}
        made_up = {"obs_size": self.obs_size, "action_size": self.action_size, "env_ms": self.env_ms}
        return {"task": None, "synthetic": made_up, "env_workers": 0}

    def __str__(self) -> str:
        if self.task is not None:
            return self.task.name
        return f"made-up environments ({self.obs_size} + {self.action_size}, {self.env_ms:g} ms)"
