"""The environments that one process of a pool holds, and the memory through which they speak with it."""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from bench.envs import PAPER_PIXELS, ObsKind, Pixels, make
from bench.errors import UserError
from bench.tasks import Task

CONTEXT = get_context("spawn")
"""Spawned, not forked: a fork would copy torch's threads and CUDA state half-way."""

_ALIGN = 64  # bytes; a cache line, so that two workers never write to the same one in passing between fields


@dataclass(frozen=True)
class Layout:
    """Shapes of the arrays that a pool shares: M environments with equal shapes, or the largest of them."""

    num_envs: int
    obs_shape: tuple[int, ...]
    obs_dtype: str
    action_size: int

    def fields(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array, by name."""
        m = self.num_envs
        return {
            "obs": ((m, *self.obs_shape), self.obs_dtype),
            "action": ((m, self.action_size), "float32"),
            "reward": ((m,), "float32"),
            "terminated": ((m,), "bool"),
            "truncated": ((m,), "bool"),
            "success": ((m,), "float32"),
        }

    def allocate(self) -> Any:
        """Zeroed memory for the arrays that spawned processes share; it has no name, so nothing is left of it."""
        return CONTEXT.RawArray(ctypes.c_byte, sum(self._sizes().values()))

    def arrays(self, memory: Any) -> Arrays:
        """The arrays as views of memory from `allocate`."""
        views, offset, sizes = {}, 0, self._sizes()
        for name, (shape, dtype) in self.fields().items():
            count = int(np.prod(shape))
            views[name] = np.frombuffer(memory, dtype=dtype, count=count, offset=offset).reshape(shape)
            offset += sizes[name]
        return Arrays(**views)

    def _sizes(self) -> dict[str, int]:
        sizes = {n: int(np.prod(shape)) * np.dtype(dtype).itemsize for n, (shape, dtype) in self.fields().items()}
        return {name: -(-size // _ALIGN) * _ALIGN for name, size in sizes.items()}


@dataclass
class Arrays:
    """One row for each environment of the pool."""

    obs: NDArray[Any]  # (M, *obs_shape), 0 beyond what an environment has
    action: NDArray[np.float32]  # (M, A)
    reward: NDArray[np.float32]  # (M,)
    terminated: NDArray[np.bool_]  # (M,)
    truncated: NDArray[np.bool_]  # (M,)
    success: NDArray[np.float32]  # (M,)


@dataclass(frozen=True)
class EnvEntry:
    """One environment of a pool."""

    task: Task
    action_repeat: int | None
    pixels: Pixels = PAPER_PIXELS


class HostError(Exception):
    """An error of one environment; the cause is what it raised."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class EnvHost:
    """Environments by their index in the pool. Actions come and results go through the arrays."""

    def __init__(self, entries: Mapping[int, EnvEntry], obs: ObsKind, render: bool, arrays: Arrays) -> None:
        self.arrays = arrays
        self.envs: dict[int, gymnasium.Env[Any, Any]] = {}
        self._sizes: dict[int, tuple[int | None, int]] = {}  # of a padded observation and of the action
        for index, entry in entries.items():
            try:
                self.envs[index] = make(
                    entry.task,
                    obs,
                    action_repeat=entry.action_repeat,
                    render_mode="rgb_array" if render else None,
                    pixels=entry.pixels,
                )
            except Exception as error:
                raise HostError(index) from error
            self._sizes[index] = (entry.task.obs_size if obs == "state" else None, entry.task.action_size)

    def reset(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Start an episode in each (index, seed)."""
        for index, seed in pairs:
            try:
                obs, _ = self.envs[index].reset(seed=seed)
                self.arrays.obs[index, : self._sizes[index][0]] = obs
            except Exception as error:
                raise HostError(index) from error

    def step(self, indices: Iterable[int] | None) -> None:
        """One agent step in each index; in all where there are none given."""
        arrays = self.arrays
        for index in self.envs if indices is None else indices:
            try:
                obs_size, action_size = self._sizes[index]
                action = arrays.action[index, :action_size]
                obs, reward, terminated, truncated, info = self.envs[index].step(action)
            except Exception as error:
                raise HostError(index) from error
            arrays.obs[index, :obs_size] = obs
            arrays.reward[index] = reward
            arrays.terminated[index] = terminated
            arrays.truncated[index] = truncated
            arrays.success[index] = info["success"]

    def render(self, index: int, height: int, width: int) -> NDArray[np.uint8]:
        """An image (height, width, 3) of one environment."""
        try:
            image: Any = self.envs[index].render(height=height, width=width)  # type: ignore[call-arg]
        except Exception as error:
            raise HostError(index) from error
        return np.asarray(image)

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs.values():
            env.close()


@dataclass(frozen=True)
class Failure:
    """An error on its way from a worker to the pool."""

    index: int
    message: str
    traceback: str
    is_users: bool
    """Whether it is a `UserError`: one line for the user."""

    @classmethod
    def of(cls, error: HostError) -> Failure:
        cause = error.__cause__ or error
        text = "".join(traceback.format_exception(cause))
        users = isinstance(cause, UserError)
        return cls(error.index, str(cause) if users else f"{type(cause).__name__}: {cause}", text, users)
