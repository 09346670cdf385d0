"""`chunks.json`, which `bench data collect` writes beside its chunk files: what the task ids mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import atomic
from bench.errors import UserError

CHUNKS = "chunks.json"


@dataclass(frozen=True)
class ChunkFolder:
    """What a folder of chunk files holds."""

    tasks: Sequence[str]
    """In the order of their ids."""
    row_entries: int
    """T + 1."""
    chunks: int
    """Files."""
    episodes: Sequence[dict[str, Any]] = field(default_factory=tuple)
    """What was played: task, source, episodes, mean return and success."""

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
            return cls(values["tasks"], int(values["row_entries"]), int(values["chunks"]), values["episodes"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): remove it, and name the tasks with --tasks") from error

    def write(self, folder: Path) -> None:
        """Write it beside the chunks."""
        atomic.write_json(folder / CHUNKS, asdict(self))
