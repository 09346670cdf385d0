"""One writer for each run directory, also on file systems that several machines share.

The lock is a file that is written aside and then linked to its name, which NFS, Lustre and GPFS do for one alone; no
flock. It is stale, and taken over, when its process is gone from this machine, or, where its process cannot be seen
from here, when neither the lock nor the run's heartbeat has changed for `STALE_AFTER_S` by the file system's own clock.

A process that was only cut off or suspended may wake up after its lock was taken over. It must not write then, so
every write is prepared, then the lock is checked, then the write is committed; and whoever takes over first makes
worthless what others have prepared:

- files are written aside under a hidden name and renamed: the successor removes hidden files, the rename then fails;
- files are opened, then appended to: the successor replaces them by copies, the append then goes to a nameless file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import atomic
from bench.errors import UserError
from bench.processes import Process
from bench.provenance import job_id
from bench.run_progress import STALE_AFTER_S
from bench.rundir import RunDir

ASKED_EVERY_S = 5.0
LOCK_POLL_S = 0.05


class LockLost(Exception):
    """Another process has taken this run over: nothing may be written to it any more."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    process: Process
    token: str
    """Different for every time that a lock is taken."""
    job_id: str | None
    """Its Slurm job."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Holder:
        """The inverse of `to_json`; also reads the locks of earlier versions, which held the process alone."""
        return cls(Process.from_json(value.get("process", value)), value.get("token", ""), value.get("job_id"))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"process": self.process.to_json(), "token": self.token, "job_id": self.job_id}


class RunLock:
    """Exclusive right to write one run directory."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.path: Path = run.path / "lock"
        self.wanted: Path = run.path / "lock.wanted"
        self._token: str | None = None

    # Taking it

    def acquire(self) -> None:
        """Take the lock; the run directory checks it at every write from now on.

        Raises:
            UserError: another live process trains this run.
        """
        for _ in range(2):
            me = Holder(Process.current(), uuid.uuid4().hex, job_id())
            if not _make(self.path, me):
                holder = _read(self.path)
                if holder is not None and not self._gone(holder):
                    raise self._taken(holder)
                self._remove_stale(holder)
                continue
            self._token = me.token
            self.run.guard = self.check
            self.run.discard_prepared()
            self.wanted.unlink(missing_ok=True)
            return
        raise UserError(f"cannot take {self.path}: another process keeps taking it")

    def _taken(self, holder: Holder) -> UserError:
        owner = holder.process
        return UserError(
            f"run {self.run.spec.run_id} is being trained by process {owner.pid} on {owner.host}: "
            "wait for it, or end that process"
        )

    def _remove_stale(self, holder: Holder | None) -> None:
        caught = _take_away(self.path, lambda caught: caught == holder or self._gone(caught))
        if caught is not None:
            raise self._taken(caught)

    def _gone(self, holder: Holder) -> bool:
        if holder.process.is_here:
            return not holder.process.alive
        return _silent_s(self.path, self.run.path / "heartbeat") > STALE_AFTER_S

    # Holding it

    def check(self) -> None:
        """Make sure that the lock is still ours. Opening the file makes NFS ask its server.

        Raises:
            LockLost: somebody else has it.
        """
        holder = _read(self.path)
        if holder is None:
            time.sleep(0.5)  # one who tried to take it has moved it aside, sees its mistake, and puts it back
            holder = _read(self.path)
        if self._token is None or holder is None or holder.token != self._token:
            whom = f"process {holder.process.pid} on {holder.process.host}" if holder else "another process"
            raise LockLost(f"{self.run.path} was taken over by {whom}: this process stops without writing to it")

    def release(self) -> None:
        """Give the lock back; one that was lost is left to whoever has it."""
        with contextlib.suppress(LockLost):
            self.check()
            self.path.unlink(missing_ok=True)
            self.run.guard = atomic.nothing
        self._token = None

    # Asking for it

    def holder(self) -> Holder | None:
        """Who holds the lock; None where it is free or stale."""
        holder = _read(self.path)
        return None if holder is None or self._gone(holder) else holder

    def ask_for(self) -> None:
        """Ask the holder to let go: it checkpoints and ends within seconds, if it lives."""
        self.wanted.touch()


