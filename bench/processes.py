"""Processes named so that a recycled pid is never mistaken for ours: host, pid and start time."""

from __future__ import annotations

import getpass
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Process:
    """One process of one machine."""

    host: str
    pid: int
    started_ticks: int
    """Clock ticks between the machine's boot and the start of the process (field 22 of /proc/<pid>/stat)."""
    space: str = ""
    """The machine's boot and the pid namespace: two machines, or containers of one, may have the same host name."""

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None where there is none (or only its remains)."""
        ticks = _started_ticks(pid)
        return None if ticks is None else cls(socket.gethostname(), pid, ticks, pid_space())

    @classmethod
    def current(cls) -> Process:
        """This process."""
        me = cls.of(os.getpid())
        assert me is not None
        return me

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Process:
        """The inverse of `to_json`."""
        return cls(value["host"], value["pid"], value["started_ticks"], value.get("space", ""))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether it belongs to this machine and could be seen from here."""
        return self.host == socket.gethostname() and self.space in ("", pid_space())

    @property
    def alive(self) -> bool:
        """Whether it still runs; false for a process of another machine, which cannot be seen from here."""
        return self.is_here and _started_ticks(self.pid) == self.started_ticks

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal, to exactly this process. Returns whether it was there to receive it."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def kill(processes: Sequence[Process]) -> list[Process]:
    """SIGKILL. Returns those that were there to be killed, once they are gone."""
    killed = [process for process in processes if process.signal(signal.SIGKILL)]
    wait_gone(killed, 5.0)
    return killed


def wait_gone(processes: Sequence[Process], timeout_s: float) -> bool:
    """Wait until none of the processes runs. Returns whether they are all gone."""
    deadline = time.monotonic() + timeout_s
    while any(process.alive for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def user_name() -> str:
    """The name of the user; the number where the system knows no name, as in a container with a foreign uid."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def pid_space() -> str:
    """Names the boot and the pid namespace that this process lives in."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().partition("-")[0]
    return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"


def _started_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()  # from field 3 on; the name before it may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])
