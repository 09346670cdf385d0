"""Replay on disk: the episodes of one run, appended as they end, so that a checkpoint never copies the buffer.

    replay/000000000000.episodes     the number in the name counts the run's episodes before the file
    replay/000000000137.episodes     a new file every 64 MiB

A checkpoint stores `position()`, the number of episodes so far. Opening and reading change no file; what a crash left
behind the last whole episode is cut away by the next append. Light on purpose: no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from bench import atomic
from bench.errors import UserError
from bench.replay_segment import Episode, Layout, Record, Segment, missing, scan, segment_name

SEGMENT_BYTES = 64 * 2**20


class ReplayLog:
    """The episodes of one run, in the order in which they ended.

    Args:
        folder: the `replay/` folder of the run directory; made by the first append.
        segment_bytes: a segment that has reached this size is followed by a new one.
        check: called before every write is committed (see `bench.lock`).

    Raises:
        UserError: a segment is missing, or damaged in a way that no crash explains.
    """

    def __init__(
        self, folder: Path, segment_bytes: int = SEGMENT_BYTES, check: Callable[[], None] = atomic.nothing
    ) -> None:
        self.folder = folder
        self.segment_bytes = segment_bytes
        self.check = check
        # An empty file was made by a process that died, or lost the run, before it wrote to it.
        self._segments = [scan(path) for path in sorted(folder.glob("*.episodes")) if path.stat().st_size]
        for before, segment in pairwise(self._segments):
            if before.is_torn:
                raise before.damaged()
            if before.last != segment.first:
                raise missing(folder / segment_name(before.last))

    def position(self) -> int:
        """Episodes appended since the run began: what a checkpoint stores."""
        return self._segments[-1].last if self._segments else 0

    def append(self, episodes: Sequence[Episode]) -> None:
        """Append episodes and flush them to disk, in one go for as many as a segment takes.

        Raises:
            UserError: the disk is full or the folder cannot be written; the log then ends with a whole episode.
        """
        while episodes:
            segment = self._segment_with_room(Layout.of(episodes[0]))
            episodes = episodes[self._append_to(segment, episodes) :]

    def truncate(self, position: int) -> None:
        """Forget every episode from number `position` on: what came after the checkpoint that is resumed.

        Raises:
            UserError: the log holds fewer episodes than that.
        """
        self._check_reaches(position)
        self.check()
        # From the end backwards, so that a crash in between leaves a shorter log and never a gap.
        while self._segments and self._segments[-1].first >= position:
            self._segments.pop().path.unlink()
        if not self._segments:
            return
        segment = self._segments[-1]
        if segment.last > position:
            segment.end = segment.records[position - segment.first].start
            del segment.records[position - segment.first :]
        # A copy, not a cut: what a process that lost this run still appends then goes to a file without a name.
        with segment.path.open("rb") as file:
            atomic.write_bytes(segment.path, file.read(segment.end), self.check)

    def read(self, position: int, last_transitions: int) -> Iterator[Episode]:
        """The last episodes before number `position` that together hold at most `last_transitions`, oldest first.

        Raises:
            UserError: an episode that is needed is missing or damaged.
        """
        self._check_reaches(position)
        wanted: list[tuple[Segment, Record]] = []
        transitions = 0
        for segment, record in self._backwards(position):
            transitions += record.transitions
            if transitions > last_transitions:
                break
            wanted.append((segment, record))
        first = self._segments[0].first if self._segments else 0
        if transitions < last_transitions and first > 0:
            raise missing(self.folder / f"the segment before {segment_name(first)}")
        return (segment.read(record) for segment, record in reversed(wanted))

    def discard_before(self, position: int, keep_transitions: int) -> None:
        """Remove whole segments that no checkpoint from `position` on needs to refill `keep_transitions`."""
        self._check_reaches(position)
        transitions = 0
        for segment, record in self._backwards(position):
            transitions += record.transitions
            if transitions >= keep_transitions:
                self.check()
                # From the beginning onwards, so that a crash in between leaves no gap.
                while self._segments[0] is not segment:
                    self._segments.pop(0).path.unlink()
                return

    def _backwards(self, position: int) -> Iterator[tuple[Segment, Record]]:
        for segment in reversed(self._segments):
            for record in reversed(segment.records[: max(0, position - segment.first)]):
                yield segment, record

    def _check_reaches(self, position: int) -> None:
        if position > self.position():
            raise UserError(
                f"{self.folder} holds {self.position()} whole episodes and the checkpoint needs {position}: "
                f"restore the folder, or remove {self.folder.parent} and run again"
            )

    def _segment_with_room(self, layout: Layout) -> Segment:
        """The last segment, or a new one that joins the log once something is written to it."""
        if self._segments:
            segment = self._segments[-1]
            if segment.layout is None:  # a crash tore its first line
                segment.layout = layout
            if segment.layout != layout:
                raise ValueError(f"{segment.path} holds {segment.layout}, not {layout}")
            if segment.end < self.segment_bytes:
                return segment
        first = self.position()
        return Segment(self.folder / segment_name(first), first, layout, [], end=0)

    def _append_to(self, segment: Segment, episodes: Sequence[Episode]) -> int:
        """Write as many episodes as the segment takes, one at least, with one flush; returns how many."""
        assert segment.layout is not None
        data = bytearray(segment.layout.line() if segment.end == 0 else b"")
        records: list[Record] = []
        for episode in episodes:
            if records and segment.end + len(data) >= self.segment_bytes:
                break
            packed, checksum = segment.layout.pack(episode)
            records.append(Record(segment.end + len(data), episode.env, episode.transitions, checksum))
            data += packed
        try:
            self._write(segment, bytes(data))
        except OSError as error:
            raise UserError(
                f"cannot append to {segment.path}: {error.strerror}; make room and run again "
                f"(the {self.position()} episodes before are safe)"
            ) from error
        segment.end += len(data)
        segment.records += records
        if not self._segments or self._segments[-1] is not segment:
            self._segments.append(segment)
        return len(records)

    def _write(self, segment: Segment, data: bytes) -> None:
        if segment.end == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.check()
            segment.path.touch()
            _sync_folder(self.folder)
        with segment.path.open("r+b", buffering=0) as file:
            self.check()
            _cut(file, segment.end)  # what a crash left behind the last whole episode
            file.seek(segment.end)
            try:
                _write_all(file, data)
                os.fsync(file.fileno())
            except OSError:
                _cut(file, segment.end)
                raise


def _write_all(file: BinaryIO | Any, data: bytes) -> None:
    """Write everything: an unbuffered write may take less than it is given when the disk is almost full."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _cut(file: BinaryIO | Any, size: int) -> None:
    if os.fstat(file.fileno()).st_size > size:
        file.truncate(size)
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
