"""The contract that every domain's environment keeps: action repeat, time limit, seeds, checks of values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from bench.envs.errors import ActionError, SimulatorError
from bench.errors import UserError
from bench.seeding import derive_seed
from bench.tasks import Task

ACTION_TOLERANCE = 1e-4
"""How far beyond [-1, 1] rounding may carry an action before it counts as an error."""


def checked_actions(actions: Any, action_size: int, tasks: Sequence[str]) -> NDArray[np.float32]:
    """Actions as float32 in [-1, 1].

    Args:
        actions: (n, A).
        action_size: A.
        tasks: the task name of each row, for the message.

    Raises:
        ActionError: a wrong shape, NaN, or a value outside [-1, 1] by more than `ACTION_TOLERANCE`.
    """
    actions = np.asarray(actions, dtype=np.float32)
    if actions.shape != (len(tasks), action_size):
        names = ", ".join(dict.fromkeys(tasks))
        raise ActionError(f"actions for {names} have shape {actions.shape}, expected {(len(tasks), action_size)}")
    within = np.abs(actions) <= 1 + ACTION_TOLERANCE  # false for NaN too
    if not within.all():
        row = int(np.argmin(within.all(axis=1)))
        raise ActionError(f"action {actions[row].tolist()} for {tasks[row]} is not within [-1, 1]")
    return actions.clip(-1.0, 1.0)


class TaskEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """An environment of one task. A domain fills in `_reset_simulator`, `_step_simulator` and `_draw`.

    Args:
        task: its row of the table.
        seed: of the first episode, where `reset` is given none.
        action_repeat: env steps in an agent step; divides the episode.
        render_mode: "rgb_array" or None.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium declares it so)
    shadows = True
    """Whether pictures show shadows and reflections. Domains that agents see pictures of can leave them out."""

    def __init__(self, task: Task, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None) -> None:
        self.task = task
        self.action_repeat = action_repeat
        self.episode_agent_steps = task.episode_env_steps // action_repeat
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (task.obs_size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (task.action_size,), np.float32, seed=seed)
        self.episode_seed = seed
        self._base_seed = seed
        self._episodes = 0  # since the base seed was given
        self._agent_steps = self.episode_agent_steps  # as if over: an episode starts with reset

    @abstractmethod
    def _reset_simulator(self, seed: int) -> NDArray[Any]:
        """Start an episode that the seed decides completely; returns the observation (O,)."""

    @abstractmethod
    def _step_simulator(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, bool, float]:
        """One env step with an action in [-1, 1]: observation (O,), reward, terminated, success (0.0 or 1.0)."""

    @abstractmethod
    def _draw(self, height: int, width: int) -> NDArray[np.uint8]:
        """An image (height, width, 3) of the present state."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; see `bench.envs.make` for what the seed means. There are no options."""
        if seed is not None:
            self._base_seed, self._episodes = seed, 0
        first = self._episodes == 0
        self.episode_seed = self._base_seed if first else derive_seed("reset", self._base_seed, self._episodes) % 2**31
        self._episodes += 1
        self._agent_steps = 0
        return self._checked(self._reset_simulator(self.episode_seed), 0.0), {"success": 0.0}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One agent step: the action repeated, rewards summed, success as at the last env step.

        Raises:
            ActionError: an action that is no action.
            SimulatorError: the simulator diverged, or ended an episode that its task says it never ends.
            RuntimeError: the episode is over, or none was started.
        """
        if self._agent_steps >= self.episode_agent_steps:
            raise RuntimeError(f"{self.task.name}: no episode is running; call reset first")
        action = checked_actions(np.asarray(action)[None], self.task.action_size, [self.task.name])[0]
        total = 0.0
        for _ in range(self.action_repeat):
            obs, reward, terminated, success = self._step_simulator(action)
            total += reward
            if terminated:
                break
        if terminated and not self.task.terminates:
            raise self._failure("ended an episode before its time limit, which its row of the task table rules out")
        self._agent_steps += 1
        truncated = self._agent_steps >= self.episode_agent_steps
        if terminated:
            self._agent_steps = self.episode_agent_steps
        return self._checked(obs, total), total, terminated, truncated and not terminated, {"success": success}

    def render(self, height: int = 240, width: int = 320) -> NDArray[np.uint8]:  # type: ignore[override]
        """An image (height, width, 3) uint8 of the present state.

        Raises:
            UserError: the environment was made without render_mode="rgb_array".
        """
        if self.render_mode != "rgb_array":
            raise UserError(f'{self.task.name} was made without rendering: make it with render_mode="rgb_array"')
        return self._draw(height, width)

    def _checked(self, obs: NDArray[Any], reward: float) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            vector = np.asarray(obs, dtype=np.float32)
        if vector.shape != (self.task.obs_size,):
            raise self._failure(
                f"gave an observation of shape {vector.shape}, the task table says {self.task.obs_size}"
            )
        if not np.isfinite(vector).all():
            place = int(np.argmin(np.isfinite(vector)))
            value = np.asarray(obs).ravel()[place]
            raise self._failure(f"gave an observation that is not finite in float32 (number {place}: {value:g})")
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.float32(reward))
        if not finite:
            raise self._failure(f"gave the reward {reward:g}, which is not finite in float32")
        return vector

    def _failure(self, what: str) -> SimulatorError:
        return SimulatorError(
            f"the simulator of {self.task.name} {what} "
            f"(episode seed {self.episode_seed}, agent step {self._agent_steps})"
        )
