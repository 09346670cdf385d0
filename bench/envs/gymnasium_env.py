"""Tasks of the user's own: any Gymnasium environment with vector observations and continuous actions."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from bench.envs.base import TaskEnv
from bench.errors import UserError
from bench.tasks import Task

PREFIX = "gymnasium:"
"""A row whose simulator_id is this and an environment id of Gymnasium's registry is made by `make` here."""


def make(task: Task, obs: str, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None) -> GymnasiumEnv:
    """The environment of `gymnasium:Pendulum-v1`, or of `gymnasium:my_package:MyTask-v0`, which loads `my_package`.

    The time limit of the registry is left out; the row's holds.

    Raises:
        UserError: no such id, a package that it needs is missing, or what `GymnasiumEnv` raises.
    """
    name = task.simulator_id.removeprefix(PREFIX)
    try:
        env = gymnasium.make(name, render_mode=render_mode, max_episode_steps=-1, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(f"task '{task.name}': gymnasium.make('{name}') failed ({error})") from error
    return GymnasiumEnv(task, obs, seed, action_repeat, render_mode, env=env)


class GymnasiumEnv(TaskEnv):
    """A Gymnasium environment as a task. Dictionaries and tuples of observations are flattened into one vector, and
    actions in [-1, 1] are spread over the bounds of its action space.

    Success is `info["success"]`, else `info["is_success"]`, else 0. `terminated` ends an episode where the row says
    `terminates=True`; elsewhere it is an error, so that no end is taken for a time limit by mistake.

    A factory of a user's own may return one:

        def make(task, obs, seed, action_repeat, render_mode):
            return GymnasiumEnv(task, obs, seed, action_repeat, render_mode, env=MyEnv(render_mode=render_mode))

    Args:
        env: must take its whole randomness from `reset(seed=)`, as Gymnasium asks of every environment.

    Raises:
        UserError: the row of the task does not fit the environment, or it has no environment for images.
    """

    def __init__(
        self,
        task: Task,
        obs: str,
        seed: int,
        action_repeat: int,
        render_mode: Literal["rgb_array"] | None = None,
        *,
        env: gymnasium.Env[Any, Any],
    ) -> None:
        super().__init__(task, seed, action_repeat, render_mode)
        if obs != "state":
            raise UserError(f"obs={obs} is not to be had for {task.name}: Gymnasium environments give state")
        self.simulation = env
        box = env.action_space
        if not isinstance(box, spaces.Box) or not box.is_bounded():
            raise UserError(f"task '{task.name}': actions must be a bounded Box of numbers, its environment has {box}")
        sizes = {"obs_size": _flat_size(task, env.observation_space), "action_size": int(np.prod(box.shape))}
        for field, size in sizes.items():
            if getattr(task, field) != size:
                raise UserError(
                    f"task '{task.name}': its row says {field} = {getattr(task, field)}, its environment has {size}: "
                    "mend the row"
                )
        self._shape = box.shape
        self._low = box.low.astype(np.float64).ravel()
        self._scale = (box.high.astype(np.float64).ravel() - self._low) / 2
        self._action_dtype = box.dtype

    def _reset_simulator(self, seed: int) -> NDArray[Any]:
        obs, _ = self.simulation.reset(seed=seed)
        return self._flat(obs)

    def _step_simulator(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, bool, float]:
        whole = self._low + self._scale * (action.astype(np.float64) + 1)
        obs, reward, terminated, truncated, info = self.simulation.step(
            whole.reshape(self._shape).astype(self._action_dtype)
        )
        if truncated and not terminated:
            raise self._failure("has a time limit of its own that is shorter than its row's")
        success = info.get("success", info.get("is_success", 0.0))
        return self._flat(obs), float(reward), bool(terminated), float(success)

    def _flat(self, obs: Any) -> NDArray[Any]:
        return np.asarray(spaces.flatten(self.simulation.observation_space, obs))

    def _draw(self, height: int, width: int) -> NDArray[np.uint8]:
        from PIL import Image

        image = Image.fromarray(np.asarray(self.simulation.render(), dtype=np.uint8))  # of a size of its own
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    def close(self) -> None:
        """Close the Gymnasium environment."""
        self.simulation.close()


def _flat_size(task: Task, space: spaces.Space[Any]) -> int:
    try:
        return spaces.flatdim(space)
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"task '{task.name}': observations {space} cannot be made one vector") from error
