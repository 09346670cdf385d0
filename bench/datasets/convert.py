"""`bench data convert`: chunk files to the layout on disk that is drawn from.

Two passes: one over the task ids alone, which says where every row will go, and one that copies the rows, a block at a
time. What a block writes and where is fixed by the first pass, so a conversion that was killed goes on from the last
block that it noted and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bench import atomic
from bench.datasets.chunks import Chunk, chunk_files
from bench.datasets.description import ChunkFolder
from bench.datasets.layout import DESCRIPTION, ENTRIES, FLOAT_BYTES, PROGRESS, Layout, Part
from bench.datasets.published import CHUNKS
from bench.errors import UserError
from bench.lock import claimed, keep
from bench.tasks import expand, task_set
from bench.tasks.sets import MULTITASK_SETS

BLOCK_BYTES = 64 << 20
"""Of a chunk that are in memory at once; the copy takes as much again."""
LOCK = "lock"
"""In the folder while a conversion writes it."""
MOST_TASKS = 10_000
"""Larger task ids are taken for damage."""

Say = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""


def _quiet(what: str, done: int, total: int) -> None:
    """Says nothing."""


def convert(
    source: Path,
    target: Path,
    tasks: Sequence[str] = (),
    allow_missing: bool = False,
    say: Say = _quiet,
    tell: Callable[[str], None] = lambda text: None,
) -> Layout:
    """Convert a folder of chunks; goes on where an earlier call was interrupted.

    Args:
        source: folder of chunk files.
        target: folder to make.
        tasks: names and sets in the order of the task ids. By default what `chunks.json` says, else the published set
            with as many tasks.
        allow_missing: convert although chunk files are missing.
        say: progress.
        tell: called with the disk that it needs, before that is taken.

    Raises:
        UserError: a chunk is missing, damaged, foreign or does not fit the tasks; the disk lacks room; `target` holds
            something else.
    """
    described = ChunkFolder.read(source)
    named = [task.name for task in expand(tasks)] if tasks else list(described.tasks) if described else []
    files = chunk_files(source, len(described.parts) if described else None, allow_missing)
    sources = [(path.name, path.stat().st_size) for path in files]
    if (target / DESCRIPTION).exists():
        layout = Layout.read(target)
        _same(target, layout, sources, named)
        return layout
    state = _Progress.read(target)
    if state is None:
        state = _Progress(_plan(files, sources, named, allow_missing, say), 0, 0, [])
    _same(target, state.layout, sources, named)
    size = f"{state.layout.bytes / 1e9:,.1f} GB of disk in {target}"
    tell(f"{state.layout.rows:,} rows of {state.layout.row_entries} entries: {size}")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with claimed(target / LOCK, f"{target} is being written"):
            # Another conversion may have begun, and ended, since the folder was looked at.
            if (target / DESCRIPTION).exists():
                layout = Layout.read(target)
                _same(target, layout, sources, named)
                return layout
            state = _Progress.read(target) or state
            _same(target, state.layout, sources, named)
            _make_room(target, state)
            return _fill(target, files, state, say)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror}; the same command goes on once that is mended"
        ) from error


def _fill(target: Path, files: Sequence[Path], state: _Progress, say: Say) -> Layout:
    with (target / ENTRIES).open("r+b") as file:
        _copy_all(file, target, files, state, say)
    layout = replace(state.layout, fingerprint=state.layout.fingerprint_of(target / ENTRIES))
    layout.write(target)
    (target / PROGRESS).unlink()
    return layout


def _same(target: Path, layout: Layout, sources: Sequence[tuple[str, int]], named: Sequence[str]) -> None:
    """Whether what is in `target` was made, or begun, from these chunks with these tasks."""
    of_others = list(layout.sources) != list(sources)
    if of_others or (named and [part.task for part in layout.parts] != list(named)):
        what = "chunks" if of_others else "tasks"
        raise UserError(f"{target} was made from other {what}: choose another folder, or remove it")


# The first pass


def _plan(
    files: Sequence[Path], sources: list[tuple[str, int]], named: Sequence[str], allow_missing: bool, say: Say
) -> Layout:
    counts = np.zeros(MOST_TASKS, np.int64)
    shapes: dict[tuple[int, int, int], Path] = {}
    for number, path in enumerate(files):
        chunk = Chunk.open(path)
        shapes.setdefault((chunk.row_entries, chunk.obs.shape[2], chunk.action.shape[2]), path)
        if len(shapes) > 1:
            (first, one), (second, other) = shapes.items()
            raise UserError(
                f"{one} has rows of {first[0]} entries, observations of {first[1]} and actions of {first[2]}, {other} "
                f"{second[0]}, {second[1]} and {second[2]}: they are not of one data set"
            )
        for begin, end in _blocks(chunk):
            counts += np.bincount(_task_ids(chunk, begin, end), minlength=MOST_TASKS)
            chunk.file.release()
        say("chunks looked through", number + 1, len(files))
    ids = int(np.flatnonzero(counts)[-1]) + 1
    rows = expand(named) if named else _published(files, ids, allow_missing)
    if ids > len(rows):
        raise UserError(
            f"{files[0].parent} has task ids up to {ids - 1}, but {len(rows)} tasks were named: name them all, in order"
        )
    ((row_entries, obs_size, action_size),) = shapes
    for task, count in zip(rows, counts, strict=False):
        if count and (task.obs_size > obs_size or task.action_size > action_size):
            raise UserError(
                f"{files[0].parent} has observations of {obs_size} and actions of {action_size}, {task.name} has "
                f"{task.obs_size} and {task.action_size}: name the tasks in the order of their ids with --tasks"
            )
    parts = (
        Part(task.name, int(count), task.obs_size, task.action_size) for task, count in zip(rows, counts, strict=False)
    )
    return Layout(row_entries, tuple(parts), tuple(sources))


def _published(files: Sequence[Path], ids: int, allow_missing: bool) -> Sequence[Any]:
    folder = files[0].parent
    if ids not in MULTITASK_SETS:
        raise UserError(
            f"{folder} has task ids 0 to {ids - 1} and no chunks.json that names them: give --tasks, all tasks in the "
            "order of their ids (mt30 and mt80 have 4 and 20 chunk files: is one missing?)"
        )
    name = MULTITASK_SETS[ids]
    if not allow_missing:
        chunk_files(folder, CHUNKS[name])
    return task_set(name)


def _blocks(chunk: Chunk) -> list[tuple[int, int]]:
    """(begin, end) of blocks of rows."""
    numbers = chunk.row_entries * (chunk.obs.shape[2] + chunk.action.shape[2] + 1)
    step = max(1, BLOCK_BYTES // (numbers * FLOAT_BYTES))
    return [(begin, min(begin + step, chunk.rows)) for begin in range(0, chunk.rows, step)]


def _task_ids(chunk: Chunk, begin: int, end: int) -> NDArray[np.int64]:
    """Of each row; that of entry 0 may be filler."""
    ids = chunk.task[begin:end, 1:]
    of_row = ids[:, 0].astype(np.int64)
    wrong = np.flatnonzero((ids != ids[:, :1]).any(axis=1) | (of_row < 0) | (of_row >= MOST_TASKS))
    if len(wrong):
        row = begin + int(wrong[0])
        raise UserError(f"{chunk.path}, row {row:,}: expected is one task id, found {_few(chunk.task[row, 1:])}")
    return of_row


def _few(ids: NDArray[Any]) -> str:
    found = np.unique(ids)
    return ", ".join(map(str, found[:4])) + (" …" if len(found) > 4 else "")


# The second pass


@dataclass
class _Progress:
    """How far the copy is; what lies beyond is written again."""

    layout: Layout
    file: int
    """Chunk files that are done."""
    row: int
    """Rows of the next one that are done."""
    written: list[int]
    """Rows of each task that are done."""

    def __post_init__(self) -> None:
        self.written = self.written or [0] * len(self.layout.parts)

    @classmethod
    def read(cls, target: Path) -> _Progress | None:
        if not (target / PROGRESS).exists():
            return None
        try:
            values = json.loads((target / PROGRESS).read_text(encoding="utf-8"))
            return cls(Layout.from_json(values["layout"]), values["file"], values["row"], values["written"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{target / PROGRESS} is damaged ({error!r}): remove {target}") from error

    def write(self, target: Path) -> None:
        values = {"layout": self.layout.to_json(), "file": self.file, "row": self.row, "written": self.written}
        atomic.write_json(target / PROGRESS, values)


def _make_room(target: Path, state: _Progress) -> None:
    """A file of the full size in the folder, so that the disk cannot be full in the middle."""
    file = target / ENTRIES
    have = file.stat().st_blocks * 512 if file.exists() else 0
    need, free = state.layout.bytes - have, shutil.disk_usage(target).free
    if need > free:
        raise UserError(
            f"{target} needs {state.layout.bytes / 1e9:,.1f} GB of disk, and {free / 1e9:,.1f} GB are free: make "
            "room, or choose a folder on another disk"
        )
    state.write(target)
    with file.open("ab") as opened:
        os.posix_fallocate(opened.fileno(), 0, state.layout.bytes)
        opened.truncate(state.layout.bytes)


def _copy_all(file: BinaryIO, target: Path, files: Sequence[Path], state: _Progress, say: Say) -> None:
    while state.file < len(files):
        chunk = Chunk.open(files[state.file])
        for begin, end in _blocks(chunk):
            if begin < state.row:
                continue
            _copy(file, state, chunk, begin, end)
            file.flush()
            os.fdatasync(file.fileno())
            chunk.file.release()
            state.row = end
            state.write(target)
            keep(target / LOCK)
            say("rows", sum(state.written), state.layout.rows)
        state.file, state.row = state.file + 1, 0


def _copy(file: BinaryIO, state: _Progress, chunk: Chunk, begin: int, end: int) -> None:
    """A block of rows to their places, task by task."""
    ids = _task_ids(chunk, begin, end)
    obs, action, reward = (array[begin:end] for array in (chunk.obs, chunk.action, chunk.reward))
    for task in np.unique(ids).tolist():
        part, mine = state.layout.parts[task], np.flatnonzero(ids == task)
        entries = np.zeros((len(mine), state.layout.row_entries, part.entry_size), "<f4")
        shown = obs[mine]
        entries[..., : part.obs_size] = shown[..., : part.obs_size]
        entries[:, 1:, part.obs_size : -1] = action[mine, 1:, : part.action_size]
        entries[:, 1:, -1] = reward[mine, 1:]
        _check(chunk.path, begin + mine, part, entries, shown[..., part.obs_size :])
        place = state.written[task] * state.layout.row_entries * part.entry_size
        file.seek((state.layout.starts[task] + place) * FLOAT_BYTES)
        file.write(entries.data)
        state.written[task] += len(mine)


def _check(path: Path, rows: NDArray[np.int64], part: Part, entries: NDArray[Any], padding: NDArray[Any]) -> None:
    """Whether the numbers are such, and the observations those of the task."""
    wrong = np.flatnonzero(padding.any(axis=(1, 2)))
    if len(wrong):
        raise UserError(
            f"{path}, row {rows[wrong[0]]:,}: more than the {part.obs_size} numbers that an observation of {part.task} "
            "has: name the tasks in the order of their ids with --tasks"
        )
    wrong = np.flatnonzero(~np.isfinite(entries).all(axis=(1, 2)))
    if len(wrong):
        raise UserError(f"{path}, row {rows[wrong[0]]:,} ({part.task}): NaN or infinite; is the file damaged?")
