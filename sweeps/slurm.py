"""Launching on a Slurm cluster, through submitit: arrays of jobs that outlive the shell, one task for each slot."""

from __future__ import annotations

import itertools
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError
from bench.processes import Process
from sweeps import sizing, slurm_environment, slurm_limits, slurm_state, snapshot
from sweeps.cluster import Profile
from sweeps.executor import Placement
from sweeps.record import LaunchRecord
from sweeps.slurm_limits import Limits, shares
from sweeps.slurm_slot import run_slurm_slot
from sweeps.spec import Resources

if TYPE_CHECKING:
    import submitit


GRACE_SHARE = 0.8
"""Of the time between signal and time limit: what a worker has for its checkpoint; the rest is for queueing again."""


class PartlySubmitted(UserError):
    """Slurm took some arrays of a launch and refused the next."""


class SubmissionFailed(Exception):
    """sbatch did not take an array; in its words."""


def _reason(words: str) -> str:
    return (words.strip().splitlines() or [""])[-1].removeprefix("sbatch: error: ")


@dataclass(frozen=True)
class Chunk:
    """One submission: the slots `first` to `first + count - 1`, at most `parallel` of them at a time."""

    first: int
    count: int
    parallel: int
    after: int | None
    """Number of the chunk that has to end before; None where nothing has to."""


