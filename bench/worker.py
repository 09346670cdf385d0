"""One process that trains a fleet: takes the run directories, resumes, isolates failures, and stops when asked to."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from rich.console import Console

from agents.registry import get as get_agent
from bench import checkpoint, devices, provenance
from bench.errors import UserError
from bench.failures import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOST, RunsFailed
from bench.fleet import Fleet, TrainOptions
from bench.lock import AskedToLetGo, LockLost, RunLock
from bench.offline import domain_version
from bench.offline_training import OfflineFleet
from bench.progress import Monitor
from bench.rundir import RunDir
from bench.sinks import TrackedRun, make_sinks
from bench.tasks import get as get_task
from bench.training import OnlineFleet

WANDB_PROJECT = "tdmpc2-bench"


class StopFlag:
    """Set by SIGTERM, SIGINT and SIGUSR2. The handler does nothing else; the loop looks at it at its safe points."""

    def __init__(self) -> None:
        self.is_set = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True

    def __call__(self) -> bool:
        return self.is_set


def train_runs(
    runs: Sequence[RunDir], options: TrainOptions, console: Console | None, interrupted: Callable[[], bool]
) -> int:
    """Train run directories to their budgets, as few fleets as their checkpoints allow. Returns the exit code.

    Raises:
        UserError: another process trains one of them, or the device does not exist.
    """
    devices.prepare(options.device, options.threads, options.pack)
    locks = [RunLock(run) for run in runs]
    taken: list[RunLock] = []
    try:
        for lock in locks:
            with _writing(lock.run):
                lock.acquire()
            taken.append(lock)
        asked = AskedToLetGo(taken)
        unfinished = [run for run in runs if run.progress(run.spec.budget).state != "done"]
        for run in unfinished:
            check_extendable(run, run.spec.budget_env_steps)
            run.check_version(domain_version([get_task(name) for name in run.spec.tasks]))
        facts = provenance.collect(options.device)
        for run in unfinished:
            with _writing(run):
                how = {
                    "pack": options.pack,
                    "cuda_graphs": options.cuda_graphs and get_agent(run.spec.agent).capturable,
                }
                run.begin_attempt({**facts, "fleet": len(unfinished), **how})
        pending = lockstep_groups(unfinished)
        failed = False
        while pending:
            outcome = _train_fleet(pending.pop(0), options, console, lambda: interrupted() or asked())
            if outcome is None:
                for run in unfinished:
                    if run.progress(run.spec.budget).state == "running":
                        run.end_attempt("interrupted")
                return EXIT_INTERRUPTED
            failed = failed or outcome.failed
            pending = lockstep_groups(outcome.survivors) + pending
        return EXIT_FAILED if failed else EXIT_DONE
    except LockLost as lost:
        sys.stderr.write(f"{lost}\n")
        return EXIT_LOST
    finally:
        for lock in taken:
            with contextlib.suppress(LockLost, OSError):  # on a full disk the run shows as stale
                lock.run.end_beat()
            lock.release()


@contextlib.contextmanager
def _writing(run: RunDir) -> Iterator[None]:
    """What cannot be written at the start of an attempt is one line for the user: nothing has been trained yet."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {run.path}: {error.strerror}; mend that and run again") from error


class Outcome:
    """How a fleet's training ended: whether runs failed, and which others still have to go on."""

    def __init__(self, failed: bool, survivors: Sequence[RunDir] = ()) -> None:
        self.failed, self.survivors = failed, list(survivors)


def _train_fleet(
    runs: list[RunDir], options: TrainOptions, console: Console | None, interrupted: Callable[[], bool]
) -> Outcome | None:
    """Train one fleet; None if it was interrupted. Failed runs are marked in their directories."""
    monitor = Monitor(runs, torch.device(options.device), console, options.pack)
    sinks = make_sinks(options.sinks, [_tracked(run) for run in runs], WANDB_PROJECT)
    fleet: Fleet | None = None
    kind = OnlineFleet if runs[0].spec.offline is None else OfflineFleet
    try:
        fleet = kind(runs, options, sinks, monitor, interrupted)
        return Outcome(failed=False) if fleet.train() else None
    except LockLost:
        raise
    except RunsFailed as failure:
        errors = failure.errors
    except Exception as whatever:  # noqa: BLE001 - whatever it is belongs into failed.json, with its traceback
        errors = dict.fromkeys(range(len(runs)), whatever)
    finally:
        for sink in sinks:
            sink.close()
        if fleet is not None:
            fleet.close()
    for index, error in errors.items():
        _mark_failed(runs[index], error, monitor)
    return Outcome(failed=True, survivors=[run for index, run in enumerate(runs) if index not in errors])


def _tracked(run: RunDir) -> TrackedRun:
    spec, saved = run.spec, checkpoint.saved(run)
    return TrackedRun(
        run_id=spec.run_id,
        folder=run.path,
        config=spec.model_dump(),
        group=f"{spec.agent}/{spec.variant}/{spec.task}",
        resumed_at=saved[-1] * spec.action_repeat if saved else 0,
    )


def check_extendable(run: RunDir, budget_env_steps: int) -> None:
    """Whether a run that reached a smaller budget can continue to this one.

    Raises:
        UserError: its replay was removed when it was done.
    """
    done = run.read_json("done.json")
    if done is not None and not done.get("replay_kept", True):  # offline there is none to keep
        raise UserError(
            f"{run.path} is done and its replay was removed, so it cannot continue to {budget_env_steps:,} env steps: "
            "move the directory away to train from scratch (only runs trained with --keep-replay can be extended)"
        )


def _mark_failed(run: RunDir, error: BaseException, monitor: Monitor) -> None:
    monitor.note(f"{run.spec.run_id} failed: {type(error).__name__}: {error}")
    try:
        run.mark_failed(error)
    except OSError as full:
        # The disk that stopped the run may also refuse the note about it; the run then shows as stale.
        sys.stderr.write(f"cannot write {run.path}/failed.json: {full.strerror}. The run failed with: {error}\n")


def lockstep_groups(runs: Sequence[RunDir]) -> list[list[RunDir]]:
    """Runs that can go on together: those whose newest checkpoint is at the same place of their clock.

    A fleet killed while it was writing its checkpoints has runs one checkpoint apart: if they all have an earlier one
    in common, they stay one fleet and go on from there. A run without a checkpoint stands at 0.
    """
    if not runs:
        return []
    places = {id(run): checkpoint.saved(run) or [0] for run in runs}
    if set.intersection(*(set(steps) for steps in places.values())):
        return [list(runs)]
    ordered = sorted(runs, key=lambda run: places[id(run)][-1])
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda run: places[id(run)][-1])]


def main(run_dirs: Sequence[Any], options: TrainOptions, quiet: bool = False) -> int:
    """Entry point of `bench worker`: train the run directories and say how it ended by the exit code."""
    runs = [RunDir(path) for path in run_dirs]
    for run in runs:
        run.info()
    return train_runs(runs, options, None if quiet else Console(), StopFlag())
