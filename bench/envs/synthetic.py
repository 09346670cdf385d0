"""Made-up environments, to run and measure the training loop where no simulator is. Loads none, nor gymnasium."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.envs.stepping import StepResult

PICTURE_CHANNELS = 3


class SyntheticPool:
    """M environments whose observations swing, pushed by the actions; an episode is decided by its seed and actions.

    Args:
        num_envs: M.
        obs_shape: (O,) for float32 vectors; (3 x frame_stack, height, width) for stacked uint8 pictures.
        action_size: A.
        episode_agent_steps: the time limit.
        frame_stack: pictures in one observation; 0 for vectors.
        step_ms: an agent step takes at least so long from `step_send` on, as if a simulator stepped in other processes.
    """

    def __init__(
        self,
        num_envs: int,
        obs_shape: tuple[int, ...],
        action_size: int,
        episode_agent_steps: int,
        frame_stack: int = 0,
        step_ms: float = 0.0,
    ) -> None:
        self.num_envs, self.obs_shape, self.action_size = num_envs, obs_shape, action_size
        self.episode_agent_steps, self.frame_stack, self.step_ms = episode_agent_steps, frame_stack, step_ms
        self._width = int(np.prod(obs_shape)) if frame_stack == 0 else 64
        self._phase = np.zeros((num_envs, self._width), np.float32)
        self._pictures = np.zeros((num_envs, *obs_shape), np.uint8) if frame_stack else None
        self._age = np.zeros(num_envs, np.int64)
        self._sent: tuple[NDArray[np.int64], NDArray[np.float32], float] | None = None

    def reset(self, indices: Sequence[int] | NDArray[np.integer[Any]], seeds: Sequence[int]) -> NDArray[Any]:
        """Start an episode in each of `indices`, which its seed decides. Returns observations (n, *obs_shape)."""
        chosen = np.asarray(indices, np.int64)
        for index, seed in zip(chosen, seeds, strict=True):
            self._phase[index] = np.random.default_rng(seed).uniform(-3, 3, self._width)
        self._age[chosen] = 0
        if self._pictures is not None:
            self._pictures[chosen] = np.tile(self._picture(chosen), (1, self.frame_stack, 1, 1))
        return self._obs(chosen)

    def step_send(self, actions: Any, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None) -> None:
        """Begin an agent step with actions (n, A)."""
        chosen = np.arange(self.num_envs) if indices is None else np.asarray(indices, np.int64)
        taken = np.array(actions, np.float32).reshape(len(chosen), self.action_size)
        self._sent = (chosen, taken, time.perf_counter() + self.step_ms / 1000)

    def step_recv(self) -> StepResult:
        """Finish the agent step that `step_send` began, not before its time."""
        if self._sent is None:
            raise RuntimeError("step_recv without step_send")
        (chosen, action, ready), self._sent = self._sent, None
        time.sleep(max(0.0, ready - time.perf_counter()))
        push = action.mean(1)
        self._phase[chosen] += 0.1 + 0.1 * push[:, None]
        self._age[chosen] += 1
        if self._pictures is not None:
            newest = self._picture(chosen)
            self._pictures[chosen] = np.concatenate([self._pictures[chosen, PICTURE_CHANNELS:], newest], axis=1)
        never = np.zeros(len(chosen), bool)
        success = (push > 0).astype(np.float32)
        return StepResult(self._obs(chosen), 1 - push**2, never, self._age[chosen] >= self.episode_agent_steps, success)

    def _obs(self, chosen: NDArray[np.int64]) -> NDArray[Any]:
        if self._pictures is not None:
            return self._pictures[chosen]
        swing: NDArray[np.float32] = np.sin(self._phase[chosen])
        return swing.reshape(-1, *self.obs_shape)

    def _picture(self, chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, 3, height, width): stripes that move."""
        stripes = (128 + 127 * np.sin(self._phase[chosen])).astype(np.uint8)  # (n, width)
        flat = np.resize(np.arange(self._width), PICTURE_CHANNELS * self.obs_shape[1] * self.obs_shape[2])
        return stripes[:, flat].reshape(-1, PICTURE_CHANNELS, *self.obs_shape[1:])

    def close(self) -> None:
        """There is nothing to end."""
