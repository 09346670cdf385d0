"""Writes that a reader sees whole or not at all, also after kill -9 or on a full disk."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

UMASK = os.umask(0)
"""What the user's umask takes from the modes of new files; a file made aside would be the user's alone."""
os.umask(UMASK)


def nothing() -> None:
    """The check of a file that has no owner."""


@contextmanager
def writing(path: Path, check: Callable[[], None] = nothing) -> Iterator[IO[bytes]]:
    """A file aside to write to, which is flushed to disk and renamed over `path` at the end.

    Args:
        check: called right before the renaming; what it raises leaves `path` as it was.

    Raises:
        OSError: the disk is full or the folder is not writable; `path` is then as it was before.
    """
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~UMASK)
        check()
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes, check: Callable[[], None] = nothing) -> None:
    """`writing`, at once."""
    with writing(path, check) as file:
        file.write(data)


def write_text(path: Path, text: str, check: Callable[[], None] = nothing) -> None:
    """`write_bytes` for text in UTF-8."""
    write_bytes(path, text.encode(), check)


def write_json(path: Path, value: Any, check: Callable[[], None] = nothing) -> None:
    """`write_text` for a JSON value, indented; keys stay in the order given."""
    write_text(path, json.dumps(value, indent=2) + "\n", check)


def append_text(path: Path, text: str, check: Callable[[], None] = nothing) -> None:
    """Append text and flush it to disk. A crash can tear the last line; `whole_lines` repairs that.

    Args:
        check: called with the file open, right before the append.
    """
    with path.open("a", encoding="utf-8") as file:
        check()
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: Path) -> list[str]:
    """The complete lines of a file that is appended to; a torn last line (no newline) is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()
