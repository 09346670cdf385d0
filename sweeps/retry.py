"""Which runs a retry starts again, and what it may change: how they are executed, and never what they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from bench.errors import UserError
from sweeps import failures, launches, selectors
from sweeps.spec import SweepFile
from sweeps.state import RunState

DECISIVE = ("agents", "overrides", "grid", "num_envs")
"""Keys of a sweep file that make another run."""


def wanted(
    failed: bool, stale: bool, patterns: Sequence[str] = (), classes: Collection[str] = ()
) -> Callable[[RunState], bool]:
    """Which runs are meant.

    Args:
        failed: failed runs.
        stale: runs whose process is gone.
        patterns: only those that a pattern names, where there are any (see `selectors.matches`).
        classes: only those that failed for one of these reasons, where there are any (see `failures.NAMES`).
    """
    states = {name for name, on in (("failed", failed), ("stale", stale)) if on}

    def _wanted(run: RunState) -> bool:
        if run.state not in states or (patterns and not selectors.matches(run.spec.run_id, patterns)):
            return False
        return not classes or run.state != "failed" or failures.read(run).kind.name in classes

    return _wanted


def check_assignments(assignments: Sequence[str], folder: Path) -> None:
    """Whether what is set leaves the runs what they are. What an earlier launch of the sweep set may be set again: its
    runs are found only so.

    Args:
        assignments: `key=value`.
        folder: the sweep's folder.

    Raises:
        UserError: a hyperparameter, or another key that makes another run.
    """
    launched = {assignment for earlier in launches.records(folder) for assignment in earlier.info["set"]}
    for assignment in assignments:
        first, dot, _ = assignment.partition("=")[0].strip().partition(".")
        hyperparameter = bool(dot) and first not in (*SweepFile.model_fields, "cluster")
        if (hyperparameter or first in DECISIVE) and assignment not in launched:
            raise UserError(
                f"--set {assignment}: it would make another run, and a retry goes on with the same one: change "
                f"resources.… or cluster.… here, or start other runs with `bench sweep launch FILE --set {assignment}`"
            )
