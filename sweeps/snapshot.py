"""The code that a launch runs: a copy of the suite's packages, made when it is launched and named by its content.

    results/<sweep>/.launch/code/<hash>/   bench/ agents/ … and snapshot.json: hash, commit, uncommitted changes

Jobs import from there, so that editing the checkout never changes what is queued or queued again. Installed libraries
are not copied; their versions are in every run.json.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import atomic
from bench.provenance import CHECKOUT, SNAPSHOT_JSON, git_state

PACKAGES = ("agents", "analysis", "baselines", "bench", "sweeps")
HASH_CHARS = 12


def take(launch_folder: Path, checkout: Path = CHECKOUT) -> Path:
    """Copy the packages to `launch_folder/code/<hash>`; a copy that is already there is used again.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind then.
    """
    digest = content_hash(checkout)
    target = launch_folder / "code" / digest
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".copying-"))
    try:
        for relative, path in _files(checkout):
            (aside / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, aside / relative)
        atomic.write_json(aside / SNAPSHOT_JSON, {"snapshot": digest, **git_state(checkout)})
        aside.chmod(0o777 & ~atomic.UMASK)
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():  # else another launch made the same copy
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def content_hash(checkout: Path = CHECKOUT) -> str:
    """Twelve hexadecimal digits of SHA-256 over the names and contents of the packages' files."""
    digest = hashlib.sha256()
    for relative, path in _files(checkout):
        data = path.read_bytes()
        digest.update(f"{relative}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:HASH_CHARS]


def environment(code: Path | str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What makes Python import the suite from a snapshot, whatever the working directory is."""
    before = environ.get("PYTHONPATH")
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{code}{os.pathsep}{before}" if before else str(code)}


def _files(checkout: Path) -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((checkout / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(checkout).as_posix(), path
