"""Every task of an array is queued again alone, on a real Slurm, with a worker that obeys the test.

The task that an array starts last has the array's own number as its SLURM_JOB_ID, which Slurm's commands take for the
whole array.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cases import FAKE, attempts, executor, job_words, load, run_dirs, start, states, wait_for
from slurm_cluster import SlurmCluster

pytestmark = pytest.mark.whole

Behave = Callable[..., None]
Write = Callable[..., Path]


@pytest.mark.parametrize("signalled", [(2,), (1, 2)], ids=["last", "both"])
def test_a_signalled_task_is_queued_again_alone(
    signalled: tuple[int, ...], write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    """The signal before the time limit reaches some tasks of an array of three, of which one is done and two run."""
    sweep = load(write, FAKE)
    behave(seed2="sleep", seed3="sleep")
    launched = start(sweep, results, executor(tmp_path))
    runs, jobs = run_dirs(sweep, results), launched.jobs()
    wait_for(lambda: states(sweep, results) == ["done", "running", "running"])
    wait_for(lambda: job_words(launched) == ["COMPLETED", "RUNNING", "RUNNING"])
    for slot in signalled:
        slurm.run("scancel", "--signal=USR2", jobs[slot])
    expected = [1, *(2 if slot in signalled else 1 for slot in (1, 2))]
    wait_for(
        lambda: [len(attempts(run)) for run in runs] == expected and states(sweep, results)[1:] == ["running"] * 2,
        what=lambda: (states(sweep, results), job_words(launched), [attempts(run) for run in runs]),
    )
    assert job_words(launched) == ["COMPLETED", "RUNNING", "RUNNING"]
    behave()
    for slot in (1, 2):
        slurm.run("scancel", "--signal=USR2", jobs[slot])
    wait_for(lambda: states(sweep, results) == ["done"] * 3, what=lambda: (states(sweep, results), job_words(launched)))
    assert [len(attempts(run)) for run in runs] == [1, *(count + 1 for count in expected[1:])]
    wait_for(lambda: job_words(launched) == ["COMPLETED"] * 3)


def test_preempted_tasks_are_queued_again_alone(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    """An urgent job takes the nodes of two tasks of an array of three; the third goes on undisturbed."""
    sweep = load(write, FAKE)
    behave(seed1="sleep", seed2="sleep", seed3="sleep")
    launched = start(sweep, results, executor(tmp_path, cpus=5))  # one on each node, the third waits
    runs = run_dirs(sweep, results)
    wait_for(lambda: sorted(states(sweep, results)) == ["pending", "running", "running"])
    slurm.run("sbatch", "--partition=high", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8",
              "--output=/dev/null", "--wrap=sleep 3")  # fmt: skip
    wait_for(
        lambda: sum(len(attempts(run)) for run in runs if (run.path / "run.json").exists()) >= 4,
        what=lambda: (states(sweep, results), job_words(launched)),
    )
    behave()
    for slot, job in launched.jobs().items():
        if job_words(launched)[slot] == "RUNNING":
            slurm.run("scancel", "--signal=USR2", job)
    wait_for(lambda: states(sweep, results) == ["done"] * 3, what=lambda: (states(sweep, results), job_words(launched)))
    wait_for(lambda: job_words(launched) == ["COMPLETED"] * 3)
