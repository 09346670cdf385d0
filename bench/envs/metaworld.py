"""Meta-World: the 50 tasks of the paper on version 3's simulation, with the reward of version 2."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.envs.base import TaskEnv
from bench.envs.rendering import MujocoCamera
from bench.errors import UserError
from bench.tasks import Task

_CAMERA = "corner2"
_CAMERA_POSITION = (0.75, 0.075, 0.7)
"""Metres; nearer than the model's own place, where the gripper is a few pixels wide."""


def make(task: Task, obs: str, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None) -> MetaWorld:
    """A Meta-World environment; see `bench.envs.make`, which has checked that `obs` is supported.

    Raises:
        ImportError: metaworld or one of its packages is missing or broken.
    """
    return MetaWorld(task, seed, action_repeat, render_mode)


class MetaWorld(TaskEnv):
    """One Meta-World task; objects and goal are drawn at every reset. `simulation` is metaworld's own environment.

    Success is the simulator's flag at the last env step of an agent step, and ends nothing. As in the paper's code,
    an episode starts with one zero action, of which the agent sees only what was before it.
    """

    def __init__(
        self, task: Task, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None = None
    ) -> None:
        super().__init__(task, seed, action_repeat, render_mode)
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as environments

        build: Any = environments.get(task.simulator_id)
        if build is None:
            raise UserError(
                f"metaworld has no environment '{task.simulator_id}': simulator_id must be '<task>-v3-goal-observable'"
            )
        self.simulation = build(seed=seed)
        # The constructor draws one goal and freezes it; reset(seed=) is ignored. Unfrozen, each reset draws anew, from
        # the generator that `seed` sets rather than numpy's global one.
        self.simulation._freeze_rand_vec = False
        self.simulation.seeded_rand_vec = True
        self._camera: MujocoCamera | None = None
        if render_mode is not None:
            self._camera = MujocoCamera(self.simulation.model, self.simulation.data, _CAMERA)
            self.simulation.model.cam_pos[self._camera.id] = _CAMERA_POSITION

    def _reset_simulator(self, seed: int) -> NDArray[Any]:
        self.simulation.seed(seed)
        obs, _ = self.simulation.reset()
        self.simulation.step(np.zeros(self.task.action_size, np.float32))
        return np.asarray(obs)

    def _step_simulator(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, bool, float]:
        before = self.simulation.data.time
        obs, reward, terminated, _, info = self.simulation.step(action)
        if self.simulation.data.time <= before:  # MuJoCo starts anew by itself when accelerations explode
            raise self._failure("diverged")
        return obs, float(reward), bool(terminated), float(info["success"])

    def _draw(self, height: int, width: int) -> NDArray[np.uint8]:
        assert self._camera is not None  # the base class has seen to it
        return self._camera.image(height, width)[::-1, ::-1].copy()  # version 3's camera hangs upside down

    def close(self) -> None:
        """Free the rendering context and the simulator's memory."""
        if self._camera is not None:
            self._camera.close()
        self.simulation.close()
