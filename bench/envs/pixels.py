"""Observations from a camera: the last few pictures of a task, stacked."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from bench.envs import Pixels
from bench.envs.base import TaskEnv


class PixelEnv(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """A task seen by its camera: (3 x stack, size, size) uint8, channels first, the oldest picture first.

    One picture is taken after each agent step, and at reset, where it fills the whole stack. Seeds, actions, rewards
    and errors are those of the task from state.

    Args:
        env: the task from state, made with render_mode="rgb_array". Its camera is used.
        pixels: size and number of the pictures.
    """

    metadata = TaskEnv.metadata

    def __init__(self, env: TaskEnv, pixels: Pixels) -> None:
        self.env = env
        env.shadows = pixels.shadows
        self.pixels = pixels
        self.render_mode = env.render_mode
        self.observation_space = spaces.Box(0, 255, pixels.obs_shape, np.uint8)
        self.action_space = env.action_space
        self._frames: deque[NDArray[np.uint8]] = deque(maxlen=pixels.stack)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; as that of the task from state."""
        _, info = self.env.reset(seed=seed, options=options)
        self._frames.extend([self._frame()] * self.pixels.stack)
        return np.concatenate(self._frames), info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """One agent step; as that of the task from state, with its errors."""
        _, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(self._frame())
        return np.concatenate(self._frames), reward, terminated, truncated, info

    def _frame(self) -> NDArray[np.uint8]:
        image = self.env.render(height=self.pixels.size, width=self.pixels.size)
        return np.moveaxis(image, 2, 0)

    def render(self, height: int = 240, width: int = 320) -> NDArray[np.uint8]:  # type: ignore[override]
        """An image (height, width, 3) uint8 of the present state, besides those that are observed."""
        return self.env.render(height=height, width=width)

    def close(self) -> None:
        """Close the task's environment."""
        self.env.close()
