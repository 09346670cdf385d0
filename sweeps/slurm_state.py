"""What Slurm says about the jobs of launches: one squeue, and one sacct where jobs have left the queue.

It adds why to what run directories say, and tells which jobs can still start; it never decides the state of a run.
"""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import UserError
from sweeps.slurm_environment import clean

if TYPE_CHECKING:
    from sweeps.record import LaunchRecord

TIMEOUT_S = 60.0
"""A busy controller takes a while to answer; one that is down does not answer at all."""

ENDED = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"),
        *("PREEMPTED", "REVOKED", "GONE"),
    }
)
"""States from which a job does not come back; GONE is ours, for a job that neither squeue nor sacct knows."""


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
    found = {job_id: state for job_id, state in _squeue() if job_id in set(wanted)}
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
    """What a Slurm command answers.

    Raises:
        SlurmSilent: no such command, no answer, or a refusal; one line.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=clean())
    except FileNotFoundError as error:
        raise SlurmSilent(f"no {command[0]} here: call this on the cluster's login node") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmSilent(f"{command[0]} gave no answer within {TIMEOUT_S:.0f} s: see `scontrol ping`") from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SlurmSilent(f"{command[0]} does not answer: {words.removeprefix(f'{command[0]}: error: ')}")
    return done.stdout


def _squeue() -> Iterable[tuple[str, JobState]]:
    """This user's jobs, those that ended a moment ago included; one line for each task of an array."""
    text = ask("squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}", "--format=%i|%T|%r")
    for line in text.splitlines():
        job_id, state, reason = line.strip().split("|", 2)
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
