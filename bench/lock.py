"""One writer for each run directory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from bench.errors import UserError
from bench.processes import Process
from bench.rundir import STALE_AFTER_S, RunDir


class RunLock:
    """Exclusive right to write one run directory.

    A lock file made with O_EXCL. A lock is stale, and taken over, when its process is gone from this machine, or, held
    on another machine, when the run's heartbeat has been silent for `STALE_AFTER_S`.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.path: Path = run.path / "lock"

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            UserError: another live process trains this run.
        """
        for _ in range(2):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                owner = _read_owner(self.path)
                if owner is not None and not self._gone(owner):
                    raise self._taken(owner) from None
                self._remove_stale(owner)
                continue
            with os.fdopen(handle, "w") as file:
                json.dump(Process.current().to_json(), file)
                file.flush()
                os.fsync(file.fileno())
            return
        raise UserError(f"cannot take {self.path}: another process keeps taking it")

    def _taken(self, owner: Process) -> UserError:
        return UserError(
            f"run {self.run.spec.run_id} is being trained by process {owner.pid} on {owner.host}: "
            "wait for it, or end that process"
        )

    def _remove_stale(self, owner: Process | None) -> None:
        """Move a stale lock away. Renaming is atomic: of several processes that try, one gets it, and one that catches
        the fresh lock of another puts it back."""
        aside = self.path.with_name(f"lock.stale-{socket.gethostname()}-{os.getpid()}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        caught = _read_owner(aside)
        if caught is None or caught == owner or self._gone(caught):
            aside.unlink()
            return
        with contextlib.suppress(FileExistsError):
            os.link(aside, self.path)
        aside.unlink()
        raise self._taken(caught)

    def _gone(self, owner: Process) -> bool:
        if owner.is_here:
            return not owner.alive
        beat = self.run.read_json("heartbeat")
        last = beat["time"] if beat else self.path.stat().st_mtime
        return time.time() - float(last) > STALE_AFTER_S

    def release(self) -> None:
        """Give the lock back."""
        self.path.unlink(missing_ok=True)


def _read_owner(path: Path) -> Process | None:
    """Who holds a lock file; None where it is gone, or was never filled in by an owner that died."""
    for wait_s in (1.0, 0.0):
        try:
            return Process.from_json(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, KeyError):
            time.sleep(wait_s)  # made a moment ago, perhaps, and about to be filled in
    return None
