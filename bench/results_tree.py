"""The one walk through trees of results, which accounts for every folder that it does not enter.

Links to folders are followed, each real folder is entered once, and hidden folders (`.git`, `.ipynb_checkpoints`) are
none of ours. A folder that lies in the tree itself is listed there, not under a link to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError


@dataclass(frozen=True)
class Unreadable:
    """A folder or file of a tree of results that could not be read."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Folder:
    """One folder of a tree, by the names in it that are not hidden."""

    path: Path
    folders: tuple[str, ...]
    files: tuple[str, ...]


def walk(root: Path) -> tuple[list[Folder], list[Unreadable]]:
    """Every folder of a tree, in order of path, and what could not be entered.

    Raises:
        UserError: `root` does not exist or is no folder.
    """
    _check_folder(root)
    found: list[Folder] = []
    unreadable: list[Unreadable] = []

    def refuse(error: OSError) -> None:
        unreadable.append(Unreadable(Path(str(error.filename)), f"cannot be read: {error.strerror}"))

    around = {_identity(folder) for folder in root.resolve().parents}
    entered: set[tuple[int, int]] = set()
    pending = [root]
    while pending:  # real folders first: links wait until the tree that they lie in is known
        for name, folders, files in os.walk(pending.pop(0), onerror=refuse):
            path, identity = Path(name), _identity(name)
            shown = [folder for folder in sorted(folders) if not folder.startswith(".")]
            links = [folder for folder in shown if os.path.islink(path / folder)]
            folders[:] = [folder for folder in shown if folder not in links]
            if identity in entered:
                folders.clear()
                continue
            entered.add(identity)
            found.append(Folder(path, tuple(shown), tuple(sorted(file for file in files if not file.startswith(".")))))
            for link in links:
                if _identity(path / link) in around:
                    unreadable.append(Unreadable(path / link, "not followed: it links to a folder around this one"))
                else:
                    pending.append(path / link)
            unreadable += _broken_links(found[-1])
    return sorted(found, key=lambda folder: folder.path), sorted(unreadable, key=lambda one: one.path)


def _check_folder(root: Path) -> None:
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise NotADirectoryError
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"no folder {root}: give a results folder, for example results/quickstart") from error
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from error


def _identity(folder: Path | str) -> tuple[int, int]:
    """Of the real folder behind a path; one of its own where the folder has vanished in the meantime."""
    try:
        found = os.stat(folder)
    except OSError:
        return -1, hash(folder)
    return found.st_dev, found.st_ino


def _broken_links(folder: Folder) -> Iterator[Unreadable]:
    """Links to nothing that may have been folders; a file's reader says so itself."""
    for path in (folder.path / name for name in folder.files):
        if not path.suffix and os.path.islink(path) and not os.path.exists(path):
            yield Unreadable(path, f"link to {os.readlink(path)}, which does not exist")
