"""One slot in a Slurm job: works off the fleets that the launch gave it, and has itself queued again when it must stop.

Signals only set a flag. Slurm sends SIGUSR2 before the time limit, and SIGTERM at a preemption, a requeue or a
cancellation. The worker checkpoints; then the slot asks Slurm whether the job is still to run, and if so and work is
left, requeues it. A job that was killed without a word (a dead node) is requeued by Slurm itself, and goes on from the
last checkpoint. Where its earlier attempt lives on, cut off from Slurm, the new one asks it to let go of its runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench.lock import RunLock
from bench.processes import Process
from bench.provenance import job_id
from bench.rundir import RunDir
from sweeps import slurm_environment, slurm_state
from sweeps.record import LaunchRecord
from sweeps.slot import Slot, is_open
from sweeps.slurm_state import SlurmSilent

ASK_EVERY_S = 2.0
REQUEUE_TRIES = 6
"""A controller that restarts is back within seconds."""

HELD_BACK = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)


class AttemptsExhausted(Exception):
    """A job was started as often as its profile allows."""


def run_slurm_slot(launch: str, index: int) -> None:
    """Work off the fleets of one slot. This is what submitit calls in the job.

    Args:
        launch: folder of the launch.
        index: number of the slot.
    """
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
    SlurmSlot(LaunchRecord(Path(launch)), index, attempt).work()


class SlurmSlot(Slot):
    """A slot of a launch in a job of its own, of which this is one attempt."""

    own_session = False  # Slurm signals and kills what belongs to the job; nothing may leave it

    def __init__(self, record: LaunchRecord, index: int, attempt: int) -> None:
        super().__init__(record, index)
        self.attempt = attempt
        self._todo = list(record.tasks[index])
        self._taking = threading.Lock()

    @property
    def superseded(self) -> bool:
        """Whether a later attempt of this job has begun: this one is then nobody's any more."""
        return self.record.attempt(self.index) > self.attempt

    def work(self) -> None:
        """Train the slot's fleets in order, then end; or stop, and queue again."""
        self.listen()
        if self.superseded:
            return
        self.record.write_slot(self.index, {}, attempt=self.attempt)
        super().work()
        if self.stopping and not self.superseded and self._left():
            requeue()

    def next_fleet(self, me: Process, pack: int, role: str) -> int | None:
        """The slot's own next fleet; whether an earlier attempt began it does not matter."""
        with self._taking:
            for fleet in [fleet for fleet in self._todo if self.record.packs[fleet] == pack]:
                if self.superseded:
                    break
                self._todo.remove(fleet)
                if self._may_try(fleet):
                    self.record.claim(fleet, self.index, me, role)
                    return fleet
        return None

    def end(self, fleet: int, exit_code: int | None) -> None:
        """Note the end of the work on a fleet, unless it goes on in the job's next attempt."""
        if not self.stopping and not self.superseded:
            self.record.end_claim(fleet, exit_code)

    def _left(self) -> bool:
        """Whether any run of this slot is still to be trained."""
        return any(is_open(run) for fleet in self.record.tasks[self.index] for run in self.record.runs(fleet))

    def _may_try(self, fleet: int) -> bool:
        """Whether the attempts are not used up; if they are, what is unfinished has failed."""
        most = self.record.info["profile"]["max_attempts"]
        if self.attempt <= most:
            return True
        for run in self.record.runs(fleet):
            if is_open(run):
                reason = f"the job was started {most} times (max_attempts of the profile){self.how_attempts_ended()}"
                self.note(run, AttemptsExhausted(reason))
        return False

    def ready(self, run: RunDir) -> bool:
        """As `Slot.ready`, once an earlier attempt of this job has let go of the run."""
        self._wait_for_earlier_attempt(run)
        return super().ready(run)

    def _wait_for_earlier_attempt(self, run: RunDir) -> None:
        """Wait while an earlier attempt of this job holds the run: one that lives checkpoints and ends when it is asked
        to; one that cannot be seen has to be silent long enough."""
        lock = RunLock(run)
        while not self.stopping and not self.superseded:
            holder = lock.holder()
            if holder is None or holder.job_id != job_id():
                return
            lock.ask_for()
            time.sleep(ASK_EVERY_S)

    def how_attempts_ended(self) -> str:
        """`; Slurm's states of the job: NODE_FAIL, TIMEOUT`, where sacct knows them."""
        history = slurm_state.history(job_id() or "")
        return f"; Slurm ended this job's attempts as: {', '.join(history)}" if history else ""


def requeue() -> bool:
    """Queue this job again, unless it was cancelled or is queued again already. Returns whether it did.

    Called from the main loop, never from a signal's handler: requeueing ends the job's processes, `scontrol` itself
    included, which must have done its work by then.
    """
    job = job_id()  # of an array's task with its number: the task started last has the array's own SLURM_JOB_ID
    assert job is not None
    for _ in range(REQUEUE_TRIES):
        try:
            state = slurm_state.of_job(job)
            if state != "RUNNING":
                sys.stderr.write(f"job {job} is {state}: not queued again\n")
                return False
            _scontrol_requeue(job)
            sys.stderr.write(f"job {job} queued again\n")
            return True
        except SlurmSilent as error:
            sys.stderr.write(f"cannot queue job {job} again yet: {error}\n")
            time.sleep(ASK_EVERY_S)
    return False


def _scontrol_requeue(job: str) -> None:
    done = subprocess.run(
        ["scontrol", "requeue", job],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        preexec_fn=_hold_signals_back,
        timeout=slurm_state.TIMEOUT_S,
        env=slurm_environment.clean(),
    )
    if done.returncode != 0:
        raise SlurmSilent((done.stderr or done.stdout).strip() or f"scontrol ended with {done.returncode}")


def _hold_signals_back() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