class AskedToLetGo:
    """Whether somebody asks for one of the locks that are held here; looks every few seconds."""

    def __init__(self, locks: Sequence[RunLock], every_s: float = ASKED_EVERY_S) -> None:
        self.locks, self.every_s = list(locks), every_s
        self._looked_at = time.monotonic()
        self._asked = False

    def __call__(self) -> bool:
        if time.monotonic() - self._looked_at > self.every_s:
            self._looked_at = time.monotonic()
            self._asked = any(lock.wanted.exists() for lock in self.locks)
        return self._asked


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for an exclusive lock, and hold it for a moment: for decisions that several processes or machines may take.

    A lock is stale, and removed, as in `RunLock`; without a heartbeat, its own age counts, so nothing that takes as
    long as `STALE_AFTER_S` may be done under it.
    """
    with _held(path, lambda holder: None):
        yield


@contextlib.contextmanager
def claimed(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock for as long as it takes, or be refused it.

    Stale as in `locked`: long work calls `keep` at intervals, for processes of other machines. One that was cut off and
    lost it is not told, so what is done under it must not suffer from being done twice.

    Args:
        path: the lock file.
        what: what is done under it, for the message.

    Raises:
        UserError: another live process holds it.
    """

    def refuse(holder: Holder) -> None:
        owner = holder.process
        raise UserError(
            f"{what} by process {owner.pid} on {owner.host}: wait for it, or end that process (lock {path})"
        )

    with _held(path, refuse):
        yield


@contextlib.contextmanager
def _held(path: Path, taken: Callable[[Holder], None]) -> Iterator[None]:
    """Hold a lock; `taken` is told of a live holder each time that it is found taken."""
    me = Holder(Process.current(), uuid.uuid4().hex, job_id())
    while not _make(path, me):
        holder = _read(path)
        if holder is None or _moment_gone(path, holder):
            _take_away(path, functools.partial(operator.eq, holder))
        else:
            taken(holder)
        time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        _give_back(path, me)


def keep(path: Path) -> None:
    """Say that the holder of a `claimed` lock lives."""
    with contextlib.suppress(FileNotFoundError):  # taken over
        os.utime(path)


def _give_back(path: Path, me: Holder) -> None:
    for _ in range(10):
        holder = _read(path)
        if holder is not None:
            if holder == me:
                path.unlink(missing_ok=True)
            return
        time.sleep(LOCK_POLL_S)  # one who took it for stale has moved it aside, and puts it back


def _moment_gone(path: Path, holder: Holder) -> bool:
    if holder.process.is_here:
        return not holder.process.alive
    return _silent_s(path) > STALE_AFTER_S


def _make(path: Path, holder: Holder) -> bool:
    """Make a lock file, whole from its first instant; false where there is one already."""
    aside = path.with_name(f".{path.name}.{holder.token}")
    try:
        with aside.open("w") as file:
            json.dump(holder.to_json(), file)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def _take_away(path: Path, stale: Callable[[Holder], bool]) -> Holder | None:
    """Remove a stale lock. Renaming is atomic: of several processes that try, one gets it, and one that catches the
    fresh lock of another puts it back. Returns the holder of such a fresh lock."""
    aside = path.with_name(f"{path.name}.stale-{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return None
    caught = _read(aside)
    if caught is None or stale(caught):
        aside.unlink()
        return None
    with contextlib.suppress(FileExistsError):
        os.link(aside, path)
    aside.unlink()
    return caught


def _silent_s(*paths: Path) -> float:
    """Seconds since any of these files last changed. A file made now tells the file system's time: the clocks of two
    machines may differ by minutes."""
    with tempfile.NamedTemporaryFile(dir=paths[0].parent, prefix=".now-") as now:
        current = os.fstat(now.fileno()).st_mtime
    changed = [0.0]
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            changed.append(path.stat().st_mtime)
    return current - max(changed)


def _read(path: Path) -> Holder | None:
    """Who holds a lock file; None where it is gone, or holds nothing that a lock holds."""
    try:
        return Holder.from_json(json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
