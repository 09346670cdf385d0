"""Real training on a real Slurm: time limit, preemption, silent deaths, a dead node, one cut off from its job.

Last ran on 2026-11-25 (slurm 22.05.8, 2 cores that other work shared): all pass, in 65 to 220 s each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from slurm_cases import FAKE, REAL, attempts, executor, job_words, load, run_dirs, start, states, wait_for
from slurm_cluster import SlurmCluster

from bench.rundir import RunDir
from sweeps import slurm_state

Write = Callable[..., Path]


def went_on(run: RunDir) -> bool:
    """Whether a second attempt trains, from a checkpoint of the first."""
    found = attempts(run)
    return (
        len(found) > 1 and found[1]["from_agent_steps"] > 0 and run.newest_checkpoint() > found[1]["from_agent_steps"]
    )


def kill_everything_of(slurm: SlurmCluster, job: str) -> int:
    """What the death of a node does to a job: all its processes are gone at once, Slurm's own first. How many."""
    (number,) = re.findall(r"^JobId=(\d+)", slurm.run("scontrol", "show", "job", job, "-o").stdout)
    managers = [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"slurmstepd: [{number}." in " ".join(process.info["cmdline"] or [])
    ]
    victims = managers + [child for manager in managers for child in manager.children(recursive=True)]
    for victim in victims:
        victim.kill()
    return len(victims)


@pytest.mark.slow
def test_at_its_time_limit_a_job_checkpoints_and_queues_again(
    write: Write, results: Path, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, REAL)
    # Room enough to start, checkpoint and queue again on a machine where much else runs.
    launched = start(sweep, results, executor(tmp_path, time_h=4 / 60, signal_s=60))
    (run,) = run_dirs(sweep, results)
    wait_for(lambda: went_on(run), 600.0, lambda: (attempts(run), slurm_state.states(launched)))
    first = attempts(run)[0]
    assert first["outcome"] == "interrupted"
    assert first["from_agent_steps"] == 0
    assert launched.attempt(0) == 2
    assert job_words(launched) == ["RUNNING"]
    assert len({attempt["snapshot"] for attempt in attempts(run)}) == 1


@pytest.mark.slow
def test_a_dead_node_and_one_that_is_cut_off(write: Write, results: Path, slurm: SlurmCluster, tmp_path: Path) -> None:
    """Of two jobs on a node, one dies with it; the other lives on, unknown to Slurm, until its next attempt asks."""
    sweep = load(write, REAL, "seeds=2")
    launched = start(sweep, results, executor(tmp_path))
    dead, cut_off = run_dirs(sweep, results)
    wait_for(lambda: dead.newest_checkpoint() > 0 and cut_off.newest_checkpoint() > 0)
    nodes = slurm.run("squeue", "--noheader", "--format=%N").stdout.split()
    assert nodes == ["n1", "n1"]  # Slurm fills one node before it begins the next
    slurm.kill("slurmd-n1")
    assert kill_everything_of(slurm, launched.jobs()[0]) >= 4  # both steps' managers, the slot and its worker
    old = launched.slots()[1].processes["worker"]
    assert old.alive
    wait_for(lambda: went_on(dead), 240.0, lambda: (attempts(dead), slurm_state.states(launched)))
    assert "outcome" not in attempts(dead)[0]
    wait_for(lambda: went_on(cut_off), 240.0, lambda: (attempts(cut_off), slurm_state.states(launched)))
    assert attempts(cut_off)[0]["outcome"] == "interrupted"  # it let go when it was asked to
    assert not old.alive
    assert states(sweep, results) == ["running", "running"]


@pytest.mark.slow
def test_three_silent_deaths_at_the_same_place(
    write: Write, results: Path, behave: Callable[..., None], slurm: SlurmCluster, tmp_path: Path
) -> None:
    """Of two runs in one array: one that never listens is killed with its job each time it is queued again."""
    sweep = load(write, FAKE, "seeds=2")
    behave(seed1="stubborn", seed2="sleep")
    launched = start(sweep, results, executor(tmp_path))
    deaf, other = run_dirs(sweep, results)
    for attempt in (1, 2, 3):
        wait_for(lambda: states(sweep, results)[0] == "running" and len(attempts(deaf)) == attempt)  # noqa: B023
        slurm.run("scontrol", "requeue", launched.jobs()[0])
    wait_for(lambda: states(sweep, results)[0] == "failed", 240.0, lambda: (attempts(deaf), job_words(launched)))
    failure = deaf.read_json("failed.json")
    assert failure is not None
    assert failure["class"] == "DiedRepeatedly"
    assert failure["message"].startswith(
        "3 attempts in a row ended without a word before the next checkpoint after 0 env steps"
    )
    assert [attempt.get("outcome") for attempt in attempts(deaf)] == [None, None, "failed"]
    assert len(attempts(other)) == 1
    assert states(sweep, results)[1] == "running"
    wait_for(lambda: job_words(launched) == ["COMPLETED", "RUNNING"])  # it is not started a fifth time


@pytest.mark.slow
def test_a_preempted_job_checkpoints_and_goes_on(
    write: Write, results: Path, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, REAL, "seeds=2")
    start(sweep, results, executor(tmp_path, cpus=8))  # one node each
    runs = run_dirs(sweep, results)
    wait_for(lambda: all(run.newest_checkpoint() > 0 for run in runs))
    slurm.run("sbatch", "--partition=high", "--cpus-per-task=8", "--output=/dev/null", "--wrap=sleep 2")
    wait_for(lambda: any(went_on(run) for run in runs), 240.0, lambda: [attempts(run) for run in runs])
    (preempted,) = [run for run in runs if len(attempts(run)) > 1]
    assert attempts(preempted)[0]["outcome"] == "interrupted"
