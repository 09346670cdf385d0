"""One slot: takes the next fleet that nobody has, runs the worker for it, says how it ended, and takes the next.

The worker is a process of its own, so that a segmentation fault or the kernel's out-of-memory killer ends one fleet
and not the slot. Where fleets are packed, a slot has several such workers side by side, each with a fleet of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from bench.errors import UserError
from bench.failures import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOST
from bench.processes import Process
from bench.rundir import RunDir
from sweeps import snapshot
from sweeps.record import LaunchRecord

BEAT_EVERY_S = 10.0
POLL_S = 0.1
STDERR_TAIL_LINES = 20


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""What asks a slot or a worker to checkpoint and stop; a worker listens only once it has started."""

MOST_DEATHS = 3
"""A run whose attempts end without a word so often, all from the same checkpoint, has failed."""


class WorkerDied(Exception):
    """A worker ended without saying what became of its runs."""


class DiedRepeatedly(Exception):
    """Attempts at a run ended without a word, one after the other, and none reached another checkpoint."""


def run_slot(launch: str, index: int) -> None:
    """Work until no fleet of the launch is left, or until SIGTERM: then the worker is given time to checkpoint.

    Args:
        launch: folder of the launch.
        index: number of this slot.
    """
    Slot(LaunchRecord(Path(launch)), index).work()


@dataclass(frozen=True)
class Ended:
    """How a worker ended."""

    exit_code: int
    stderr: list[str]
    """The last lines."""