class SlurmExecutor:
    """Jobs on a cluster, as a profile describes them.

    Args:
        profile: where and with what jobs run.
        source: the profile's name or path, for messages.
    """

    name = "slurm"

    def __init__(self, profile: Profile, source: str) -> None:
        self.profile, self.source = profile, source

    # Before anything is written

    def place(self, resources: Resources, packs: Sequence[int]) -> Placement:
        """How fleets are spread over jobs: one each (or one pack), or several in turn where the user may not submit as
        many.

        Asks Slurm for its limits, and whether it would take such a job.

        Raises:
            UserError: no sbatch, no answer, an unknown partition, or a job that Slurm would refuse.
        """
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError("no sbatch on the PATH: launch from the cluster's login node, or load its slurm module")
        limits = slurm_limits.read(self.profile.account, self.profile.qos)
        self._check_partition()
        units = _units(packs)
        slots = len(units) if limits.submittable is None else min(len(units), limits.submittable)
        if slots < 1:
            raise UserError(
                f"Slurm lets you submit {limits.max_submit} jobs at a time ({limits.source}) and they are all taken: "
                "wait for some to end, or cancel some"
            )
        tasks = [[fleet for unit in units[slot::slots] for fleet in unit] for slot in range(slots)]
        self._rehearse(limits, slots)
        return Placement(
            slots=slots,
            visible_gpus=None,
            tasks=tasks,
            info={
                "profile": self.profile.model_dump(mode="json"),
                "profile_source": self.source,
                "max_array_size": limits.max_array_size,
                "grace_s": GRACE_SHARE * self.profile.signal_s,
            },
        )

    def planned(self, resources: Resources) -> Resources:
        """A GPU if the profile asks for one, unless the sweep says otherwise; a job's cores for its learner."""
        gpu = "cuda" if self.profile.gpus.count else "cpu"
        device = gpu if resources.device == "auto" else resources.device
        cores = max(1, self.profile.cpus // max(resources.pack.values()))
        return resources.model_copy(
            update={
                "device": device,
                "threads": resources.threads or cores,
                "env_workers": sizing.env_workers(resources, device, cores),
                "slots": self.profile.parallel,
                "gpu_memory_gb": resources.gpu_memory_gb or self.profile.gpus.memory_gb,
            }
        )

    def gpus_per_slot(self, resources: Resources) -> float:
        """Those of a job."""
        return float(self.profile.gpus.count)

    def _check_partition(self) -> None:
        known = slurm_limits.partitions()
        wanted = self.profile.partition
        names = wanted.split(",") if wanted else [name for name, found in known.items() if found.default]
        for name in names:
            if name not in known:
                raise UserError(
                    f"{self.source}: partition: Slurm has no partition '{name}': valid are {', '.join(known)}"
                )
        longest = [known[name].max_min for name in names]
        limits = [minutes for minutes in longest if minutes is not None]
        if limits and len(limits) == len(longest) and self.profile.time_min > max(limits):
            raise UserError(
                f"{self.source}: time_h: {self.profile.time_h:g} h is more than partition {' or '.join(names)} allows "
                f"({max(limits) / 60:g} h), and such a job would wait for ever: lower time_h (runs continue over jobs)"
            )

    def _rehearse(self, limits: Limits, slots: int) -> None:
        """Ask Slurm whether it would take the first submission, without submitting it."""
        chunk = chunks(slots, limits.max_array_size, self.profile.parallel)[0]
        text = _script(self._submitit(Path("launch")), self._parameters("rehearsal", chunk, None, "code"), chunk)
        try:
            slurm_limits.test_only(text)
        except slurm_state.SlurmSilent as error:
            words = str(error).removeprefix("sbatch does not answer: ")
            raise UserError(
                f"Slurm refuses such a job: {words}; nothing was submitted (profile {self.source})"
            ) from error

    def remarks(self) -> list[str]:
        """Which variables of the shell are ignored."""
        remark = slurm_environment.remark()
        return [remark] if remark else []

    # Submission

    def submit(self, record: LaunchRecord) -> None:
        """Submit every slot, in as many arrays as the cluster's MaxArraySize asks for.

        Raises:
            PartlySubmitted: Slurm took some and refused others.
            UserError: Slurm refused the first, or the disk is full: nothing of the launch is queued.
        """
        submitted: list[str] = []
        for chunk in self._chunks(record):
            try:
                job_id = self._submit_chunk(record, chunk, submitted)
                record.add_jobs(job_id, chunk.first, chunk.count, array=chunk.count > 1)
                submitted.append(job_id)
            except SubmissionFailed as error:
                raise self._refused(record, submitted, chunk, str(error)) from error
            except KeyboardInterrupt:
                self._cancel_lost(record, submitted)
                raise
            except OSError as error:
                slurm_state.ask("scancel", f"--name={job_name(record.path)}")
                record.forget_jobs()
                raise UserError(
                    f"cannot write below {record.path}: {error.strerror}; what was queued of this launch was "
                    "cancelled: make room and launch again"
                ) from error

    def _submit_chunk(self, record: LaunchRecord, chunk: Chunk, submitted: Sequence[str]) -> str:
        """Submit one array, again where sbatch failed for a reason that passes; its job id.

        An sbatch that gives no answer may have submitted all the same: such jobs are cancelled first.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self._submitit(record.path / "submitit")
        after = None if chunk.after is None else submitted[chunk.after]
        executor.update_parameters(**self._parameters(job_name(record.path), chunk, after, record.info["code"]))
        folders = [str(record.path.resolve())] * chunk.count
        for pause_s in (*slurm_state.PAUSES_S, None):
            try:
                with slurm_environment.cleaned():
                    jobs = executor.map_array(run_slurm_slot, folders, range(chunk.first, chunk.first + chunk.count))
                return str(jobs[0].job_id.partition("_")[0])
            except (FailedJobError, FailedSubmissionError) as error:
                self._cancel_lost(record, submitted)
                if pause_s is None or not slurm_limits.passes(_reason(str(error))):
                    raise SubmissionFailed(_reason(str(error))) from error
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _cancel_lost(self, record: LaunchRecord, submitted: Sequence[str]) -> None:
        """Cancel jobs of this launch whose ids sbatch did not tell."""
        name = job_name(record.path)
        try:
            text = slurm_state.ask("squeue", "--noheader", f"--name={name}", "--format=%F")
            lost = sorted(set(text.split()) - set(submitted))
            if lost:
                slurm_state.ask("scancel", *lost)
        except slurm_state.SlurmSilent as silent:
            raise UserError(
                f"sbatch gave no answer and Slurm cannot be asked ({silent}): jobs named {name} may be queued; "
                f"when it answers, end them with `scancel --name={name}`"
            ) from silent

    def _refused(self, record: LaunchRecord, submitted: Sequence[str], chunk: Chunk, words: str) -> UserError:
        reason = words or "no reason given"
        if not submitted:
            return UserError(f"Slurm refused the submission: {reason}; nothing was submitted (profile {self.source})")
        return PartlySubmitted(
            f"Slurm took {chunk.first} of {record.info['slots']} jobs ({', '.join(submitted)}) and refused the next: "
            f"{reason}; those go on, and launching again later submits the runs that are left"
        )

    def scripts(self, launch_folder: Path, code: str, placement: Placement) -> list[str]:
        """Every script that a launch would give to sbatch, in order."""
        executor, name = self._submitit(launch_folder / "submitit"), job_name(launch_folder)
        found = []
        for chunk in chunks(placement.slots, placement.info["max_array_size"], self.profile.parallel):
            after = None if chunk.after is None else f"<job id of submission {chunk.after + 1}>"
            found.append(_script(executor, self._parameters(name, chunk, after, code), chunk))
        return found

    def _chunks(self, record: LaunchRecord) -> list[Chunk]:
        return chunks(record.info["slots"], record.info["max_array_size"], self.profile.parallel)

    def _submitit(self, folder: Path) -> submitit.SlurmExecutor:
        import submitit

        return submitit.SlurmExecutor(folder.absolute(), python=self.profile.python or shlex.quote(sys.executable))

    def _parameters(self, name: str, chunk: Chunk, after: str | None, code: str) -> dict[str, Any]:
        """What submitit is told; it leaves out what is None."""
        profile = self.profile
        memory = None if profile.memory_gb is None else f"{int(profile.memory_gb * 1024)}M"
        extra = {"requeue": True, **{key: value for key, value in profile.sbatch.items() if value is not False}}
        environment = snapshot.environment(code, {})
        setup = [
            *([f'export TMPDIR="{profile.scratch}"', 'mkdir -p "$TMPDIR"'] if profile.scratch else []),
            *profile.setup,
            "export PYTHONSAFEPATH=" + environment["PYTHONSAFEPATH"],
            f"export PYTHONPATH={shlex.quote(environment['PYTHONPATH'])}${{PYTHONPATH:+:$PYTHONPATH}}",
        ]
        return {
            "job_name": name,
            "partition": profile.partition,
            "account": profile.account,
            "qos": profile.qos,
            "constraint": profile.constraint,
            "gres": profile.gres,
            "cpus_per_task": profile.cpus,
            "mem": memory,
            "time": profile.time_min,
            "signal_delay_s": profile.signal_s,
            "array_parallelism": chunk.parallel,
            "dependency": None if after is None else f"afterany:{after}",
            "stderr_to_stdout": True,
            "srun_args": ["--export=ALL", f"--cpus-per-task={profile.cpus}"],  # srun takes neither over from sbatch
            "wckey": None,  # submitit's own, which clusters that use wckeys refuse
            "setup": setup,
            "additional_parameters": extra,
        }

    # Afterwards

    def cancel(self, record: LaunchRecord, run_ids: Collection[str] | None, grace_s: float) -> list[Process]:
        """scancel for the jobs that have nothing else to do; a job with other runs lets go of the named ones itself.

        Slurm sends SIGTERM, waits as long as its KillWait says (30 s by default), and kills.
        """
        jobs = record.jobs()
        if run_ids is not None:
            left = record.unreleased_fleets()
            jobs = {slot: job for slot, job in jobs.items() if left.isdisjoint(record.tasks[slot])}
        queued = [job for job in jobs.values() if record.is_queued(job)]
        for start in range(0, len(queued), 500):
            slurm_state.ask("scancel", *queued[start : start + 500])
        return []

    def reaches(self, record: LaunchRecord) -> bool:
        """A cluster's jobs are cancelled from wherever they can be submitted."""
        return True

    def describe(self, record: LaunchRecord) -> str:
        """`launch 20260101-120000: 1200 jobs on Slurm (41, 42)`."""
        arrays = list(dict.fromkeys(job.partition("_")[0] for job in record.jobs().values()))
        count = len(record.jobs())
        return f"launch {record.name}: {count} job{'' if count == 1 else 's'} on Slurm ({', '.join(arrays)})"


def _units(packs: Sequence[int]) -> list[list[int]]:
    """Fleets by number, those of a pack together; `packs` says of each how many train side by side."""
    units = []
    for pack in sorted(set(packs)):
        fleets = [fleet for fleet, own in enumerate(packs) if own == pack]
        units += [fleets[begin : begin + pack] for begin in range(0, len(fleets), pack)]
    return units


def chunks(slots: int, max_array_size: int, parallel: int) -> list[Chunk]:
    """Slots in arrays of nearly equal size, none larger than the cluster allows; together never more than `parallel`
    at a time: each array has its share, and where there are more arrays than that, one waits for another."""
    count = -(-slots // max_array_size)
    ends = [slots * part // count for part in range(count + 1)]
    at_once = min(count, parallel)
    share = shares(min(parallel, slots), at_once)
    return [
        Chunk(begin, end - begin, share[number % at_once], number - at_once if number >= at_once else None)
        for number, (begin, end) in enumerate(itertools.pairwise(ends))
    ]


def job_name(launch_folder: Path) -> str:
    """`quickstart.20260101-120000`: what squeue shows, and what only this launch has."""
    return f"{launch_folder.parents[1].name}.{launch_folder.name}"


def _script(executor: submitit.SlurmExecutor, parameters: dict[str, Any], chunk: Chunk) -> str:
    executor.update_parameters(**parameters)
    if chunk.count > 1:
        executor.parameters["map_count"] = chunk.count
    try:
        return executor._make_submission_file_text(executor._submitit_command_str, "")
    finally:
        executor.parameters.pop("map_count", None)
