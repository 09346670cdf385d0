"""Variables of the shell do not change what a profile asks for, on a real Slurm."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cases import FAKE, attempts, executor, load, run_dirs, start, states, wait_for
from slurm_cluster import SlurmCluster

from bench.errors import UserError
from sweeps import slurm_environment

Behave = Callable[..., None]
Write = Callable[..., Path]

SHELL = {
    "SBATCH_EXPORT": "NONE",
    "SBATCH_PARTITION": "high",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_ARRAY_INX": "7",
    "SBATCH_WAIT": "1",
    "SLURM_MEM_PER_CPU": "7000",
    "SLURM_CPU_BIND": "map_cpu:0",
    "SLURM_EXPORT_ENV": "NONE",
    "SRUN_CPUS_PER_TASK": "1",
    "SALLOC_PARTITION": "high",
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "4",
    "SQUEUE_FORMAT": "%u",
    "SQUEUE_STATES": "FAILED",
    "PMI_RANK": "3",
    "PMIX_RANK": "3",
}


@pytest.mark.whole
def test_the_profile_decides(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MARK", "of the shell")
    sweep = load(write, FAKE, "seeds=1")
    behave(seed1="sleep")
    launched = start(
        sweep, results, executor(tmp_path, cpus=2, memory_gb=0.5, setup=["export STEP=$SLURM_CPUS_PER_TASK"])
    )
    wait_for(lambda: states(sweep, results) == ["running"])
    (job,) = launched.jobs().values()
    environment = {name: value for name, value in os.environ.items() if name not in SHELL}
    shown = slurm.run("env", "-i", *(f"{k}={v}" for k, v in environment.items()), "scontrol", "show", "job", job, "-o")
    words = dict(word.partition("=")[::2] for word in shown.stdout.split())
    assert (words["Partition"], words["TimeLimit"], words["NumCPUs"]) == ("main", "01:00:00", "2")
    assert (words["MinMemoryNode"], words["NumTasks"]) == ("512M", "1")
    (run,) = run_dirs(sweep, results)
    (attempt,) = attempts(run)
    assert attempt["mark"] == "of the shell"
    worker = launched.slots()[0].processes["worker"].pid
    inside = dict(part.partition("=")[::2] for part in Path(f"/proc/{worker}/environ").read_text().split("\0") if part)
    assert inside["SLURM_CPUS_PER_TASK"] == "2"
    assert inside["SLURM_JOB_ID"] == job
    assert "SBATCH_PARTITION" not in inside
    assert inside.get("PMI_RANK", "0") == "0"
    assert dict(os.environ).items() >= SHELL.items()


def test_what_is_ignored_is_said() -> None:
    assert slurm_environment.remark({"PATH": "x", "SLURM_CONF": "y", "SLURM_CLUSTERS": "z"}) is None
    assert slurm_environment.remark({"SBATCH_PARTITION": "high", "SLURM_MEM_PER_CPU": "9"}) == (
        "ignored from this shell, the profile decides: SBATCH_PARTITION=high, SLURM_MEM_PER_CPU=9"
    )
    assert slurm_environment.remark({"SLURM_JOB_ID": "41", "SLURM_NNODES": "1", "SBATCH_EXPORT": "NONE"}) == (
        "ignored from this shell, the profile decides: SBATCH_EXPORT=NONE, the variables of job 41"
    )


@pytest.mark.parametrize("key", ["parsable", "quiet", "wait", "test-only", "clusters"])
def test_options_that_change_sbatchs_answer_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"sbatch.{key} is the launch's own"):
        executor(tmp_path, sbatch={key: True})


def test_a_signal_before_the_beginning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="signal_s must be less than the time limit: 120 s before the end of 2 min"):
        executor(tmp_path, time_h=2 / 60)


@pytest.mark.whole
def test_a_time_limit_above_the_partitions_is_refused(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    slurm.run("scontrol", "update", "PartitionName=high", "MaxTime=2:00:00")
    sweep = load(write, FAKE, "seeds=1")
    with pytest.raises(UserError, match=r"time_h: 2.5 h is more than partition high allows \(2 h\)"):
        start(sweep, results, executor(tmp_path, partition="high", time_h=2.5))
    assert not list((results / "x").glob("sac*"))
    start(sweep, results, executor(tmp_path, partition="high,main", time_h=2.5))
