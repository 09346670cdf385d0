"""The data sets that TD-MPC2's authors publish, and their download."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from bench.download import fetch, hugging_face, remote_size
from bench.errors import UserError, unknown

REPOSITORY = "datasets/nicklashansen/tdmpc2"
CHUNKS: Mapping[str, int] = MappingProxyType({"mt30": 4, "mt80": 20})
"""Chunk files of each set."""


def urls(name: str) -> list[tuple[str, str]]:
    """(file name, where it is downloaded from).

    Raises:
        UserError: no such data set.
    """
    if name not in CHUNKS:
        raise unknown("published data set", name, CHUNKS)
    files = [f"chunk_{number}.pt" for number in range(CHUNKS[name])]
    return [(file, hugging_face(REPOSITORY, f"{name}/{file}")) for file in files]


def download(
    name: str, folder: Path, say: Callable[[str, int, int], None], tell: Callable[[str], None] = lambda text: None
) -> int:
    """Download a data set; goes on where it stopped. Returns how many files are new.

    Args:
        name: mt30 or mt80.
        folder: where the chunk files go.
        say: called with a file's name, its bytes so far and in all.
        tell: called once with what it needs, before anything is downloaded.

    Raises:
        UserError: the server is not reached, a size or checksum is another, or the disk lacks room.
    """
    found = urls(name)
    sizes = [remote_size(url) for _, url in found]
    have = sum(_have(folder / file) for file, _ in found)
    total = sum(sizes)
    need, free = total - have, shutil.disk_usage(_existing(folder)).free
    tell(f"{name}: {len(found)} files, {total / 1e9:,.1f} GB of disk in {folder}, {need / 1e9:,.1f} GB to download")
    if need > free:
        raise UserError(
            f"{folder} lacks room: {need / 1e9:,.1f} GB are to be downloaded and {free / 1e9:,.1f} GB are free"
        )
    new = 0
    for (file, url), size in zip(found, sizes, strict=True):

        def progress(done: int, total: int | None, file: str = file, size: int = size) -> None:
            say(file, done, size)

        new += fetch(url, folder / file, size, progress)
    return new


def _have(path: Path) -> int:
    """Bytes of a file that are there, whole or in part."""
    part = path.with_name(path.name + ".part")
    return max(one.stat().st_size if one.exists() else 0 for one in (path, part))


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
