"""One writer for each run directory."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from bench.errors import UserError
from bench.rundir import STALE_AFTER_S, RunDir


def process_started(pid: int) -> float | None:
    """When a process of this machine started, seconds since 1970; None if there is none. Tells a reused pid apart."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


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
                        f"run {self.run.spec.run_id} is being trained by process {owner['pid']} on {owner['host']}: "
                        "wait for it, or end that process"
                    ) from None
                self.path.unlink(missing_ok=True)
                continue
            me = {"host": socket.gethostname(), "pid": os.getpid(), "started": process_started(os.getpid())}
            with os.fdopen(handle, "w") as file:
                json.dump(me, file)
                file.flush()
                os.fsync(file.fileno())
            return
        raise UserError(f"cannot take {self.path}: another process keeps taking it")

    def _owner(self) -> dict[str, Any] | None:
        try:
            owner: dict[str, Any] = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except json.JSONDecodeError:
            # Made but not yet filled in: its owner died in between, or needs a moment more.
            time.sleep(1.0)
            try:
                owner = json.loads(self.path.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                return None
        return owner

    def _gone(self, owner: dict[str, Any]) -> bool:
        if owner["host"] == socket.gethostname():
            return process_started(owner["pid"]) != owner["started"]
        beat = self.run.read_json("heartbeat")
        last = beat["time"] if beat else self.path.stat().st_mtime
        return time.time() - float(last) > STALE_AFTER_S

    def release(self) -> None:
        """Give the lock back."""
        self.path.unlink(missing_ok=True)
