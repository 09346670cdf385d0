"""Launching a sweep: start what is neither running nor done, name what failed, retry, cancel."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import atomic
from bench.errors import UserError
from bench.lock import kept, locked
from bench.processes import Process, user_name
from bench.rundir import RunDir
from sweeps import executors, launches, measured, plan, record, selectors, snapshot, state
from sweeps.executor import Executor, Placement
from sweeps.expand import Sweep
from sweeps.measured import Measurement
from sweeps.plan import Fleet
from sweeps.record import LaunchRecord
from sweeps.spec import Resources
from sweeps.state import RunState

WORKER = (sys.executable, "-m", "bench", "worker")
"""Command that trains the run directories given to it."""

GRACE_S = 60.0
"""Time that a worker has for its checkpoint when it is cancelled."""


@dataclass(frozen=True)
class Launched:
    """What a launch did."""

    folder: Path
    record: LaunchRecord | None
    """None where there was nothing to start."""
    fleets: tuple[Fleet, ...]
    done: tuple[RunState, ...]
    failed: tuple[RunState, ...]
    """Failed before this launch, and left alone."""
    busy: Mapping[str, tuple[RunState, ...]]
    """Runs left alone because they are already taken: who has them -> runs."""
    ended: tuple[RunState, ...]
    """Runs that reached a smaller budget and cannot go on: they kept no replay."""


def worker_options(resources: Resources) -> list[str]:
    """What every worker of a sweep is told, besides its run directories; from `Executor.planned` resources."""
    options = {
        "--device": resources.device,
        "--env-workers": resources.env_workers,
        "--threads": resources.threads,
        "--checkpoint-every-s": resources.checkpoint_every_s,
    }
    switches = {
        "--video": resources.video,
        "--keep-replay": resources.keep_replay,
        "--cuda-graphs": resources.cuda_graphs,
    }
    flags = [flag for flag, on in switches.items() if on]
    sinks = [part for sink in resources.sinks for part in ("--sink", sink)]
    return [str(part) for option in options.items() for part in option] + flags + sinks


def launch(
    sweep: Sweep,
    results: Path,
    executor: Executor,
    wanted: Callable[[RunState], bool] = plan.is_startable,
    worker: Sequence[str] | None = None,
    known: Sequence[Measurement] | None = None,
) -> Launched:
    """Start the runs of a sweep that are wanted and that nobody else has.

    Two launches at once never start a run twice: each decides under a lock, and leaves alone what another launch owns.

    Args:
        sweep: the checked sweep.
        results: the results folder.
        executor: runs the slots.
        wanted: which runs to start, by their state; a failed run that is wanted loses its failure.
        worker: command that trains the run directories given to it; `WORKER` where it is not given.
        known: what was measured below the results folder; read where it is not given.

    Raises:
        UserError: the folder cannot be written, or the slots cannot be started.
    """
    folder = plan.sweep_folder(sweep.name, results)
    _check_whole([run for run in state.read_all(folder, sweep.runs) if wanted(run)])
    new = [path for path in (folder / ".launch", folder, results) if not path.exists()]
    try:
        (folder / ".launch").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder with --results") from error
    known = measured.read(results) if known is None else known
    sweep = replace(sweep, resources=executor.planned(sweep.resources))
    lock = folder / ".launch" / "lock"
    try:
        with locked(lock), kept(lock):
            live = launches.live(folder)
            runs = state.read_all(folder, sweep.runs)
            busy = _busy(live, runs)
            start = _to_start(runs, busy, wanted)
            fleets = plan.group(sweep, start, known)
            launched = _start(sweep, folder, fleets, executor, worker or WORKER, live) if fleets else None
    finally:
        for path in new:  # where nothing was started, nothing is left
            with contextlib.suppress(OSError):
                path.rmdir()
    chosen = {run.spec.run_id for run in start}
    return Launched(
        folder,
        launched,
        tuple(fleets),
        done=tuple(run for run in runs if run.state == "done"),
        failed=tuple(run for run in runs if run.state == "failed" and run.spec.run_id not in chosen),
        busy={owner: tuple(group) for owner, group in busy.items()},
        ended=tuple(run for run in runs if not run.extendable),
    )


def rehearse(sweep: Sweep, results: Path, executor: Executor, known: Sequence[Measurement] | None = None) -> list[str]:
    """The scripts that a launch would submit, in order; none on this machine. Writes nothing.

    Only the time, in the launch's name, will be another.

    Raises:
        UserError: the executor would refuse.
    """
    sweep = replace(sweep, resources=executor.planned(sweep.resources))
    folder = plan.sweep_folder(sweep.name, results)
    runs = state.read_all(folder, sweep.runs)
    start = _to_start(runs, _busy(launches.live(folder), runs), plan.is_startable)
    _check_whole(start)
    fleets = plan.group(sweep, start, measured.read(results) if known is None else known)
    if not fleets:
        return []
    root = folder.absolute() / ".launch"
    code = root / "code" / snapshot.content_hash()
    return executor.scripts(
        root / record.new_name(), str(code), executor.place(sweep.resources, [fleet.pack for fleet in fleets])
    )


def _check_whole(start: Sequence[RunState]) -> None:
    """Whether the data sets that runs learn from are here, and the checkpoints that they start from; once they have
    their own, they need no other checkpoint.

    Raises:
        UserError: they are not; says what gets them.
    """
    if lines := plan.lacking(start):
        raise UserError(f"{lines[0]}; nothing was started")


def _to_start(
    runs: Sequence[RunState], busy: Mapping[str, Sequence[RunState]], wanted: Callable[[RunState], bool]
) -> list[RunState]:
    """The runs that are wanted and that nobody has."""
    taken = {run.spec.run_id for group in busy.values() for run in group}
    return [run for run in runs if run.spec.run_id not in taken and wanted(run)]


def _busy(live: Sequence[LaunchRecord], runs: Sequence[RunState]) -> dict[str, list[RunState]]:
    """Runs that are training, or queued by a launch that lives, by who has them."""
    owners = {run_id: f"launch {launched.name}" for launched in live for run_id in launched.owned()}
    busy: dict[str, list[RunState]] = {}
    for run in runs:
        queued = run.state in plan.STARTABLE and run.spec.run_id in owners
        if queued or run.state == "running":
            busy.setdefault(owners.get(run.spec.run_id, _owner(run)), []).append(run)
    return busy


def _owner(run: RunState) -> str:
    beat = run.directory.read_json("heartbeat") or {}
    return f"process {beat.get('pid')} on {beat.get('host')}"


def _start(
    sweep: Sweep,
    folder: Path,
    fleets: Sequence[Fleet],
    executor: Executor,
    worker: Sequence[str],
    live: Sequence[LaunchRecord],
) -> LaunchRecord:
    placement = executor.place(sweep.resources, [fleet.pack for fleet in fleets])
    launched: LaunchRecord | None = None
    before = [_Before.of(run.directory) for fleet in fleets for run in fleet.runs]
    run_ids = [run_id for fleet in fleets for run_id in fleet.run_ids]
    copies = set((folder / ".launch" / "code").glob("*"))
    try:
        for earlier in live:
            earlier.release(run_ids)  # a failed run of a fleet that still trains: what becomes of it is now our concern
        launched = _record(sweep, folder, fleets, executor, worker, placement)
        for fleet in fleets:
            for run in fleet.runs:
                directory = RunDir.create(folder, run.spec)
                if directory.spec != run.spec:
                    directory.update_spec(run.spec)
                (directory.path / "failed.json").unlink(missing_ok=True)
        executor.submit(launched)
    except (UserError, OSError) as error:
        _undo(launched, before)
        if launched is None or not launched.jobs():
            for copy in set((folder / ".launch" / "code").glob("*")) - copies:
                shutil.rmtree(copy, ignore_errors=True)
            remove_if_empty(folder / ".launch" / "code", folder / ".launch")
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot write below {folder}: {error.strerror}; nothing was started: make room, or choose another folder "
            "with --results"
        ) from error
    return launched


def _record(
    sweep: Sweep,
    folder: Path,
    fleets: Sequence[Fleet],
    executor: Executor,
    worker: Sequence[str],
    placement: Placement,
) -> LaunchRecord:
    """Write down what is about to be launched, and copy the code that it will run."""
    code = snapshot.take(folder / ".launch")
    info: dict[str, Any] = {
        "sweep": str(sweep.path.resolve()),
        "set": list(sweep.assignments),
        "user": user_name(),
        "executor": executor.name,
        "code": str(code.resolve()),
        "python": sys.executable,
        "worker": list(worker),
        "worker_options": worker_options(sweep.resources),
        "slots": placement.slots,
        "tasks": placement.tasks,
        "threads": sweep.resources.threads,
        "visible_gpus": placement.visible_gpus,
        "grace_s": GRACE_S,
        "fleets": [{"title": fleet.title(), "runs": fleet.run_ids, "pack": fleet.pack} for fleet in fleets],
        "retried": [
            {"run": run.spec.run_id, "error": run.error} for fleet in fleets for run in fleet.runs if run.error
        ],
        **placement.info,
    }
    return LaunchRecord.create(folder, sweep.path, info)


@dataclass(frozen=True)
class _Before:
    """What a run directory said before a launch; None for a file that was not there."""

    directory: RunDir
    files: Mapping[str, bytes | None]

    @classmethod
    def of(cls, directory: RunDir) -> _Before:
        paths = {name: directory.path / name for name in ("run.json", "failed.json")}
        return cls(directory, {name: path.read_bytes() if path.exists() else None for name, path in paths.items()})

    def restore(self, root: Path) -> None:
        """Make the directory, below the folder of the sweep, what it was."""
        path = self.directory.path
        for name, content in self.files.items():
            if content is None:
                (path / name).unlink(missing_ok=True)
            elif not (path / name).exists() or (path / name).read_bytes() != content:
                atomic.write_bytes(path / name, content)
        if self.files["run.json"] is None:
            remove_if_empty(path, root)


def remove_if_empty(folder: Path, root: Path) -> None:
    """Remove a folder, and those around it below `root`, as far as they are empty."""
    with contextlib.suppress(OSError):
        while folder != root:
            folder.rmdir()
            folder = folder.parent


def _undo(launched: LaunchRecord | None, before: Sequence[_Before]) -> None:
    """After a launch that did not come about: runs are as they were. What is queued stays recorded."""
    queued: set[str] = set()
    if launched is not None:
        queued = {
            run_id for slot in launched.jobs() for fleet in launched.tasks[slot] for run_id in launched.fleets[fleet]
        }
        if not queued:
            shutil.rmtree(launched.path, ignore_errors=True)
    for one in before:
        if not any(one.directory.path.match(run_id) for run_id in queued):
            one.restore(one.directory.path.parents[2])


@dataclass(frozen=True)
class Cancelled:
    """What a cancellation did."""

    stopped: tuple[str, ...]
    """Launches that were stopped, or that lost some runs, described."""
    runs: tuple[str, ...]
    """Run ids that no longer train or wait."""
    killed: tuple[Process, ...]
    elsewhere: tuple[str, ...]
    """Launches of other machines, which can only be stopped there."""


def cancel(folder: Path, patterns: Sequence[str] = (), grace_s: float = GRACE_S) -> Cancelled:
    """Stop a sweep's launches, or only the runs that a pattern names. Workers checkpoint first: a launch goes on later.

    Args:
        folder: the sweep's folder.
        patterns: globs over run ids (see `selectors.matches`); none: everything.
        grace_s: time for a worker's checkpoint, after which it is killed; on Slurm the cluster's KillWait says it.
    """
    stopped, runs, killed, elsewhere = [], [], [], []
    for launched in launches.with_jobs(launches.records(folder)):
        executor = executors.of(launched)
        processes = [process for slot in launched.slots() for process in slot.processes.values()]
        if not launched.alive and not any(process.alive for process in processes):
            continue
        if not executor.reaches(launched):
            elsewhere.append(executor.describe(launched))
            continue
        owned = launched.owned()
        meant = {run_id for run_id in owned if not patterns or selectors.matches(run_id, patterns)}
        if not meant and patterns:
            continue
        stopped.append(executor.describe(launched))
        runs += sorted(meant)
        before = launched.released()
        launched.release(meant)
        try:
            killed += executor.cancel(launched, meant if patterns else None, grace_s)
        except UserError:  # its jobs are still queued: they must not be forgotten
            launched.take_back(meant - before)
            raise
    return Cancelled(tuple(stopped), tuple(runs), tuple(killed), tuple(elsewhere))
