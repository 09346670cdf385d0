"""One writer for each run directory."""

from __future__ import annotations

import json
import os
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
                owner = self._owner()
                if owner is not None and not self._gone(owner):
                    raise UserError(
                        f"run {self.run.spec.run_id} is being trained by process {owner.pid} on {owner.host}: "
                        "wait for it, or end that process"
                    ) from None
                self.path.unlink(missing_ok=True)
                continue
            with os.fdopen(handle, "w") as file:
                json.dump(Process.current().to_json(), file)
                file.flush()
                os.fsync(file.fileno())
            return
        raise UserError(f"cannot take {self.path}: another process keeps taking it")

    def _owner(self) -> Process | None:
        try:
            return Process.from_json(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, KeyError):
            # Made but not yet filled in: its owner died in between, or needs a moment more.
            time.sleep(1.0)
            try:
                return Process.from_json(json.loads(self.path.read_text()))
            except (FileNotFoundError, json.JSONDecodeError, KeyError):
                return None

    def _gone(self, owner: Process) -> bool:
        if owner.is_here:
            return not owner.alive
        beat = self.run.read_json("heartbeat")
        last = beat["time"] if beat else self.path.stat().st_mtime
        return time.time() - float(last) > STALE_AFTER_S

    def release(self) -> None:
        """Give the lock back."""
        self.path.unlink(missing_ok=True)
