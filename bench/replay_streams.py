"""Draws that cross episodes: the entries of each environment in the order of time, one episode after the other."""

from __future__ import annotations

import numpy as np

from bench.replay_queue import Ints, Queue


class Streams:
    """The streams of one run's environments: the entries of their finished episodes, and of those in progress behind.

    Args:
        num_envs: N.
        length: L, entries in a slice.
    """

    def __init__(self, num_envs: int, length: int) -> None:
        self._length = length
        self._finished = [Queue() for _ in range(num_envs)]

    def append(self, env: int, slots: Ints) -> None:
        """An episode that ended in `env` and lies in these entries."""
        self._finished[env].append(slots)

    def drop(self, env: int, entries: int) -> None:
        """Take away the oldest entries of a stream."""
        self._finished[env].pop(entries)

    def starts(self, open_entries: Ints) -> Ints:
        """Slices in each stream (N,), where `open_entries` (N,) of it belong to the episode in progress."""
        finished = np.array([len(queue) for queue in self._finished])
        starts: Ints = (finished + open_entries + 1 - self._length).clip(min=0)
        return starts

    def draw(self, generator: np.random.Generator, count: int, open_entries: Ints, open_slots: Ints) -> Ints:
        """Entries of `count` slices, (L, count), every start of every stream equally likely.

        Args:
            generator: of the run.
            count: slices.
            open_entries: (N,) as in `starts`.
            open_slots: (N, at least the largest of `open_entries`) where the episodes in progress lie.
        """
        starts = self.starts(open_entries)
        before = np.cumsum(starts) - starts
        pick = generator.integers(int(starts.sum()), size=count)
        env = np.searchsorted(before, pick, side="right") - 1
        position = pick - before[env] + np.arange(self._length)[:, None]
        slots = np.empty(position.shape, np.int64)
        for drawn in np.unique(env):
            finished, at = self._finished[drawn].live, position[:, env == drawn]
            is_open = at >= len(finished)
            found = np.empty(at.shape, np.int64)
            found[~is_open] = finished[at[~is_open]]
            found[is_open] = open_slots[drawn, at[is_open] - len(finished)]
            slots[:, env == drawn] = found
        return slots
