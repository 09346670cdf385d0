"""`chunks.json`, which `bench data collect` writes beside its chunk files: what the task ids mean, and who played."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import atomic
from bench.errors import UserError

CHUNKS = "chunks.json"


@dataclass(frozen=True)
class Part:
    """Episodes of one task from one source: one chunk file."""

    task: str
    source: str
    """What played: an agent and how far it was trained, the replay of a run, or random actions."""
    episodes: int
    seed: int
    domain_version: str
    mean_return: float | None = None
    """None until it was played."""
    mean_success: float | None = None
    """The same; replay does not tell it."""


@dataclass(frozen=True)
class ChunkFolder:
    """What a folder of chunk files holds."""

    tasks: Sequence[str]
    """In the order of their ids."""
    row_entries: int
    """T + 1."""
    parts: Sequence[Part]
    """Of each chunk file, by its number."""

    @classmethod
    def read(cls, folder: Path) -> ChunkFolder | None:
        """The description in a folder; None where there is none (the published chunks have none).

        Raises:
            UserError: it is damaged.
        """
        path = folder / CHUNKS
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            parts = [Part(**part) for part in values["parts"]]
            return cls(list(values["tasks"]), int(values["row_entries"]), parts)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): remove it, and name the tasks with --tasks") from error

    def write(self, folder: Path) -> None:
        """Write it beside the chunks."""
        atomic.write_json(folder / CHUNKS, asdict(self))
