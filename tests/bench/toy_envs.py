"""Environments that misbehave, built in the workers by this module's functions: in it, a worker loads no pytest."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.envs.base import TaskEnv
from bench.errors import UserError
from bench.tasks import Task


class Toy(TaskEnv):
    """Observation: (seed, env steps, last action, process id); reward: the action. `trouble` comes at the 2nd step."""

    def __init__(self, task: Task, trouble: Callable[[], None] | None = None, **options: Any) -> None:
        options.pop("obs")
        super().__init__(task, **options)
        self.trouble = trouble

    def _reset_simulator(self, seed: int) -> np.ndarray:
        self.env_steps = 0
        return np.array([seed, 0, 0, os.getpid()])

    def _step_simulator(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, float]:
        self.env_steps += 1
        if self.env_steps == 2 and self.trouble is not None:
            self.trouble()
        obs = np.array([self.episode_seed, self.env_steps, action[0], os.getpid()])
        return obs, float(action[0]), False, float(action[0] > 0.5)

    def _draw(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.uint8)


def toy(task: Task, **options: Any) -> Toy:
    return Toy(task, **options)


def raising(task: Task, **options: Any) -> Toy:
    return Toy(task, trouble=lambda: {}["no such key"], **options)


def dying(task: Task, **options: Any) -> Toy:
    return Toy(task, trouble=lambda: os.kill(os.getpid(), signal.SIGKILL), **options)


def hanging(task: Task, **options: Any) -> Toy:
    return Toy(task, trouble=lambda: time.sleep(600), **options)


def unbuildable(task: Task, **options: Any) -> Toy:
    raise UserError("this simulator wants a licence")


def row(function: str, episode_agent_steps: int = 5) -> Task:
    return Task(function, "mine", f"{__name__}:{function}", 4, 1, 1, episode_agent_steps, 100, "return")
