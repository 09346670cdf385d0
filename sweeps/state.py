"""What the run directories say about the runs of a sweep. Nothing else is asked: no database, no memory of launches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.run_progress import Progress
from bench.rundir import RunDir, find_runs
from bench.runspec import RunSpec

STATES = ("pending", "running", "stale", "failed", "done")


@dataclass(frozen=True)
class RunState:
    """One run of a sweep and where it is."""

    spec: RunSpec
    directory: RunDir
    progress: Progress
    error: str | None
    """What stopped a failed run, on one line."""
    extendable: bool = True
    """False for a run that reached a smaller budget and kept no replay to go on with."""

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return self.progress.state

    @property
    def left(self) -> int:
        """What lies between it and its budget, on its clock (agent steps; updates offline); 0 when done."""
        if self.state == "done":
            return 0
        return max(0, self.spec.clock_budget - self.progress.reached // self.spec.action_repeat)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the budget at the speed of the heartbeat; None where it does not run or has none yet."""
        speed = self.progress.speed
        return self.left / speed if self.state == "running" and speed else None


def read(directory: RunDir, spec: RunSpec) -> RunState:
    """The state of one run; one whose directory does not exist yet is pending, a damaged one has failed."""
    try:
        progress = directory.progress(spec.budget)
        error = _error(directory) if progress.state == "failed" else None
        done = directory.read_json("done.json") if progress.state == "pending" else None
        extendable = done is None or bool(done.get("replay_kept", True))
    except UserError as damage:
        progress, error, extendable = Progress("failed", 0, None, None, 0.0, None), str(damage), True
    return RunState(spec, directory, progress, error, extendable)


def read_all(folder: Path, specs: Iterable[RunSpec]) -> list[RunState]:
    """The states of a sweep's runs below its folder, in order."""
    return [read(RunDir(folder / spec.run_id), spec) for spec in specs]


def read_folder(folder: Path) -> list[RunState]:
    """The states of every run directory below a folder, with the budgets that the directories state.

    Raises:
        UserError: no such folder, or no run in it, or a run.json that cannot be read.
    """
    states = [read(directory, directory.spec) for directory in find_runs(folder)]
    if not states:
        raise UserError(f"no run below {folder}: give a sweep file or a folder of results")
    return states


def _error(directory: RunDir) -> str:
    failure = directory.read_json("failed.json") or {}
    message = str(failure.get("message", "")).strip()
    first = message.splitlines()[0] if message else "no message"
    return f"{failure.get('class', 'Error')}: {first}"
