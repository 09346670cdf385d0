"""Batches of slices from a converted data set.

The numbers stay on the disk, mapped; as far as memory goes the system's page cache keeps what was read. Slices of all
tasks are gathered at once, by the places of their numbers. The next batch is drawn in a thread while the learner works
on the last one.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.protocol import Batch
from bench.datasets.layout import FLOAT_BYTES, Part
from bench.seeding import derive_seed

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

RESIDENT_BYTES = 8 << 30
"""Mapped pages that a process may have resident before they are given back; the page cache keeps them beyond that.
Mapping a page again costs several times what a slice costs otherwise, so a set that fits is drawn from fastest."""
CHECKED_SLICES = 4096
"""Slices drawn until that is looked at."""
WAITING_S = 1e-5
"""A slice that takes longer was not in the page cache (a cached one takes 1e-6, one from a fast disk 1e-4)."""


class Gather:
    """Slices of length L as (L, B, O + A + 1) arrays, padded with zeros.

    Args:
        numbers: `entries.f32`, float32.
        mapped: the map that they are read through; None where they are in memory.
        parts: of the tasks.
        starts: where each begins in `numbers`.
        row_entries: T + 1.
        length: L, entries in a slice.
        sizes: O and A, those of the largest task.
    """

    def __init__(
        self,
        numbers: Floats,
        mapped: mmap.mmap | None,
        parts: Sequence[Part],
        starts: Sequence[int],
        row_entries: int,
        length: int,
        sizes: tuple[int, int],
    ) -> None:
        self.numbers, self.mapped = numbers, mapped
        self.waits = False  # whether the last slices had to be waited for
        self.row_entries, self.length = row_entries, length
        self.rows_before = np.concatenate([[0], np.cumsum([part.rows for part in parts])])
        self.part_starts = np.array(starts, np.int64)
        self.entry_sizes = np.array([part.entry_size for part in parts], np.int64)
        obs_size, action_size = sizes
        # (L, tasks, O + A + 1): where the numbers of a slice lie from its beginning, and which of them there are.
        self.places = np.zeros((length, len(parts), obs_size + action_size + 1), np.int64)
        self.exists = np.zeros((len(parts), obs_size + action_size + 1), bool)
        for task, part in enumerate(parts):
            own = [*range(part.obs_size), *range(obs_size, obs_size + part.action_size), obs_size + action_size]
            self.exists[task, own] = True
            self.places[:, task, own] = np.arange(length * part.entry_size).reshape(length, part.entry_size)

    def slices(self, rows: Ints, first: Ints) -> tuple[Floats, Ints]:
        """The slices that begin at entry `first` of `rows`, each (R, B), counted over all tasks.

        Returns:
            (R, L, B, O + A + 1) numbers, and (R, B) the tasks.
        """
        task = np.searchsorted(self.rows_before, rows, side="right") - 1
        entry = (rows - self.rows_before[task]) * self.row_entries + first
        begin = self.part_starts[task] + entry * self.entry_sizes[task]
        clock = time.perf_counter()
        if self.waits and self.mapped is not None:
            self._announce(self.mapped, begin, task)
        steps = np.arange(self.length)[:, None]
        places = self.places[steps, task[:, None]]
        places += begin[:, None, :, None]
        found = self.numbers.take(places)
        self.waits = time.perf_counter() - clock > WAITING_S * task.size
        # What a task lacks is read from the slice's first number, which is finite.
        found *= self.exists[task][:, None]
        return found, task

    def _announce(self, mapped: mmap.mmap, begin: Ints, task: Ints) -> None:
        """Have the system read the slices all at once; reading the numbers alone would wait for one after the other."""
        first = begin.ravel() * FLOAT_BYTES
        last = first + self.entry_sizes[task].ravel() * (self.length * FLOAT_BYTES)
        pages = first // mmap.PAGESIZE * mmap.PAGESIZE
        for page, end in zip(pages.tolist(), last.tolist(), strict=True):
            mapped.madvise(mmap.MADV_WILLNEED, page, end - page)


class Sampler:
    """Batches for R runs: a row uniformly among those of all tasks, then a start uniformly within it.

    A run draws the same alone and in any fleet. Get one from `Dataset.sampler`.

    Args:
        gather: what reads the slices.
        batch_size: B, slices for each run.
        seeds: the seed of each of the R runs.
        obs_size: O.
        device: where batches appear.
        resident_bytes: mapped pages that may stay resident.
    """

    def __init__(
        self,
        gather: Gather,
        batch_size: int,
        seeds: Sequence[int],
        obs_size: int,
        device: torch.device,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        self.gather, self.resident_bytes = gather, resident_bytes
        self.batch_size, self.obs_size, self.device = batch_size, obs_size, device
        self._generators = [np.random.default_rng(derive_seed(seed, "dataset")) for seed in seeds]
        self._states = self._generator_states()
        self._since_check, self._resident_before = 0, _resident_file_bytes()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dataset")
        self._next: Future[tuple[Floats, Ints, list[dict[str, Any]]]] | None = None

    def sample(self) -> Batch:
        """The next batch: observations (R, L, B, O), actions (R, L - 1, B, A), rewards and zero terminations
        (R, L - 1, B), tasks (R, B) by their place in the order that was asked for."""
        drawn = self._next or self._thread.submit(self._draw)
        slices, task, self._states = drawn.result()
        self._next = self._thread.submit(self._draw)
        found = self._to_device(slices)
        reward = found[:, 1:, :, -1]
        return Batch(
            obs=found[..., : self.obs_size],
            action=found[:, 1:, :, self.obs_size : -1],
            reward=reward,
            terminated=torch.zeros_like(reward),
            task=self._to_device(task),
        )

    def state_dict(self, run: int) -> dict[str, Any]:
        """What a run needs to draw on from the last batch that was handed out."""
        return {"generator": self._states[run]}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order."""
        if self._next is not None:
            self._next.result()  # drawn ahead, and not wanted
            self._next = None
        for generator, state in zip(self._generators, states, strict=True):
            generator.bit_generator.state = state["generator"]
        self._states = self._generator_states()

    def close(self) -> None:
        """End the thread. What was not handed out is dropped."""
        self._thread.shutdown()

    def _generator_states(self) -> list[dict[str, Any]]:
        return [dict(generator.bit_generator.state) for generator in self._generators]

    def _draw(self) -> tuple[Floats, Ints, list[dict[str, Any]]]:
        """One batch and the generators' states after it, in the thread."""
        rows, starts = int(self.gather.rows_before[-1]), self.gather.row_entries + 1 - self.gather.length
        picks = [
            (generator.integers(rows, size=self.batch_size), generator.integers(starts, size=self.batch_size))
            for generator in self._generators
        ]
        slices, task = self.gather.slices(np.stack([row for row, _ in picks]), np.stack([first for _, first in picks]))
        self._since_check += task.size
        if self.gather.mapped is not None and self._since_check >= CHECKED_SLICES:
            self._since_check = 0
            if _resident_file_bytes() > self._resident_before + self.resident_bytes:
                self.gather.mapped.madvise(mmap.MADV_DONTNEED)
        return slices, task, self._generator_states()

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        """To the device without waiting for it: from pinned memory."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


def _resident_file_bytes() -> int:
    """Of this process, pages of mapped files and of shared memory."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE
