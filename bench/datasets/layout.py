"""A converted data set on disk: `dataset.json` says what it is, `entries.f32` holds the numbers.

`entries.f32` is one run of float32, little-endian: all rows of the first task, then those of the next. A row is T + 1
entries, an entry is observation, action and reward of the task's own sizes, so a slice lies in one piece and padding
takes no disk. Entry 0's action and reward mean nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import atomic
from bench.errors import UserError

FORMAT_VERSION = 1
DESCRIPTION = "dataset.json"
ENTRIES = "entries.f32"
PROGRESS = "converting.json"
"""There until the conversion is done: how far it is."""
FLOAT_BYTES = 4
SAMPLED_ROWS = 16
"""Rows of each task that the fingerprint reads, evenly spaced."""


@dataclass(frozen=True)
class Part:
    """The rows of one task."""

    task: str
    rows: int
    obs_size: int
    action_size: int

    @property
    def entry_size(self) -> int:
        """Numbers in an entry."""
        return self.obs_size + self.action_size + 1


@dataclass(frozen=True)
class Layout:
    """What `dataset.json` says."""

    row_entries: int
    """T + 1, of every row."""
    parts: tuple[Part, ...]
    """In the order of the task ids of the chunks."""
    sources: tuple[tuple[str, int], ...]
    """Names and bytes of the chunk files."""
    fingerprint: str = ""
    """SHA-256 of all above and of a sample of the rows."""

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each part begins, in numbers; one more for the end."""
        starts = [0]
        for part in self.parts:
            starts.append(starts[-1] + part.rows * self.row_entries * part.entry_size)
        return tuple(starts)

    @property
    def bytes(self) -> int:
        """Of `entries.f32`."""
        return self.starts[-1] * FLOAT_BYTES

    @property
    def rows(self) -> int:
        """Of all tasks."""
        return sum(part.rows for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Layout:
        """Of the file's content."""
        parts = tuple(Part(**part) for part in values["parts"])
        sources = tuple((name, size) for name, size in values["sources"])
        return cls(values["row_entries"], parts, sources, values["fingerprint"])

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """The description of a converted data set whose numbers are all there.

        Raises:
            UserError: none is there, it is of another format, or its numbers are not whole.
        """
        path = folder / DESCRIPTION
        if not path.is_file():
            if (folder / PROGRESS).exists():
                raise UserError(f"{folder} is not converted to the end: run the same bench data convert again")
            raise UserError(
                f"{folder} is no converted data set (no {DESCRIPTION}): make one with bench data convert CHUNKS -o "
                f"{folder}"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["format_version"]
            layout = cls.from_json(values) if version == FORMAT_VERSION else None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): convert the chunks again into another folder") from error
        if layout is None:
            raise UserError(f"{path} has format {version}, this code reads {FORMAT_VERSION}: convert the chunks again")
        numbers = folder / ENTRIES
        size = numbers.stat().st_size if numbers.is_file() else 0
        if size != layout.bytes:
            raise UserError(
                f"{numbers} has {size:,} bytes instead of {layout.bytes:,}: copy it again, or remove {folder} and "
                "convert the chunks again"
            )
        return layout

    def write(self, folder: Path) -> None:
        """Say that the data set is whole."""
        atomic.write_json(folder / DESCRIPTION, self.to_json())

    def fingerprint_of(self, numbers: Path) -> str:
        """The fingerprint of this layout with the numbers of a file."""
        description = self.to_json() | {"fingerprint": "", "sources": []}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        with numbers.open("rb") as file:
            for part, start in zip(self.parts, self.starts, strict=False):
                row_bytes = self.row_entries * part.entry_size * FLOAT_BYTES
                for row in spread(part.rows, SAMPLED_ROWS):
                    file.seek(start * FLOAT_BYTES + row * row_bytes)
                    digest.update(file.read(row_bytes))
        return digest.hexdigest()


def spread(count: int, most: int) -> Sequence[int]:
    """Up to `most` of the numbers below `count`, evenly spaced from the first to the last; one: that in the middle."""
    if count <= most:
        return range(count)
    if most == 1:
        return [count // 2]
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]
