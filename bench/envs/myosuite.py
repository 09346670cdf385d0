"""MyoSuite: ten tasks of a hand with 39 muscles, each with fixed and with random ("hard") starts and goals."""

from __future__ import annotations

import contextlib
import io
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.envs.base import TaskEnv
from bench.envs.quiet import hushed
from bench.envs.rendering import MujocoCamera
from bench.errors import UserError
from bench.tasks import Task

_CAMERA = "hand_side_inter"


def make(task: Task, obs: str, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None) -> MyoSuite:
    """A MyoSuite environment; see `bench.envs.make`, which has checked that `obs` is supported.

    Raises:
        ImportError: myosuite or one of its packages is missing or broken.
    """
    return MyoSuite(task, seed, action_repeat, render_mode)


class MyoSuite(TaskEnv):
    """One MyoSuite task. `simulation` is MyoSuite's own environment, without gymnasium's wrappers.

    Every episode has the table's length: the simulator's own limits (50 to 200 agent steps) are left out with the
    wrappers, and its `done`, when the hand is far from its goal, is ignored as in the paper. Success is `solved`.
    """

    def __init__(
        self, task: Task, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None = None
    ) -> None:
        super().__init__(task, seed, action_repeat, render_mode)
        import gymnasium

        with hushed():
            import_module("myosuite")  # registers its environments
            if task.simulator_id not in gymnasium.registry:
                raise UserError(f"myosuite has no environment '{task.simulator_id}': see myosuite.myosuite_env_suite")
            made: Any = gymnasium.make(task.simulator_id, seed=seed, disable_env_checker=True)
        self.simulation = made.unwrapped
        self._camera: MujocoCamera | None = None
        if render_mode is not None:
            self._camera = MujocoCamera(self.simulation.sim.model.ptr, self.simulation.sim.data.ptr, _CAMERA)

    def _reset_simulator(self, seed: int) -> NDArray[Any]:
        self.simulation.seed(seed)  # reset(seed=) is ignored
        obs, _ = self.simulation.reset()
        return np.asarray(obs)

    def _step_simulator(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, bool, float]:
        before = self.simulation.sim.data.time
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when a step fails, and starts anew
            obs, reward, _, _, info = self.simulation.step(action)
        if self.simulation.sim.data.time <= before:
            raise self._failure("diverged")
        return obs, float(np.squeeze(reward)), False, float(np.squeeze(info["solved"]))

    def _draw(self, height: int, width: int) -> NDArray[np.uint8]:
        assert self._camera is not None  # the base class has seen to it
        return self._camera.image(height, width)

    def close(self) -> None:
        """Free the rendering context and the simulator's memory."""
        if self._camera is not None:
            self._camera.close()
        self.simulation.close()
