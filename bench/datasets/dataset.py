"""A converted data set, or some of its tasks, opened for training."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.datasets.layout import ENTRIES, Layout, Part
from bench.datasets.sampler import RESIDENT_BYTES, Gather, Sampler
from bench.errors import UserError
from bench.tasks import Task, expand
from bench.tasks import get as get_task


class Dataset:
    """The rows of some tasks, in the order asked for.

        dataset = Dataset.open(Path("results/data/mt30"), ["walker-walk", "cup-catch"])
        sampler = dataset.sampler(batch_size=256, length=4, seeds=[1, 2], device=torch.device("cpu"))
        batch = sampler.sample()

    Attributes:
        path: its folder.
        tasks: those asked for; their places are the numbers in `Batch.task`.
        row_entries: T + 1, entries in a row.
        fingerprint: of the data and of which tasks in which order.
    """

    def __init__(self, path: Path, layout: Layout, tasks: Sequence[Task]) -> None:
        self.path, self.layout, self.tasks = path, layout, tuple(tasks)
        self.row_entries = layout.row_entries
        places = {part.task: place for place, part in enumerate(layout.parts)}
        self._parts = [layout.parts[places[task.name]] for task in tasks]
        self._starts = [layout.starts[places[task.name]] for task in tasks]
        order = ",".join(task.name for task in tasks)
        self.fingerprint = hashlib.sha256(f"{layout.fingerprint}/{order}".encode()).hexdigest()
        with (path / ENTRIES).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)  # rows are read in no order: reading ahead would be in vain
        self._numbers: NDArray[np.float32] = np.frombuffer(self._map, "<f4")

    @classmethod
    def open(cls, path: Path, tasks: Sequence[str] | None = None) -> Dataset:
        """Open a folder that `bench data convert` made.

        Args:
            tasks: names and sets; None: every task that it has rows of, in the order of its ids.

        Raises:
            UserError: no data set there, it is not whole, lacks a task, or was made with other sizes of a task.
        """
        layout = Layout.read(path)
        held = [part.task for part in layout.parts if part.rows]
        chosen = [get_task(name) for name in held] if tasks is None else expand(tasks)
        lacking = [task.name for task in chosen if task.name not in held]
        if lacking or not chosen:
            raise UserError(f"{path} has no rows of {', '.join(lacking) or 'any task'}: it has {', '.join(held)}")
        parts = {part.task: part for part in layout.parts}
        for task in chosen:
            _check_sizes(path, task, parts[task.name])
        return cls(path, layout, chosen)

    @property
    def obs_size(self) -> int:
        """O, of the largest task."""
        return max(task.obs_size for task in self.tasks)

    @property
    def action_size(self) -> int:
        """A, of the largest task."""
        return max(task.action_size for task in self.tasks)

    @property
    def rows(self) -> int:
        """Rows of all its tasks."""
        return sum(part.rows for part in self._parts)

    @property
    def transitions(self) -> int:
        """Transitions of all its tasks."""
        return self.rows * (self.row_entries - 1)

    def entries(self, task: int) -> NDArray[np.float32]:
        """All rows of a task, by its place: (rows, T + 1, O + A + 1) of its own sizes, mapped from the disk."""
        part, start = self._parts[task], self._starts[task]
        shape = (part.rows, self.row_entries, part.entry_size)
        return self._numbers[start : start + int(np.prod(shape))].reshape(shape)

    def touch(self) -> None:
        """Read a number of every page, so that all of the file is mapped."""
        self._numbers[:: mmap.PAGESIZE // 4].sum()

    def sampler(
        self,
        batch_size: int,
        length: int,
        seeds: Sequence[int],
        device: torch.device,
        in_memory: bool = False,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> Sampler:
        """What draws batches.

        Args:
            batch_size: B, slices for each run.
            length: L, consecutive observations in a slice; L - 1 transitions.
            seeds: the seed of each of the R runs.
            device: where batches appear.
            resident_bytes: how much of the mapped file may stay resident in this process.
            in_memory: read everything into memory first, all tasks of the folder; to compare with.

        Raises:
            UserError: rows are shorter than a slice.
        """
        if not 2 <= length <= self.row_entries:
            raise UserError(
                f"slices of {length} observations cannot be drawn from {self.path}, whose rows have {self.row_entries}"
            )
        numbers = self._numbers.copy() if in_memory else self._numbers
        sizes = self.obs_size, self.action_size
        mapped = None if in_memory else self._map
        gather = Gather(numbers, mapped, self._parts, self._starts, self.row_entries, length, sizes)
        return Sampler(gather, batch_size, seeds, self.obs_size, device, resident_bytes)


def _check_sizes(path: Path, task: Task, part: Part) -> None:
    if (part.obs_size, part.action_size) != (task.obs_size, task.action_size):
        raise UserError(
            f"{path} was made with observations of {part.obs_size} numbers and actions of {part.action_size} for "
            f"{task.name}, which now has {task.obs_size} and {task.action_size}: another version of its simulator?"
        )
