"""Child processes that may crash or hang, with what became of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecodeError, loads
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a child process said and how it ended."""

    returncode: int | None
    """Negative: ended by that signal; None: stopped at the time limit."""
    answer: Mapping[str, Any]
    """The JSON object on its stdout; empty where it did not get that far."""
    stderr: str
    seconds: float

    @property
    def end(self) -> str:
        """How it ended, for a person."""
        if self.returncode is None:
            return f"no answer within {self.seconds:.0f} s"
        if self.returncode < 0:
            return f"crashed ({signal.Signals(-self.returncode).name})"
        return f"exit code {self.returncode}"


def run_child(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Outcome:
    """Run a command that answers with one JSON object; at the time limit it is ended with all that it started.

    Args:
        environment: the whole environment of the child.
    """
    start = time.monotonic()
    child = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    returncode: int | None
    try:
        stdout, stderr = child.communicate(timeout=timeout_s)
        returncode = child.returncode
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        stdout, stderr = child.communicate()
        returncode = None
    try:
        answer = loads(stdout)
    except JSONDecodeError:
        answer = {}
    return Outcome(returncode, answer if isinstance(answer, dict) else {}, stderr, time.monotonic() - start)
