"""What an earlier collection read, so that unchanged run directories are not read again.

One file beside the collected tables. An entry counts only while the identity, size and times of every file that it was
made from are what they were, and the whole file only while the code that reads run directories is the same and its own
checksum holds; in any other case the directory is read. Never kept: a run whose state depends on the clock (running,
stale), one with a file that was refused, and one that changed so lately that another change might leave the same times.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import reading, tables
from analysis.reading import MEASURED, RunRead
from analysis.tables import Failure
from bench import atomic, errors, processes, run_progress, rundir, runspec, schema, tasks
from bench.errors import UserError
from bench.rundir import RunDir
from bench.tasks import rows, sets, task

NAME = "collect.cache"
FILES = ("run.json", "eval.csv", "heartbeat", "done.json", "failed.json")
"""The files of a run directory that collecting reads."""
RECENT_S = 2.0
"""A file that changed less than this ago may change again without a new time (clocks of file systems are coarse)."""

_CODE = (reading, tables, atomic, errors, processes, run_progress, rundir, runspec, schema, tasks, rows, sets, task)
"""Modules that decide what reading a run directory gives."""

Signature = list[list[int] | None]


class Cache:
    """Reads run directories, or knows them from before."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Signature, RunRead]] = {}
        self._kept: dict[str, tuple[Signature, RunRead]] = {}

    @classmethod
    def load(cls, folder: Path) -> Cache:
        """The cache in a folder of collected tables; empty where there is none that can be used."""
        cache = cls()
        try:
            checksum, _, body = (folder / NAME).read_bytes().partition(b"\n")
        except OSError:
            return cache
        if checksum == _checksum(body):
            for signature, read in _unpack(body):
                cache._known[read.path] = (signature, read)
        return cache

    def read(self, run: RunDir) -> RunRead:
        """What `reading.read_run` gives."""
        signature = _signature(run)
        signed_s = time.time()
        known = self._known.get(run.path.as_posix())
        if known is not None and known[0] == signature:
            self._kept[known[1].path] = known
            return known[1]
        read = reading.read_run(run)
        changed_s = max((max(entry[2:]) for entry in signature if entry is not None), default=0) / 1e9
        if read.settled and changed_s < signed_s - RECENT_S:
            self._kept[read.path] = (signature, read)
        return read

    def save(self, folder: Path) -> None:
        """Write what this collection read; directories that it did not meet are forgotten.

        Raises:
            UserError: the folder cannot be written.
        """
        if self._kept.keys() == self._known.keys() and all(
            self._known[path] is kept for path, kept in self._kept.items()
        ):
            return
        body = _pack(list(self._kept.values()))
        try:
            atomic.write_bytes(folder / NAME, _checksum(body) + b"\n" + body)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with -o") from error


def _signature(run: RunDir) -> Signature:
    """For each of `FILES`: inode, size, and when its contents and anything of it changed, in ns; None where absent."""
    found: Signature = []
    for name in FILES:
        try:
            stat = (run.path / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append([stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return found


def _checksum(body: bytes) -> bytes:
    """Of the contents, and of the code that they depend on."""
    digest = hashlib.sha256(f"{schema.SCHEMA_VERSION} {pd.__version__} {np.__version__}".encode())
    for module in (Path(__file__), *(Path(str(part.__file__)) for part in _CODE)):
        digest.update(module.read_bytes())
    digest.update(body)
    return digest.hexdigest().encode()


def _pack(kept: list[tuple[Signature, RunRead]]) -> bytes:
    """One row for each run: its evaluations as lists, everything else as JSON."""
    offsets = np.concatenate([[0], np.cumsum([len(read.evals["env_steps"]) for _, read in kept], dtype="int64")])
    columns: dict[str, Any] = {"entry": pa.array([_entry(*one) for one in kept], pa.large_string())}
    for name, kind in MEASURED.items():
        values = np.concatenate([np.zeros(0, kind), *(read.evals[name] for _, read in kept)])
        columns[name] = pa.LargeListArray.from_arrays(offsets.astype("int64"), values)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    packed: bytes = buffer.getvalue().to_pybytes()
    return packed


def _entry(signature: Signature, read: RunRead) -> str:
    failure = read.failure and asdict(read.failure)
    return json.dumps([signature, vars(read) | {"evals": None, "failure": failure}])


def _unpack(body: bytes) -> list[tuple[Signature, RunRead]]:
    table = pq.read_table(pa.BufferReader(body)).combine_chunks()
    entries = table["entry"].to_pylist()
    offsets = np.zeros(1, "int64")
    values: dict[str, Any] = {}
    if entries:
        offsets = table["env_steps"].chunk(0).offsets.to_numpy()
        values = {name: table[name].chunk(0).values.to_numpy() for name in MEASURED}
    found = []
    for number, entry in enumerate(entries):
        signature, fields = json.loads(entry)
        failure = fields["failure"] and Failure(**fields["failure"])
        start, end = offsets[number], offsets[number + 1]
        evals = {name: column[start:end] for name, column in values.items()}
        found.append((signature, RunRead(**(fields | {"evals": evals, "failure": failure}))))
    return found