class Slot:
    """A slot of a launch, in the process that runs it."""

    own_session = True
    """Whether a worker gets a session of its own, and whatever is left of it is killed when it ends."""

    def __init__(self, record: LaunchRecord, index: int) -> None:
        self.record, self.index = record, index
        self.stopping = False

    def listen(self) -> None:
        """Let signals set the flag, and do nothing else."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)

    def work(self) -> None:
        """Take fleets until none is left: first those that train alone, then those that are packed."""
        self.listen()
        me = Process.current()
        self.record.write_slot(self.index, {"slot": me})
        taken = 1
        while taken and not self.stopping:  # again after the last one: the slot that had it may have died meanwhile
            taken = sum(self._side_by_side(me, pack) for pack in sorted(set(self.record.packs)))

    def _side_by_side(self, me: Process, pack: int) -> int:
        """Train fleets, `pack` of them at a time, until none is left that is packed so. Returns how many there were.

        Signals come to the main thread, which waits here; the threads look at what it notes.
        """
        roles = ["worker", *(f"worker-{number}" for number in range(1, pack))]
        with ThreadPoolExecutor(pack) as pool:
            lanes = [pool.submit(self._one_by_one, me, pack, role) for role in roles]
            return sum(lane.result() for lane in lanes)

    def _one_by_one(self, me: Process, pack: int, role: str) -> int:
        taken = 0
        while not self.stopping:
            fleet = self.next_fleet(me, pack, role)
            if fleet is None:
                break
            taken += 1
            self.end(fleet, self.train(fleet, role))
        return taken

    def next_fleet(self, me: Process, pack: int, role: str) -> int | None:
        """Claim the next fleet to train; None where there is none left."""
        return self.record.claim_next(self.index, me, pack, role)

    def end(self, fleet: int, exit_code: int | None) -> None:
        """Note that the work on a fleet has ended."""
        self.record.end_claim(fleet, exit_code)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def ready(self, run: RunDir) -> bool:
        """Whether a run is to be trained here and now; one that died too often at one place has failed."""
        if not is_open(run):
            return False
        deaths = run.silent_deaths()
        if deaths < MOST_DEATHS:
            return True
        reached, axis = run.newest_checkpoint() * run.spec.action_repeat, run.spec.axis.replace("_", " ")
        error = DiedRepeatedly(
            f"{deaths} attempts in a row ended without a word before the next checkpoint after {reached:,} {axis}"
            f"{self.how_attempts_ended()}"
        )
        self.note(run, error)
        return False

    def note(self, run: RunDir, error: Exception) -> None:
        """Mark a run failed."""
        _try(partial(run.mark_failed, error))

    def how_attempts_ended(self) -> str:
        """What else is known about attempts that ended without a word, to go behind a message."""
        return ""

    def train(self, fleet: int, role: str) -> int | None:
        """Run the worker for a fleet. Returns its last exit code; None where no run was left to train.

        A worker that was stopped because some of its runs were cancelled is started again for the others.
        """
        exit_code = None
        while not self.stopping:
            released = self.record.released()
            runs = [run for run in self.record.runs(fleet, released) if self.ready(run)]
            if not runs:
                break
            ended = self._run_worker(fleet, runs, role)
            exit_code = ended.exit_code
            if exit_code == EXIT_LOST:
                break  # its runs are in other hands: nothing is to be written to them
            # Slurm signals every process of a job: a worker that was just starting dies of it, perhaps before this one
            # has noticed its own.
            stopped = exit_code == EXIT_INTERRUPTED or -exit_code in STOP_SIGNALS
            asked = self.stopping or stopped or self.record.released() != released
            self._settle(fleet, runs, ended, asked)
            if self.record.released() == released:
                break
        return exit_code

    def _run_worker(self, fleet: int, runs: Sequence[RunDir], role: str) -> Ended:
        """Run the worker to its end; pass a request to stop on, and insist after the grace period."""
        program, *arguments = self.record.info["worker"]
        if program == self.record.info["python"]:
            program = sys.executable  # in a container, Python lies elsewhere
        command = [program, *arguments, *(str(run.path) for run in runs), *self.record.info["worker_options"]]
        if self.record.packs[fleet] > 1:
            command += ["--pack", str(self.record.packs[fleet])]
        errors = self.record.log(fleet, "err")
        with self.record.log(fleet, "out").open("ab") as out, errors.open("ab") as err:
            begin = err.tell()
            worker = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.env(),
                start_new_session=self.own_session,
            )
        process = Process.of(worker.pid)
        if process is not None:
            self.record.write_slot(self.index, {role: process})
        self._wait(worker, fleet, self.record.released())
        if self.own_session:
            _kill_group(worker.pid)  # environment processes that a crashed worker left behind
        text = errors.read_bytes()[begin:].decode(errors="replace")
        return Ended(worker.returncode, [line for line in text.splitlines() if line.strip()][-STDERR_TAIL_LINES:])

    def _wait(self, worker: subprocess.Popen[bytes], fleet: int, released: set[str]) -> None:
        deadline: float | None = None
        beaten_at = time.monotonic()
        while True:
            try:
                worker.wait(POLL_S)
                return
            except subprocess.TimeoutExpired:
                pass
            current = time.monotonic()
            if current - beaten_at > BEAT_EVERY_S:
                self.record.beat(self.index)
                beaten_at = current
                if (self.record.released() - released).intersection(self.record.fleets[fleet]):
                    worker.send_signal(signal.SIGTERM)  # some of its runs were cancelled: it goes on without them
            if self.stopping and deadline is None:
                worker.send_signal(signal.SIGTERM)
                deadline = current + float(self.record.info["grace_s"])
            if deadline is not None and current > deadline:
                worker.kill()

    def _settle(self, fleet: int, runs: Sequence[RunDir], ended: Ended, asked: bool) -> None:
        """Make every run's directory say what became of it: a worker that died could not do so itself.

        A worker that was asked to stop leaves unfinished runs to a later launch.
        """
        for run in runs:
            if not is_open(run):
                continue  # done, failed, or by now in other hands
            if asked:
                if ended.exit_code != EXIT_INTERRUPTED:  # else the worker itself said so
                    _try(run.end_beat)
                continue
            error = WorkerDied(_how(ended, self.record.log(fleet, "err")))
            _try(partial(run.mark_failed, error, exit_code=ended.exit_code, stderr=ended.stderr))

    def env(self) -> dict[str, str]:
        """The worker's environment: the code to run, its share of threads, and the GPUs that this slot may use."""
        env = {**os.environ, **snapshot.environment(self.record.info["code"])}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            env.setdefault(name, str(self.record.info["threads"]))
        if self.record.info["visible_gpus"] is None:
            return env
        visible = self.record.info["visible_gpus"][self.index]
        if visible is None:
            env.pop("CUDA_VISIBLE_DEVICES", None)  # submitit empties it
        else:
            env["CUDA_VISIBLE_DEVICES"] = visible
        return env


def is_open(run: RunDir) -> bool:
    """Whether a run is still to be trained, and by nobody else; a damaged directory is left alone."""
    try:
        return run.progress(run.spec.budget).state in ("pending", "stale")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return False


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _try(write: Callable[[], None]) -> None:
    """A note about a run that cannot be written (a full disk) must not end the slot; the run then shows as stale."""
    try:
        write()
    except (OSError, UserError) as error:
        sys.stderr.write(f"cannot note how a run ended: {error}\n")


def _how(ended: Ended, log: Path) -> str:
    """How a worker died, on one line."""
    code = ended.exit_code
    if code == -signal.SIGKILL:
        how = "the worker was killed by SIGKILL (out of memory, or by hand)"
    elif code < 0:
        how = f"the worker was killed by {signal.Signals(-code).name}"
    elif code in (EXIT_DONE, EXIT_FAILED):
        how = f"the worker ended with exit code {code} and left the run unfinished"
    else:
        how = f"the worker ended with exit code {code}"
    last = f"; its last line: {ended.stderr[-1].strip()[:300]}" if ended.stderr else ""
    return f"{how}{last} (log: {log})"
