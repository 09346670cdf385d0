"""DMControl: the 28 standard tasks of dm_control's suite and the 11 that the TD-MPC2 paper adds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.envs.base import TaskEnv
from bench.errors import UserError
from bench.tasks import Task

_QUADRUPED_CAMERA = 2
"""Follows the body; its camera 0 looks from afar. Every other body is seen well by camera 0."""
_NO_SHADOWS = {"shadow": False, "reflection": False}
"""MuJoCo's rendering flags, by dm_control's names."""


def make(task: Task, obs: str, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None) -> DMControl:
    """A DMControl environment; see `bench.envs.make`, which has checked that `obs` is supported.

    Raises:
        ImportError: dm_control or MuJoCo is missing or broken.
    """
    return DMControl(task, seed, action_repeat, render_mode)


def load(simulator_id: str, random: np.random.RandomState) -> Any:
    """The `dm_control.rl.control.Environment` of `domain/task`, without a time limit of its own.

    Args:
        simulator_id: as in the task table; the paper's own tasks come before the suite's.
        random: the only source of randomness of its episodes.

    Raises:
        UserError: no such task.
    """
    with warnings.catch_warnings():  # GLFW warns where there is no display, which rendering does not need
        warnings.simplefilter("ignore")
        from dm_control import suite

    from bench.envs import dmcontrol_tasks

    if simulator_id in dmcontrol_tasks.BUILDERS:
        return dmcontrol_tasks.BUILDERS[simulator_id](random)
    domain, _, name = simulator_id.partition("/")
    if (domain, name) not in suite.ALL_TASKS:
        raise UserError(f"dm_control has no task '{simulator_id}': simulator_id must be '<domain>/<task>' of its suite")
    return suite.load(domain, name, task_kwargs={"random": random, "time_limit": float("inf")})


def flatten(observation: Mapping[str, Any]) -> NDArray[Any]:
    """The entries of a suite observation in their own order, as one vector (O,)."""
    return np.concatenate([np.ravel(value) for value in observation.values()])


class DMControl(TaskEnv):
    """One DMControl task from state observations. `simulation` is dm_control's own environment."""

    def __init__(
        self, task: Task, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None = None
    ) -> None:
        super().__init__(task, seed, action_repeat, render_mode)
        from dm_control.rl.control import PhysicsError

        self._physics_error = PhysicsError
        self._random = np.random.RandomState(seed)
        self.simulation = load(task.simulator_id, self._random)
        spec = self.simulation.action_spec()
        if spec.shape != (task.action_size,):
            raise self._failure(f"takes actions of shape {spec.shape}, the task table says {task.action_size}")
        self._low = np.asarray(spec.minimum, dtype=np.float64)
        self._scale = (np.asarray(spec.maximum, dtype=np.float64) - self._low) / 2
        self._camera = _QUADRUPED_CAMERA if task.simulator_id.startswith("quadruped/") else 0

    def _reset_simulator(self, seed: int) -> NDArray[Any]:
        self._random.seed(seed)
        try:
            return flatten(self.simulation.reset().observation)
        except self._physics_error as error:
            raise self._failure(f"diverged at reset: {error}") from error

    def _step_simulator(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, bool, float]:
        try:
            step = self.simulation.step(self._low + self._scale * (action.astype(np.float64) + 1))
        except self._physics_error as error:
            raise self._failure(f"diverged: {error}") from error
        return flatten(step.observation), float(step.reward), bool(step.last()), 0.0

    def _draw(self, height: int, width: int) -> NDArray[np.uint8]:
        flags = {} if self.shadows else _NO_SHADOWS
        image: NDArray[np.uint8] = self.simulation.physics.render(
            height, width, camera_id=self._camera, render_flag_overrides=flags
        )
        return image

    def close(self) -> None:
        """Free the simulator's memory and its rendering context."""
        self.simulation.close()
