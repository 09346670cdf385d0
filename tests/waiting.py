"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sweeps import launches


def wait_until(condition: Callable[[], bool], timeout_s: float = 180.0) -> None:
    """Wait for a condition; fail if it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def wait_idle(folder: Path) -> None:
    """Wait until no launch of a sweep lives."""
    wait_until(lambda: not launches.live(folder))
