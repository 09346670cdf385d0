"""Launching a sweep: start what is neither running nor done, name what failed, retry, cancel."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.errors import UserError
from bench.processes import Process
from bench.rundir import RunDir
from sweeps import devices, measured, plan, record
from sweeps.expand import Sweep
from sweeps.plan import Fleet
from sweeps.record import LaunchRecord
from sweeps.spec import Resources
from sweeps.state import RunState

WORKER = (sys.executable, "-m", "bench", "worker")
"""Command that trains the run directories given to it."""

GRACE_S = 60.0
"""Time that a worker has for its checkpoint when it is cancelled."""


class Executor(Protocol):
    """A way to run the slots of a launch: on this machine, or on a cluster."""

    name: str

    def submit(self, record: LaunchRecord) -> None:
        """Start jobs that pull the fleets of a recorded launch, and return at once."""
        ...

    def cancel(self, record: LaunchRecord, run_ids: Collection[str] | None, grace_s: float) -> list[Process]:
        """Stop a launch, or only its work on some runs; after `grace_s` seconds by force.

        Returns the processes stopped by force.
        """
        ...

    def describe(self, record: LaunchRecord) -> str:
        """Which jobs a launch has, on one line."""
        ...


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
    """What every worker of a sweep is told, besides its run directories."""
    options = {
        "--device": devices.resolve(resources.device),
        "--env-workers": resources.env_workers,
        "--threads": threads(resources),
        "--checkpoint-every-s": resources.checkpoint_every_s,
    }
    flags = [flag for flag, on in (("--video", resources.video), ("--keep-replay", resources.keep_replay)) if on]
    sinks = [part for sink in resources.sinks for part in ("--sink", sink)]
    return [str(part) for option in options.items() for part in option] + flags + sinks


def threads(resources: Resources) -> int:
    """Threads of one learner: as asked, else this machine's cores shared by the workers of all slots."""
    workers = resources.slots * max(resources.pack.values())
    return resources.threads or max(1, len(os.sched_getaffinity(0)) // workers)


def visible_gpus(resources: Resources, slots: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each slot: its share of `resources.gpus`, else what this process sees (None: all)."""
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if resources.gpus is None:
        return [inherited] * slots
    names = inherited.split(",") if inherited else None
    try:
        chosen = [names[gpu] if names else str(gpu) for gpu in resources.gpus]
    except IndexError as error:
        raise UserError(
            f"resources.gpus is {list(resources.gpus)}, but CUDA_VISIBLE_DEVICES shows {inherited} only"
        ) from error
    return [chosen[slot % len(chosen)] for slot in range(slots)]


def launch(
    sweep: Sweep,
    results: Path,
    executor: Executor,
    wanted: Callable[[RunState], bool] = plan.is_startable,
    worker: Sequence[str] | None = None,
) -> Launched:
    """Start the runs of a sweep that are wanted and that nobody else has.

    Two launches at once never start a run twice: each decides under a lock, and leaves alone what another launch owns.

    Args:
        sweep: the checked sweep.
        results: the results folder.
        executor: runs the slots.
        wanted: which runs to start, by their state; a failed run that is wanted loses its failure.
        worker: command that trains the run directories given to it; `WORKER` where it is not given.

    Raises:
        UserError: the folder cannot be written, or the slots cannot be started.
    """
    folder = plan.sweep_folder(sweep.name, results)
    try:
        (folder / ".launch").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder with --results") from error
    known = measured.read(results)
    with record.locked(folder / ".launch" / "lock"):
        runs = plan.make(sweep, results).runs
        busy = _busy(folder, runs)
        taken = {run.spec.run_id for group in busy.values() for run in group}
        start = [run for run in runs if run.spec.run_id not in taken and wanted(run)]
        fleets = plan.group(sweep, start, known)
        launched = _start(sweep, folder, fleets, executor, worker or WORKER) if fleets else None
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


def _busy(folder: Path, runs: Sequence[RunState]) -> dict[str, list[RunState]]:
    """Runs that are training, or queued by a launch that lives, by who has them."""
    live = record.live(folder)
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
    sweep: Sweep, folder: Path, fleets: Sequence[Fleet], executor: Executor, worker: Sequence[str]
) -> LaunchRecord:
    slots = plan.slots(sweep.resources.slots, fleets)
    info: dict[str, Any] = {
        "sweep": str(sweep.path.resolve()),
        "set": list(sweep.assignments),
        "user": getpass.getuser(),
        "executor": executor.name,
        "worker": list(worker),
        "worker_options": worker_options(sweep.resources),
        "slots": slots,
        "threads": threads(sweep.resources),
        "visible_gpus": visible_gpus(sweep.resources, slots),
        "grace_s": GRACE_S,
        "fleets": [{"title": fleet.title(), "runs": fleet.run_ids, "pack": fleet.pack} for fleet in fleets],
        "retried": [
            {"run": run.spec.run_id, "error": run.error} for fleet in fleets for run in fleet.runs if run.error
        ],
    }
    run_ids = [run_id for fleet in fleets for run_id in fleet.run_ids]
    for earlier in record.live(folder):
        earlier.release(run_ids)  # a failed run of a fleet that still trains: what becomes of it is now our concern
    launched = LaunchRecord.create(folder, sweep.path, info)
    for fleet in fleets:
        for run in fleet.runs:
            directory = RunDir.create(folder, run.spec)
            if directory.spec != run.spec:
                directory.update_spec(run.spec)
            (directory.path / "failed.json").unlink(missing_ok=True)
    executor.submit(launched)
    return launched


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


def cancel(folder: Path, executor: Executor, patterns: Sequence[str] = (), grace_s: float = GRACE_S) -> Cancelled:
    """Stop a sweep's launches, or only the runs that a pattern names. Workers checkpoint first: a launch goes on later.

    Args:
        folder: the sweep's folder.
        executor: what runs the slots.
        patterns: globs over run ids (see `record.matches`); none: everything.
        grace_s: time for a worker's checkpoint, after which it is killed.
    """
    stopped, runs, killed, elsewhere = [], [], [], []
    for launched in record.records(folder):
        processes = [process for slot in launched.slots() for process in slot.processes.values()]
        if not launched.alive and not any(process.alive for process in processes):
            continue
        if launched.info["host"] != socket.gethostname():
            elsewhere.append(executor.describe(launched))
            continue
        owned = launched.owned()
        meant = {run_id for run_id in owned if not patterns or record.matches(run_id, patterns)}
        if not meant and patterns:
            continue
        stopped.append(executor.describe(launched))
        runs += sorted(meant)
        launched.release(meant)
        killed += executor.cancel(launched, meant if patterns else None, grace_s)
    return Cancelled(tuple(stopped), tuple(runs), tuple(killed), tuple(elsewhere))
