"""Why runs failed: classes, places, groups; and retrying some of them with other resources."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from waiting import wait_idle, wait_until

from bench.envs.errors import WorkerError
from bench.errors import UserError
from bench.failures import NaNError
from bench.rundir import RunDir
from sweeps import expand, failures, launch, launches, logs, retry, state
from sweeps.cli import app
from sweeps.local import LocalExecutor
from sweeps.slot import WorkerDied

Behave = Callable[..., None]
Write = Callable[..., Path]

TEXT = """\
name: x
agents: [{agent: sac, hyperparameters: {hidden_dim: 64}}]
tasks: [cup-catch]
seeds: 4
env_steps: 2000
resources: {slots: 2, device: cpu, threads: 1}
"""

CASES: list[tuple[str, str]] = [
    ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "oom"),
    ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "oom"),
    ("WorkerDied: the worker was killed by SIGKILL (out of memory, or by hand) (log: /nan/x.err)", "oom"),
    ("WorkerError: the worker of dog-run (environment 0) was killed by SIGKILL (out of memory?)", "oom"),
    ("RuntimeError: CUDA error: device-side assert triggered", "cuda"),
    ("UserError: device cuda is not here: use --device cpu, or see `bench doctor`", "cuda"),
    ("AttemptsExhausted: started 3 times (max_attempts); Slurm ended its attempts as: TIMEOUT, TIMEOUT", "time-limit"),
    ("DiedRepeatedly: 3 attempts ended without a word; Slurm ended its attempts as: NODE_FAIL", "node"),
    ("OSError: [Errno 116] Stale file handle", "node"),
    ("OSError: [Errno 28] No space left on device", "disk"),
    ("UserError: cannot append to x.episodes: No space left on device; make room and run again", "disk"),
    ("ModuleNotFoundError: No module named 'myosuite'", "missing"),
    ("UserError: dog-run needs dm_control: install the pinned set with 'pip install --no-deps -r x'", "missing"),
    ("NaNError: the agent's action is not a number at agent step 7; last metrics {}", "nan"),
    ("WorkerError: dog-run (environment 0): SimulatorError: NaN in the observation", "nan"),
    ("WorkerError: no answer in 120 s from the worker of dog-run (environment 0)", "simulator"),
    ("WorkerDied: the worker was killed by SIGSEGV (log: /nan/cuda/x.err)", "simulator"),
    ("ValueError: shapes differ", "bug"),
]


@pytest.mark.parametrize(("error", "name"), CASES)
def test_classes(error: str, name: str) -> None:
    assert failures.classify(error).name == name


def test_what_was_raised_counts_and_not_the_code_that_is_shown() -> None:
    shown = 'Traceback (most recent call last):\n  File "time_limit.py", line 3, in step\n    cuda.run()\nKeyError: 3'
    assert failures.classify("KeyError: 3", shown).name == "bug"
    caused = "Traceback (most recent call last):\nOSError: [Errno 28] No space left on device\n\nKeyError: 3"
    assert failures.classify("KeyError: 3", caused).name == "disk"


def test_a_worker_that_died_is_judged_by_its_last_words() -> None:
    died = "WorkerDied: the worker ended with exit code 1"
    assert failures.classify(died, "", ["something else"]).name == "simulator"
    assert failures.classify(died, "", ["torch.OutOfMemoryError: CUDA out of memory"]).name == "oom"
    assert failures.classify(died, "", ["Traceback (most recent call last):", "KeyError: 3"]).name == "bug"


def _raised() -> RuntimeError:
    """Raised from what the standard library raised for a call in this function."""
    try:
        try:
            json.loads("{")
        except ValueError as cause:
            raise RuntimeError("later") from cause
    except RuntimeError as error:
        return error


def test_the_place_is_the_innermost_frame_of_own_code_at_the_first_cause(tmp_path: Path, write: Write) -> None:
    run = RunDir.create(tmp_path, expand.load(write(TEXT)).runs[0])
    run.mark_failed(_raised())
    found = failures.read(state.read(run, run.spec))
    assert found.place.startswith("sweeps/test_failures.py:")
    assert found.place.endswith(" in _raised")
    line = int(found.place.split(":")[1].split(" ")[0])
    assert "json.loads" in Path(__file__).read_text().splitlines()[line - 1]
    foreign = 'Traceback (most recent call last):\n  File "/x/site-packages/mujoco/a.py", line 3, in step\nE: 1'
    assert failures.place_of(foreign) == "mujoco/a.py:3 in step"
    assert failures.place_of("no frames") is None


def fail(sweep: expand.Sweep, results: Path, errors: list[Exception], **values: Any) -> None:
    for spec, error in zip(sweep.runs, errors, strict=False):
        RunDir.create(results / "x", spec).mark_failed(error, **values)


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    return result


def test_failures_are_shown_in_groups(write: Write, results: Path) -> None:
    file = write(TEXT)
    sweep = expand.load(file)
    assert "no run has failed so: 4 runs looked at" in call("failures", file, "--results", results).stdout
    fail(sweep, results, [NaNError("nan 1"), WorkerError("no answer", [0], ["cup-catch"]), NaNError("nan 2")])
    shown = call("failures", file, "--results", results).stdout
    assert "3 of 4 runs failed (NaN, simulator or worker died)" in shown
    assert shown.index("2 × NaN, no place known") < shown.index("1 × simulator or worker died, no place known")
    assert "NaNError: nan 1" in shown
    assert "cure: training diverged" in shown
    assert f"again: bench sweep retry {file} --results {results} --class nan" in shown
    value = json.loads(call("failures", results / "x", "--json", "--class", "nan").stdout)
    assert [(group["class"], group["count"]) for group in value] == [("nan", 2)]
    assert [run["error"] for run in value[0]["runs"]] == ["NaNError: nan 1", "NaNError: nan 2"]
    assert value[0]["traceback"].endswith("NaNError: nan 1")
    only = json.loads(call("failures", file, "--results", results, "--json", "--run", "seed2").stdout)
    assert [group["class"] for group in only] == ["simulator"]


def test_a_worker_that_died_shows_its_last_lines(write: Write, results: Path) -> None:
    sweep = expand.load(write(TEXT))
    fail(sweep, results, [WorkerDied("the worker was killed by SIGSEGV")], exit_code=-11, stderr=["about to crash"])
    (group,) = failures.group(state.read_all(results / "x", sweep.runs))
    assert group.first.place == "in the worker process"
    assert group.first.traceback.endswith("about to crash")


def test_a_damaged_directory_is_a_failure_too(write: Write, results: Path) -> None:
    sweep = expand.load(write(TEXT))
    run = RunDir.create(results / "x", sweep.runs[0])
    (run.path / "failed.json").write_text("{")
    (run.path / "heartbeat").write_text("{")
    (group,) = failures.group(state.read_all(results / "x", sweep.runs))
    assert "failed.json is damaged" in group.first.error


@pytest.mark.whole
def test_retry_of_one_class_with_other_resources(write: Write, results: Path, behave: Behave) -> None:
    file = write(TEXT)
    sweep = expand.load(file)
    fail(sweep, results, [MemoryError("full"), ValueError("bug"), MemoryError("full"), ValueError("bug")])
    retried = call(
        *("retry", file, "--results", results, "--class", "oom", "--set", "resources.slots=1", "--wait"),
        *("--set", "resources.checkpoint_every_s=7"),
    )
    assert "started 2 runs in 2 fleets: launch 2" in retried.stdout
    assert [run.state for run in state.read_all(results / "x", sweep.runs)] == ["done", "failed", "done", "failed"]
    launched = launches.records(results / "x")[-1]
    assert launched.info["slots"] == 1
    assert launched.info["worker_options"][-1] == "7.0"
    assert "nothing to start" in call("retry", file, "--results", results, "--class", "cuda").stdout


@pytest.mark.parametrize("setting", ["agent.batch_size=64", "sac.hidden_dim=8", "num_envs=2", "agents=[tdmpc2]"])
def test_retry_never_changes_a_run(setting: str, write: Write, results: Path) -> None:
    with pytest.raises(UserError, match="it would make another run, and a retry goes on with the same one"):
        call("retry", write(TEXT), "--results", results, "--set", setting)


@pytest.mark.whole
def test_retry_finds_the_runs_of_a_launch_that_set_a_hyperparameter(
    write: Write, results: Path, behave: Behave
) -> None:
    file, settings = write(TEXT), ["agent.batch_size=64", "seeds=1"]
    behave(seed1="fail")
    launch.launch(expand.load(file, settings), results, LocalExecutor())
    wait_idle(results / "x")
    behave()
    retried = call("retry", file, "--results", results, "--set", settings[0], "--set", settings[1], "--wait")
    assert retried.exit_code == 0, retried.stdout
    retry.check_assignments(["seeds=9", "resources.slots=2", "cluster.memory_gb=64", settings[0]], results / "x")


def test_an_unknown_class_is_one_line(write: Write, results: Path) -> None:
    for command in ("failures", "retry"):
        with pytest.raises(UserError, match="unknown failure class 'oomm': did you mean oom"):
            call(command, write(TEXT), "--results", results, "--class", "oomm")


@pytest.mark.whole
def test_logs_of_all_attempts(write: Write, results: Path, behave: Behave) -> None:
    file = write(TEXT)
    sweep = expand.load(file, ["seeds=2"])
    behave(seed1="die")
    launch.launch(sweep, results, LocalExecutor())
    wait_idle(results / "x")
    launch.launch(sweep, results, LocalExecutor(), retry.wanted(failed=True, stale=False))
    wait_idle(results / "x")
    shown = call("logs", "cup-catch/seed1", "--results", results).stdout
    assert shown.count("about to crash") == 2
    assert shown.count("==> launch ") == 4  # out and err of two launches
    assert "sac [hidden_dim=64] cup-catch seed 1, err: " in shown
    (results / "x" / ".launch" / launches.records(results / "x")[-1].name / "logs" / "fleet-0000.err").write_text(
        "a\nb\n"
    )
    last = call("logs", results / "x" / sweep.runs[0].run_id, "-n", 1).stdout
    assert last.endswith("\nb\n")
    assert logs.find_run("x/cup-catch/seed2", results).path == results / "x" / sweep.runs[1].run_id
    with pytest.raises(UserError, match=r"'cup-catch' names 2 runs: x/sac/cup-catch/seed1-.*: name one of them"):
        call("logs", "cup-catch", "--results", results)
    with pytest.raises(UserError, match="no run 'cup-catch/seed7' below "):
        call("logs", "cup-catch/seed7", "--results", results)
    never = RunDir.create(results / "x", expand.load(file).runs[3])
    assert "no logs: no launch has started" in call("logs", never.path).stdout


@pytest.mark.whole
def test_logs_can_be_followed(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["seeds=1"])
    behave(seed1="sleep")
    launch.launch(sweep, results, LocalExecutor())
    run = RunDir(results / "x" / sweep.runs[0].run_id)
    wait_until(lambda: run.path.exists() and len(logs.of_run(run)) == 2)
    out, err = logs.of_run(run)
    out.path.write_text("shown already\n")
    lines = []
    with err.path.open("a") as file:
        file.write("a warning\n")
    over = iter([False, True])
    for log, line in logs.follow({out: out.read()[1], err: 0}, lambda: next(over), poll_s=0.01):
        lines.append((log.stream, line))
        with out.path.open("a") as file:
            file.write("new\nand half a line" if len(lines) == 1 else "")
    # Half a line waits for its other half, until there is none to come; what was shown before is not shown again.
    assert lines == [("err", "a warning"), ("out", "new"), ("out", "and half a line")]
