"""What Slurm says about the jobs of launches: one squeue, and one sacct where jobs have left the queue.

It adds why to what run directories say, and tells which jobs can still start; it never decides the state of a run.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import UserError
from sweeps.slurm_environment import clean

if TYPE_CHECKING:
    from sweeps.record import LaunchRecord

TIMEOUT_S = 60.0
"""A busy controller takes a while to answer; one that is down does not answer at all."""

PAUSES_S = (0.5, 2.0, 5.0)
"""Before a command that failed is tried again."""

ENDED = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
        *("PREEMPTED", "REVOKED", "GONE"),
    }
)
"""States from which a job does not come back; GONE is ours, for a job that neither squeue nor sacct knows."""

UNKNOWN = "UNKNOWN"
"""Ours too, for a job of which Slurm could not be asked: it may well be queued."""


class SlurmSilent(UserError):
    """Slurm gave no answer: its commands are not here, or its controller does not answer."""


@dataclass(frozen=True)
class JobState:
    """One job, or one task of an array."""

    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETING, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY …"""
    reason: str
    """Slurm's reason, such as Priority or AssocMaxJobsLimit; how it ended, for one that did; or empty."""

    @property
    def queued(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in ENDED

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason else self.state


def states(*launches: LaunchRecord) -> dict[str, JobState]:
    """The state of every job of some launches: job id (`41`, or `41_7` in an array) -> state.

    Raises:
        SlurmSilent: squeue is not here, or does not answer.
    """
    wanted = [job_id for launched in launches for job_id in launched.jobs().values()]
    if not wanted:
        return {}
    known = set(wanted)
    found = {job_id: state for job_id, state in _squeue(wanted) if job_id in known}
    missing = [job_id for job_id in wanted if job_id not in found]
    if missing:
        found |= _sacct(missing)
    gone = JobState("GONE", "it left the queue, and sacct does not know how")
    return {job_id: found.get(job_id, gone) for job_id in wanted}


def of_job(job_id: str) -> str:
    """The state of one job as the controller knows it.

    Args:
        job_id: `41`, or `41_7` for a task of an array; the plain number of an array would be all of its tasks.

    Raises:
        SlurmSilent: no answer.
    """
    words = ask("scontrol", "show", "job", job_id, "--oneliner")
    return dict(word.partition("=")[::2] for word in words.split())["JobState"]


def history(job_id: str) -> list[str]:
    """How the attempts of a job ended, oldest first; empty where sacct does not know."""
    try:
        text = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", "--jobs", job_id, "--format=State"
        )
    except SlurmSilent:
        return []
    return [
        line.partition(" ")[0] for line in text.splitlines() if line.partition(" ")[0] not in ("RUNNING", "PENDING")
    ]


def ask(*command: str) -> str:
    """What a Slurm command answers that may be given twice; a failure is tried again (see `answer`).

    Raises:
        SlurmSilent: no such command, no answer, or a refusal; one line.
    """
    done = answer(command, lambda words: "Invalid" not in words)
    if done.returncode != 0:
        words = (_words(done) or f"exit code {done.returncode}").splitlines()[-1]
        raise SlurmSilent(f"{command[0]} does not answer: {words.removeprefix(f'{command[0]}: error: ')}")
    return done.stdout


def answer(
    command: Sequence[str], passes: Callable[[str], bool], given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command, again after a failure that may pass, for a minute at most: controllers are often busy.

    Args:
        command: program and arguments.
        passes: whether a failure with these words may pass.
        given: standard input.

    Raises:
        SlurmSilent: no such command, or no answer in time.
    """
    deadline = time.monotonic() + TIMEOUT_S
    for pause_s in (*PAUSES_S, None):
        left_s = max(1.0, deadline - time.monotonic())
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=left_s, check=False, env=clean(), input=given
            )
        except FileNotFoundError as error:
            raise SlurmSilent(f"no {command[0]} here: call this on the cluster's login node") from error
        except subprocess.TimeoutExpired as error:
            raise SlurmSilent(f"{command[0]} gave no answer within {TIMEOUT_S:.0f} s: see `scontrol ping`") from error
        last = pause_s is None or time.monotonic() + pause_s > deadline
        if done.returncode == 0 or last or not passes(_words(done)):
            break
        time.sleep(pause_s or 0)
    return done


def _words(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip() or done.stdout.strip()


def _squeue(job_ids: Collection[str]) -> Iterable[tuple[str, JobState]]:
    """Those of some jobs that are queued or ended a moment ago, whoever submitted them; one for each array task."""
    arrays = ",".join(sorted({job_id.partition("_")[0] for job_id in job_ids}))
    try:
        text = ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={arrays}", "--format=%i|%T|%r")
    except SlurmSilent as silent:
        if "Invalid job id" in str(silent):  # asked for one job alone, which has left the queue
            return
        raise
    for line in text.splitlines():
        parts = line.strip().split("|", 2)
        if len(parts) == 3:
            job_id, state, reason = parts
            yield job_id, JobState(state, "" if reason == "None" else reason)


def _sacct(job_ids: Collection[str]) -> dict[str, JobState]:
    """How jobs ended, from the accounting; nothing where there is none."""
    arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
    try:
        text = ask("sacct", "--noheader", "--parsable2", f"--jobs={','.join(arrays)}", "--format=JobID,State,ExitCode")
    except SlurmSilent:
        return {}
    found: dict[str, JobState] = {}
    for line in text.splitlines():
        name, words, exit_code = line.split("|")
        job_id, _, step = name.partition(".")
        state, _, by = words.partition(" ")
        if step and state == "OUT_OF_MEMORY" and job_id in found:
            found[job_id] = JobState(state, f"step {step}")  # the job's own row only says FAILED
        elif not step:
            reason = by if state == "CANCELLED" else "" if exit_code == "0:0" else f"exit code {exit_code}"
            found[job_id] = JobState(state, reason)
    return {job_id: found[job_id] for job_id in job_ids if job_id in found}
