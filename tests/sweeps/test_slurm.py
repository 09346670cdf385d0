"""Launching on a real Slurm, with a worker that obeys the test: arrays, requeues, cancellations, bad luck, limits."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cases import FAKE, attempts, executor, job_words, load, run_dirs, start, states, wait_for
from slurm_cluster import SlurmCluster
from typer.testing import CliRunner

from sweeps import launch, launches, slurm_state
from sweeps.cli import app

pytestmark = pytest.mark.whole

Behave = Callable[..., None]
Write = Callable[..., Path]

GOLDEN = Path(__file__).with_name("golden-submission.sh")


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def normalised(script: str, tmp_path: Path) -> str:
    """A submission script without what differs from machine to machine and from launch to launch."""
    script = script.replace(str(tmp_path), "/home/me")
    script = re.sub(r"\b\d{8}-\d{6}\b", "20260101-120000", script)
    script = re.sub(r"/code/[0-9a-f]{12}\b", "/code/0123456789ab", script)
    return re.sub(r"\S+/python(\S*) -u -m", "/home/me/.venv/bin/python -u -m", script)


def test_what_is_shown_is_what_is_submitted(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text(
        "partition: main\ngpus: {count: 2}\ncpus: 2\nmemory_gb: 0.5\ntime_h: 2.5\nparallel: 2\nsignal_s: 60\n"
        "sbatch: {mail-type: NONE, nice: 5}\nsetup: ['module() { true; }', module load cuda]\n"
        f"scratch: {tmp_path}/tmp\n"
    )
    file = write(FAKE)
    arguments = (file, "--results", results, "--cluster", profile, "--set", "resources.device=cpu")
    shown = call("launch", *arguments, "--dry-run")
    assert not results.exists()
    script = shown[shown.index("#!/bin/bash") :].strip()
    assert normalised(script, tmp_path) == GOLDEN.read_text().strip()
    answer = call("launch", *arguments)
    assert "started 3 runs in 3 fleets: launch 2" in answer
    assert "3 jobs on Slurm (" in answer
    (submitted,) = (results / "x" / ".launch").glob("*/submitit/*_submission.sh")
    assert normalised(submitted.read_text().strip(), tmp_path) == normalised(script, tmp_path)
    sweep = load(write, FAKE)
    wait_for(lambda: states(sweep, results) == ["done"] * 3)
    again = call("launch", *arguments, "--set", "seeds=4")
    assert "started 1 run in 1 fleet" in again
    assert "3 runs done already: skipped" in again


def test_a_job_that_is_requeued_goes_on(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE, "seeds=1")
    behave(seed1="sleep")
    launched = start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["running"])
    behave()
    slurm.run("scontrol", "requeue", launched.jobs()[0])
    wait_for(lambda: states(sweep, results) == ["done"])
    assert len(attempts(run_dirs(sweep, results)[0])) == 2
    assert launched.attempt(0) == 2


def test_a_job_is_started_no_more_often_than_its_profile_allows(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE, "seeds=1")
    behave(seed1="sleep")
    launched = start(sweep, results, executor(tmp_path, max_attempts=2))
    (run,) = run_dirs(sweep, results)
    for attempt in (1, 2):
        wait_for(lambda: states(sweep, results) == ["running"] and len(attempts(run)) == attempt)  # noqa: B023
        slurm.run("scontrol", "requeue", launched.jobs()[0])
    wait_for(lambda: states(sweep, results) == ["failed"])
    failure = run.read_json("failed.json")
    assert failure is not None
    assert failure["class"] == "AttemptsExhausted"
    assert "the job was started 2 times (max_attempts of the profile)" in failure["message"]
    assert len(attempts(run)) == 2
    wait_for(lambda: job_words(launched) == ["COMPLETED"])
    assert "max_attempts of the profile" in call("failures", write(FAKE), "--set", "seeds=1", "--results", results)
    behave()
    call("retry", write(FAKE), "--set", "seeds=1", "--results", results, "--cluster", tmp_path / "profile.yaml")
    wait_for(lambda: states(sweep, results) == ["done"])


def test_jobs_run_the_profiles_setup_and_python(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    """As a container does it: `python` is a program that starts another Python, inside, with what it is given."""
    inside = tmp_path / "inside" / "python3"
    inside.parent.mkdir()
    inside.write_text(f'#!/bin/sh\nexport MARK="$MARK, inside"\nexec {sys.executable} "$@"\n')
    inside.chmod(0o755)
    profile = {
        "python": f"env {inside}",
        "setup": ["module() { MARK=$1; export MARK; }", "module set"],
    }
    sweep = load(write, FAKE, "seeds=1")
    launched = start(sweep, results, executor(tmp_path, **profile))
    wait_for(lambda: states(sweep, results) == ["done"])
    (attempt,) = attempts(run_dirs(sweep, results)[0])
    assert attempt["mark"] == "set, inside"
    assert launched.jobs()


def test_scancel_of_one_task_leaves_the_others(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE)
    behave(seed1="sleep", seed2="sleep", seed3="sleep")
    launched = start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["running"] * 3)
    slurm.run("scancel", launched.jobs()[1])
    wait_for(lambda: job_words(launched) == ["RUNNING", "CANCELLED", "RUNNING"])
    wait_for(lambda: states(sweep, results) == ["running", "pending", "running"])  # it listened to SIGTERM
    behave(seed1="sleep", seed3="sleep")
    again = launch.launch(sweep, results, executor(tmp_path))
    assert [fleet.run_ids for fleet in again.fleets] == [[sweep.runs[1].run_id]]
    wait_for(lambda: states(sweep, results) == ["running", "done", "running"])
    # The suite's own cancellation, of one run and then of what is left.
    one = launch.cancel(results / "x", ["seed3"])
    assert one.runs == (sweep.runs[2].run_id,)
    wait_for(lambda: job_words(launched) == ["RUNNING", "CANCELLED", "CANCELLED"])
    everything = call("cancel", write(FAKE), "--results", results)
    assert "1 run cancelled; launching again goes on with them" in everything
    wait_for(lambda: states(sweep, results) == ["pending", "done", "pending"])
    wait_for(lambda: not launches.live(results / "x"))


def test_cancelling_some_runs_of_a_fleet(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = load(write, FAKE, "resources.fleet=3")
    behave(seed1="sleep")
    launched = start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results)[0] == "running")
    assert launch.cancel(results / "x", ["seed1"]).runs == (sweep.runs[0].run_id,)
    wait_for(lambda: states(sweep, results) == ["pending", "done", "done"])
    wait_for(lambda: job_words(launched) == ["COMPLETED"])


def test_the_controller_may_restart(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE, "seeds=1")
    behave(seed1="sleep")
    launched = start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["running"])
    slurm.wait_until_saved()
    slurm.kill("slurmctld")
    assert states(sweep, results) == ["running"]  # the run's directory says it, whatever Slurm says
    slurm.start_controller()
    wait_for(lambda: job_words(launched) == ["RUNNING"])
    behave()
    slurm.run("scontrol", "requeue", launched.jobs()[0])
    wait_for(lambda: states(sweep, results) == ["done"])


def test_a_job_that_never_started(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE, "seeds=2")
    launched = start(sweep, results, executor(tmp_path, sbatch={"begin": "now+1hour"}))
    wait_for(lambda: {str(found) for found in slurm_state.states(launched).values()} == {"PENDING (BeginTime)"})
    assert states(sweep, results) == ["pending"] * 2
    again = launch.launch(sweep, results, executor(tmp_path))
    assert again.record is None
    assert {owner: len(runs) for owner, runs in again.busy.items()} == {f"launch {launched.name}": 2}
    status = json.loads(call("status", write(FAKE), "--set", "seeds=2", "--results", results, "--json"))
    assert status["launches"] == [launched.name]
    assert len(launch.cancel(results / "x").runs) == 2
    wait_for(lambda: not launches.live(results / "x"))
    assert launch.launch(sweep, results, executor(tmp_path)).record is not None
    wait_for(lambda: states(sweep, results) == ["done"] * 2)


def test_a_thousand_runs_are_planned_and_submitted_in_seconds(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE, "seeds=1200")
    began = time.monotonic()
    launched = start(sweep, results, executor(tmp_path, parallel=5, sbatch={"hold": True}))
    took_s = time.monotonic() - began
    arrays = sorted({job.partition("_")[0] for job in launched.jobs().values()})
    limits = [slurm.run("scontrol", "show", "job", array, "-o").stdout for array in arrays]
    assert [re.findall(r"ArrayTaskId=(\S+) ArrayTaskThrottle=(\d+)", text) for text in limits] == [
        [("0-599%2", "2")],  # together five at a time, in arrays of at most 1001
        [("0-599%3", "3")],
    ]
    assert len(launches.live(results / "x")[0].owned()) == 1200
    assert took_s < 30.0
    launch.cancel(results / "x")
    wait_for(lambda: not launches.live(results / "x"))
