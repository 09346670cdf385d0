"""What the entries of a replay hold, on the learner's device; those of episodes in progress on the host as well.

An entry is a row of two tensors. One has the observation, or of stacked pictures the newest alone, since the others are
those of the entries before it. The other has what led to it: action, reward and terminated, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from agents.protocol import Sizes
from bench.errors import UserError
from bench.replay_queue import Ints, Queue
from bench.replay_segment import Episode
from bench.transfer import to_device

Floats = NDArray[np.float32]


def step_rows(action: NDArray[Any], reward: NDArray[Any], terminated: NDArray[Any]) -> Floats:
    """What led to n entries, from (n, A), (n,) and (n,): (n, A + 2)."""
    return np.concatenate([action, reward[:, None], terminated[:, None]], axis=1, dtype=np.float32)


class Entries:
    """The entries on the device, which grow when the first are needed: a short run never takes the whole capacity.

    Args:
        obs_shape: shape of one observation.
        obs_dtype: float32 or uint8.
        action_size: A.
        frame_stack: pictures in one observation.
        full: entries that the capacity takes with long episodes.
        device: where they live.

    Attributes:
        frame_shape: what an entry keeps of an observation.
        previous: the entry before each in its episode, on the host; entry 0 of an episode is before itself.
        is_reserved: whether each is of a transition that is under way (see `Replay.reserve`), on the host.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        obs_dtype: DTypeLike,
        action_size: int,
        frame_stack: int,
        full: int,
        device: torch.device,
    ) -> None:
        self.obs_shape = obs_shape
        self.obs_dtype = np.dtype(obs_dtype)
        self.action_size = action_size
        self.frame_stack = frame_stack
        self.frame_shape = (obs_shape[0] // frame_stack, *obs_shape[1:]) if frame_stack > 1 else obs_shape
        self.full = full
        self.device = device
        self.previous: Ints = np.empty(0, np.int64)
        self.is_reserved: NDArray[np.bool_] = np.empty(0, bool)
        self._free = Queue()
        dtype = torch.from_numpy(np.empty(0, self.obs_dtype)).dtype
        self._obs = torch.empty(0, *self.frame_shape, dtype=dtype, device=device)
        self._steps = torch.empty(0, action_size + 2, device=device)

    def __len__(self) -> int:
        """Entries that there is memory for now."""
        return len(self.previous)

    @property
    def bytes_each(self) -> int:
        """Device memory that one takes."""
        return self._obs.element_size() * int(np.prod(self.frame_shape)) + 4 * (self.action_size + 2)

    def newest_frames(self, obs: NDArray[Any]) -> NDArray[Any]:
        """What is kept of observations (n, *obs_shape): (n, *frame_shape)."""
        return obs[:, -self.frame_shape[0] :]

    def only_frames(self, obs: NDArray[Any]) -> NDArray[Any]:
        """`newest_frames` of what resets returned.

        Raises:
            ValueError: an observation is no stack of one picture.
        """
        frames = self.newest_frames(obs)
        if self.frame_stack > 1 and not np.array_equal(obs, np.concatenate([frames] * self.frame_stack, axis=1)):
            raise ValueError(f"an episode begins with other than one picture {self.frame_stack} times")
        return frames

    def take(self, count: int) -> Ints:
        """Free entries; more memory where there are too few.

        Raises:
            UserError: the device has no memory left.
        """
        if len(self._free) < count:
            self._grow(count - len(self._free))
        return self._free.pop(count)

    def release(self, slots: Ints) -> None:
        """These entries are free again."""
        self._free.append(slots)

    def write(self, slots: Ints, frames: NDArray[Any], steps: Floats) -> None:
        """Fill entries (n,) with frames (n, *frame_shape) and steps (n, A + 2)."""
        where = to_device(slots, self.device)
        self._obs.index_copy_(0, where, to_device(frames.astype(self.obs_dtype, copy=False), self.device))
        self._steps.index_copy_(0, where, to_device(steps, self.device))

    def write_episode(self, slots: Ints, episode: Episode, own: Sizes) -> None:
        """Fill entries (T + 1,) with a whole episode of a run that has these sizes."""
        frames = np.zeros((len(slots), *self.frame_shape), self.obs_dtype)
        frames[:, : own.obs] = episode.obs
        steps = np.zeros((len(slots), self.action_size + 2), np.float32)
        steps[1:, : own.action], steps[1:, -2], steps[1:, -1] = episode.action, episode.reward, episode.terminated
        self.write(slots, frames, steps)
        self.previous[slots] = np.concatenate([slots[:1], slots[:-1]])

    def obs(self, entries: Ints) -> Tensor:
        """The observations of entries, their stacks put together again: (…) -> (…, *obs_shape)."""
        stack = [entries]
        for _ in range(self.frame_stack - 1):
            stack.append(self.previous[stack[-1]])
        frames = to_device(np.stack(stack[::-1], axis=-1), self.device).flatten()  # the oldest of a stack first
        return self._obs.index_select(0, frames).view(*entries.shape, *self.obs_shape)

    def steps(self, entries: Ints) -> Tensor:
        """What led to entries: (…) -> (…, A + 2)."""
        return self._steps.index_select(0, to_device(entries, self.device).flatten()).view(
            *entries.shape, self.action_size + 2
        )

    def _grow(self, lacking: int) -> None:
        """Double up to what the capacity takes with long episodes; beyond it, a little at a time."""
        before, full = len(self), self.full
        more = min(max(before, 1024), full - before) if before < full else full // 64
        more = max(more, lacking)
        try:
            obs = torch.empty(before + more, *self.frame_shape, dtype=self._obs.dtype, device=self.device)
            steps = torch.empty(before + more, self.action_size + 2, device=self.device)
        except torch.OutOfMemoryError as error:
            gigabytes = full * self.bytes_each / 1e9
            raise UserError(
                f"no memory on {self.device} for the replay ({gigabytes:.1f} GB when full): train fewer runs in a "
                "fleet, or lower the agent's replay capacity"
            ) from error
        obs[:before] = self._obs
        steps[:before] = self._steps
        self._obs, self._steps = obs, steps
        self.previous = np.concatenate([self.previous, np.zeros(more, np.int64)])
        self.is_reserved = np.concatenate([self.is_reserved, np.zeros(more, bool)])
        self._free.append(np.arange(before, before + more))


class OpenEpisodes:
    """The episodes in progress once more on the host, for the log: no copy from the device.

    Args:
        num_envs: N.
        frame_shape: what is kept of an observation.
        obs_dtype: float32 or uint8.
        action_size: A.
        sizes: of each of the R runs.
    """

    def __init__(
        self,
        num_envs: int,
        frame_shape: tuple[int, ...],
        obs_dtype: DTypeLike,
        action_size: int,
        sizes: Sequence[Sizes],
    ) -> None:
        self.sizes = sizes
        self._obs = np.empty((len(sizes), num_envs, 64, *frame_shape), obs_dtype)
        self._steps = np.zeros((len(sizes), num_envs, 64, action_size + 2), np.float32)

    def write(self, runs: Ints, envs: Ints, at: Ints | int, frames: NDArray[Any], steps: Floats) -> None:
        """Entry `at` of the episodes in these environments of these runs, each (n,)."""
        if np.max(at) >= self._steps.shape[2]:
            self._obs = np.concatenate([self._obs, np.empty_like(self._obs)], axis=2)
            self._steps = np.concatenate([self._steps, np.zeros_like(self._steps)], axis=2)
        self._obs[runs, envs, at] = frames
        self._steps[runs, envs, at] = steps

    def episode(self, run: int, env: int, length: int) -> Episode:
        """A copy of the first transitions of the episode in an environment, in the run's own sizes."""
        own = self.sizes[run]
        steps = self._steps[run, env, 1 : length + 1].copy()
        obs = self._obs[run, env, : length + 1, : own.obs].copy()
        return Episode(env, obs, steps[:, : own.action], steps[:, -2], steps[:, -1])
