"""The file format of replay on disk: one segment, a file of whole episodes.

A segment is one JSON line (the arrays' shapes) and then a record for each episode: a header with lengths and checksums,
and the arrays as raw bytes in the order of `Episode`'s fields. `bench.replay_log` strings segments together.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError

FORMAT = 1
_MAGIC = b"EPIS"
_HEADER = struct.Struct("<4sIIII")  # magic, env, transitions, checksum of the arrays, checksum of the fields before


@dataclass(frozen=True)
class Episode:
    """One episode of T agent steps in one environment."""

    env: int
    """Which of the run's N environments."""
    obs: NDArray[Any]
    """(T + 1, *obs_shape) float32 or uint8; obs[0] is what the reset returned. Of stacked pictures the newest alone."""
    action: NDArray[np.float32]
    """(T, A); action[t] led from obs[t] to obs[t + 1]."""
    reward: NDArray[np.float32]
    """(T,)"""
    terminated: NDArray[np.float32]
    """(T,) 1 where the environment ended by itself, 0 at a time limit."""

    @property
    def transitions(self) -> int:
        """T."""
        return len(self.reward)


@dataclass(frozen=True)
class Layout:
    """Shapes of the arrays: the first line of every segment."""

    obs_dtype: str
    obs_shape: tuple[int, ...]
    action_size: int

    @classmethod
    def of(cls, episode: Episode) -> Layout:
        """The layout that an episode needs; ValueError for observations that are neither float32 nor uint8."""
        if episode.obs.dtype not in (np.float32, np.uint8):
            raise ValueError(f"observations are float32 or uint8, not {episode.obs.dtype}")
        return cls(episode.obs.dtype.name, episode.obs.shape[1:], episode.action.shape[1])

    def line(self) -> bytes:
        """The layout as the first line of a segment."""
        fields = {
            "format": FORMAT,
            "obs_dtype": self.obs_dtype,
            "obs_shape": self.obs_shape,
            "action": self.action_size,
        }
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Layout:
        """The layout in a first line; ValueError, KeyError or TypeError where it is none."""
        fields = json.loads(line)
        if fields["format"] != FORMAT:
            raise ValueError(f"format {fields['format']}, this code reads {FORMAT}")
        return cls(np.dtype(fields["obs_dtype"]).name, tuple(fields["obs_shape"]), int(fields["action"]))

    def pack(self, episode: Episode) -> tuple[bytes, int]:
        """An episode as a record, and the checksum of its arrays."""
        floats = (np.asarray(a, np.float32) for a in (episode.action, episode.reward, episode.terminated))
        payload = b"".join(np.ascontiguousarray(array).tobytes() for array in (episode.obs, *floats))
        fields = (_MAGIC, episode.env, episode.transitions, zlib.crc32(payload))
        return _HEADER.pack(*fields, _fields_checksum(*fields)) + payload, fields[-1]

    def unpack(self, env: int, transitions: int, payload: bytearray) -> Episode:
        """An episode from the arrays of its record."""
        split, actions = self._obs_bytes(transitions), transitions * self.action_size
        obs = np.frombuffer(payload[:split], self.obs_dtype).reshape(transitions + 1, *self.obs_shape)
        floats = np.frombuffer(payload[split:], np.float32)
        action, reward, terminated = np.split(floats, [actions, actions + transitions])
        return Episode(env, obs, action.reshape(transitions, self.action_size), reward, terminated)

    def payload_bytes(self, transitions: int) -> int:
        """Size of an episode's arrays."""
        return self._obs_bytes(transitions) + 4 * transitions * (self.action_size + 2)

    def _obs_bytes(self, transitions: int) -> int:
        return (transitions + 1) * int(np.prod(self.obs_shape)) * np.dtype(self.obs_dtype).itemsize


def _fields_checksum(magic: bytes, env: int, transitions: int, checksum: int) -> int:
    return zlib.crc32(_HEADER.pack(magic, env, transitions, checksum, 0))


@dataclass(frozen=True)
class Record:
    """Where an episode lies in its segment."""

    start: int
    env: int
    transitions: int
    checksum: int


@dataclass
class Segment:
    """One file: its whole records and where the last of them ends."""

    path: Path
    first: int
    """Number of its first episode, as in its name."""
    layout: Layout | None
    """None where not even the first line is whole."""
    records: list[Record]
    end: int
    """Bytes up to the end of the last whole record; 0 where the first line is missing."""
    is_torn: bool = False
    """Whether bytes follow that are no whole record."""

    @property
    def last(self) -> int:
        """Number of the episode after its last."""
        return self.first + len(self.records)

    def damaged(self) -> UserError:
        """The error for content that no crash explains."""
        return UserError(
            f"{self.path} is damaged: restore it from a copy, or remove {self.path.parent.parent} and run again"
        )

    def payload(self, record: Record) -> bytearray | None:
        """The raw arrays of a record; None where they do not match their checksum."""
        assert self.layout is not None
        with self.path.open("rb") as file:
            file.seek(record.start + _HEADER.size)
            payload = bytearray(file.read(self.layout.payload_bytes(record.transitions)))
        return payload if zlib.crc32(payload) == record.checksum else None

    def read(self, record: Record) -> Episode:
        """The episode of a record.

        Raises:
            UserError: the file is gone or its content does not match its checksum.
        """
        assert self.layout is not None
        try:
            payload = self.payload(record)
        except FileNotFoundError as error:
            raise missing(self.path) from error
        if payload is None:
            raise self.damaged()
        return self.layout.unpack(record.env, record.transitions, payload)


def missing(path: Path) -> UserError:
    """The error for a segment that should exist."""
    return UserError(f"{path} is missing: restore it, or remove {path.parent.parent} and run again")


def segment_name(first: int) -> str:
    """File name of the segment whose first episode has this number; names sort in that order."""
    return f"{first:012d}.episodes"


def scan(path: Path) -> Segment:
    """Find the whole records of a segment; reads the arrays of the last alone, which is the one that a crash can tear.

    Raises:
        UserError: the file is no segment.
    """
    try:
        segment = Segment(path, int(path.stem), None, [], end=0)
    except ValueError as error:
        raise UserError(f"{path} is no replay segment: move it away") from error
    size = path.stat().st_size
    with path.open("rb") as file:
        line = file.readline()
        if line.endswith(b"\n"):
            try:
                segment.layout = Layout.parse(line)
            except (ValueError, KeyError, TypeError) as error:
                raise segment.damaged() from error
            segment.end = len(line)
            while (record := _parse_header(file.read(_HEADER.size), segment.end)) is not None:
                end = record.start + _HEADER.size + segment.layout.payload_bytes(record.transitions)
                if end > size:
                    break
                segment.records.append(record)
                segment.end = end
                file.seek(end)
    if segment.records and segment.payload(segment.records[-1]) is None:
        segment.end = segment.records.pop().start
    segment.is_torn = size > segment.end
    return segment


def _parse_header(header: bytes, start: int) -> Record | None:
    if len(header) < _HEADER.size:
        return None
    magic, env, transitions, checksum, own = _HEADER.unpack(header)
    if magic != _MAGIC or own != _fields_checksum(magic, env, transitions, checksum):
        return None
    return Record(start, env, transitions, checksum)
