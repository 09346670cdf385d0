"""One writer for each run directory, also on file systems that several machines share.

The lock is a file that is written aside and then linked to its name, which NFS, Lustre and GPFS do for one alone; no
flock. It is stale, and taken over, when its process is gone from this machine, or, where its process cannot be seen
from here, when neither the lock nor the run's heartbeat has changed for `STALE_AFTER_S` by the file system's own clock.

A lock file is removed only by the one who has claimed the removal of that very lock, in a file made in the same way: a
fresh lock that has taken its place meanwhile is never touched.

A process that was only cut off or suspended may wake up after its lock was taken over. It must not write then, so
every write is prepared, then the lock is checked, then the write is committed; and whoever takes over first makes
worthless what others have prepared:

- files are written aside under a hidden name and renamed: the successor removes hidden files, the rename then fails;
- files are opened, then appended to: the successor replaces them by copies, the append then goes to a nameless file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
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
TAKING_S = 60.0
"""How long to wait for another process that has found the same stale lock and is about to remove it."""


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
        me = Holder(Process.current(), uuid.uuid4().hex, job_id())
        deadline = time.monotonic() + TAKING_S
        while not _make(self.path, me):
            content = _content(self.path)
            holder = _holder(content)
            if holder is not None and not self._gone(holder):
                raise self._taken(holder)
            if content is not None and not _remove(self.path, content):
                if time.monotonic() > deadline:
                    raise UserError(f"cannot take {self.path}: another process has been taking it for {TAKING_S:.0f} s")
                time.sleep(LOCK_POLL_S)
        self._token = me.token
        self.run.guard = self.check
        self.run.discard_prepared()
        self.wanted.unlink(missing_ok=True)

    def check_free(self) -> None:
        """Whether the lock can be taken now.

        Raises:
            UserError: another live process trains this run.
        """
        holder = self.holder()
        if holder is not None:
            raise self._taken(holder)

    def _taken(self, holder: Holder) -> UserError:
        owner = holder.process
        return UserError(
            f"run {self.run.spec.run_id} is being trained by process {owner.pid} on {owner.host}: "
            "wait for it, or end that process"
        )

    def _gone(self, holder: Holder) -> bool:
        if holder.process.is_here:
            return not holder.process.alive
        return _silent_s(self.path, self.run.path / "heartbeat") > STALE_AFTER_S

    # Holding it

    def check(self) -> None:
        """Make sure that the lock is still ours.

        Raises:
            LockLost: somebody else has it.
        """
        holder = _holder(_content(self.path))
        if self._token is None or holder is None or holder.token != self._token:
            whom = f"process {holder.process.pid} on {holder.process.host}" if holder else "another process"
            raise LockLost(f"{self.run.path} was taken over by {whom}: this process stops without writing to it")

    def release(self) -> None:
        """Give the lock back; one that was lost is left to whoever has it."""
        content = _content(self.path)
        holder = _holder(content)
        if content is not None and holder is not None and holder.token == self._token:
            _remove(self.path, content)
            self.run.guard = atomic.nothing
        self._token = None

    # Asking for it

    def holder(self) -> Holder | None:
        """Who holds the lock; None where it is free or stale."""
        holder = _holder(_content(self.path))
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

    A lock is stale, and removed, as in `RunLock`; without a heartbeat, its own age counts, so what may take as
    long as `STALE_AFTER_S` is done under `kept` too.
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
        content = _content(path)
        holder = _holder(content)
        if holder is not None and not _moment_gone(path, holder):
            taken(holder)
        elif content is not None and _remove(path, content):
            continue
        time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        content = _content(path)
        if content is not None and _holder(content) == me:
            _remove(path, content)


@contextlib.contextmanager
def kept(path: Path, every_s: float = STALE_AFTER_S / 10) -> Iterator[None]:
    """Say at intervals that the holder of a lock lives, while something is done that may take long."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every_s):
            keep(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def keep(path: Path) -> None:
    """Say that the holder of a lock lives."""
    with contextlib.suppress(FileNotFoundError):  # taken over
        os.utime(path)


def _moment_gone(path: Path, holder: Holder) -> bool:
    if holder.process.is_here:
        return not holder.process.alive
    return _silent_s(path) > STALE_AFTER_S


def _make(path: Path, holder: Holder) -> bool:
    """Make a lock file, whole from its first instant; false where there is one already."""
    aside = path.with_name(f".{path.name.lstrip('.')}.{holder.token}")
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


def _remove(path: Path, content: bytes) -> bool:
    """Remove a lock file that has this content.

    Tokens make the contents of locks unique, and every removal of a content goes through one claim, its own holder's
    too: whoever has the claim and still finds the content there removes it and nothing else. A claim is a lock itself;
    that of a process that died is removed in the same way.

    Returns:
        Whether a lock with this content is gone; False while another process that lives is about to remove it.
    """
    claim = path.with_name(f".{path.name}.removal-{hashlib.sha256(content).hexdigest()[:32]}")
    me = Holder(Process.current(), uuid.uuid4().hex, job_id())
    while not _make(claim, me):
        other = _content(claim)
        holder = _holder(other)
        if holder is not None and not _moment_gone(claim, holder):
            return False
        if other is not None and not _remove(claim, other):
            return False
    try:
        if _content(path) == content:
            path.unlink()
    finally:
        claim.unlink(missing_ok=True)
    return True


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


def _content(path: Path) -> bytes | None:
    """What a lock file holds; None where there is none. Opening the file makes NFS ask its server."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _holder(content: bytes | None) -> Holder | None:
    """Who holds a lock file of this content; None where it is not that of a lock."""
    try:
        return None if content is None else Holder.from_json(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
