"""What the run directories say about the runs of a sweep. Nothing else is asked: no database, no memory of launches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.results_tree import Unreadable
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
    """The state of one run; one whose directory does not exist yet is pending, one that cannot be read has failed."""
    try:
        progress = directory.progress(spec.budget)
        if progress.state in ("pending", "stale") and directory.read_json("run.json") is not None:
            directory.info()  # what a launch would start is not taken for new because its run.json cannot be read
        error = _error(directory) if progress.state == "failed" else None
        done = directory.read_json("done.json") if progress.state == "pending" else None
        extendable = done is None or bool(done.get("replay_kept", True))
    except UserError as damage:
        progress, error, extendable = Progress("failed", 0, None, None, 0.0, None), str(damage), True
    return RunState(spec, directory, progress, error, extendable)


def read_all(folder: Path, specs: Iterable[RunSpec]) -> list[RunState]:
    """The states of a sweep's runs below its folder, in order."""
    return [read(RunDir(folder / spec.run_id), spec) for spec in specs]


def read_folder(folder: Path) -> tuple[list[RunState], list[Unreadable]]:
    """The states of every run directory below a folder, with the budgets that the directories state.

    Returns:
        The states; and the folders, and the directories whose run.json, that cannot be read.

    Raises:
        UserError: no such folder, or no run in it that can be read.
    """
    states = []
    directories, unreadable = find_runs(folder)
    for directory in directories:
        try:
            states.append(read(directory, directory.spec))
        except UserError as damage:
            unreadable.append(Unreadable(directory.path, str(damage).removeprefix(f"{directory.path}/")))
    if not states:
        said = f" that can be read ({unreadable[0]})" if unreadable else ""
        raise UserError(f"no run below {folder}{said}: give a sweep file or a folder of results")
    return states, unreadable


def _error(directory: RunDir) -> str:
    failure = directory.read_json("failed.json") or {}
    message = str(failure.get("message", "")).strip()
    first = message.splitlines()[0] if message else "no message"
    return f"{failure.get('class', 'Error')}: {first}"
