"""A process is named by more than its pid."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace

from waiting import wait_until

from bench.processes import Process, kill


def test_a_recycled_pid_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        process = Process.of(child.pid)
        assert process is not None
        stranger = replace(process, started_ticks=process.started_ticks - 1)
        assert not stranger.alive
        assert not stranger.signal(signal.SIGKILL)
        assert child.poll() is None
        assert not replace(process, host="elsewhere").alive
        assert Process.from_json(process.to_json()) == process
        process.signal(signal.SIGKILL)
        wait_until(lambda: not process.alive)  # a zombie counts as gone: nobody has reaped it yet
        assert Process.of(child.pid) is None
        assert kill([process]) == []
