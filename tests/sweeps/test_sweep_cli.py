"""The commands, as a person or a program calls them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result
from waiting import wait_idle, wait_until

from bench.errors import UserError
from sweeps import expand, follow, launch, launches, state
from sweeps.cli import app
from sweeps.local import LocalExecutor

Behave = Callable[..., None]
Write = Callable[..., Path]

TEXT = """\
name: x
agents: [{agent: sac, variant: small, hyperparameters: {hidden_dim: 64}}]
tasks: [cup-catch]
seeds: 2
env_steps: 2000
resources: {slots: 2, device: cpu, threads: 1}
"""


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    return result


def test_plan_for_people_and_programs(write: Write, results: Path) -> None:
    file = write(TEXT)
    shown = call("plan", file, "--results", results, "--set", "seeds=3")
    assert shown.exit_code == 0
    assert f"x: 3 runs in {results}/x: 3 pending" in shown.stdout
    assert "sac [small]" in shown.stdout
    assert "To start: 3 runs in 3 fleets, 2 slots on cpu" in shown.stdout
    assert "Steps: 6,000 env steps, 3,000 agent steps over all runs" in shown.stdout
    assert "Time: unknown, no speed was measured" in shown.stdout
    value = json.loads(call("plan", file, "--results", results, "--json").stdout)
    assert (value["env_steps"], value["agent_steps"], value["wall_s"]) == (4000, 2000, None)
    assert value["replay_bytes"] == 2 * 1000 * 12 * 4
    assert [fleet["title"] for fleet in value["fleets"]] == [f"sac [small] cup-catch seed {seed}" for seed in (1, 2)]
    assert not results.exists()
    dry = call("launch", file, "--results", results, "--dry-run")
    assert "To start: 2 runs" in dry.stdout
    assert not results.exists()


@pytest.mark.whole
def test_launch_wait_success_then_nothing_to_do(write: Write, results: Path, behave: Behave) -> None:
    file = write(TEXT)
    waited = call("launch", file, "--results", results, "--wait")
    assert waited.exit_code == 0, waited.stdout
    assert "started 2 runs in 2 fleets: launch 2" in waited.stdout
    assert "cup-catch/seed1-" in waited.stdout
    assert "done at 2,000 env steps, return 25.0" in waited.stdout
    assert "ended: 2 done" in waited.stdout
    again = call("launch", file, "--results", results, "--wait")
    assert again.exit_code == 0
    assert "2 runs done already: skipped\nnothing to start\nended: 2 done" in again.stdout
    assert "Nothing to start." in call("plan", file, "--results", results).stdout


@pytest.mark.whole
def test_launch_wait_failure_and_retry(write: Write, results: Path, behave: Behave) -> None:
    file = write(TEXT)
    behave(seed2="fail")
    waited = call("launch", file, "--results", results, "--wait")
    assert waited.exit_code == 1
    assert waited.stdout.rstrip().splitlines()[-1].startswith("failed sac/cup-catch/seed2-")
    assert waited.stdout.rstrip().endswith(": ValueError: the reward was not a number")
    again = call("launch", file, "--results", results)
    assert "1 run failed before: skipped; " in again.stdout
    where = f"{file} --results {results}"
    assert f"`bench sweep failures {where}` says why, `bench sweep retry {where}` starts them again" in again.stdout
    value = json.loads(call("status", file, "--results", results, "--json").stdout)
    assert value["counts"] == {"pending": 0, "running": 0, "stale": 0, "failed": 1, "done": 1}
    assert [run["error"] for run in value["runs"]] == [None, "ValueError: the reward was not a number"]
    assert value["launches"] == []
    behave()
    assert "nothing to start" in call("retry", file, "--results", results, "--run", "cup-catch/seed1").stdout
    retried = call("retry", file, "--results", results, "--wait", "--run", "cup-catch/*")
    assert retried.exit_code == 0, retried.stdout
    assert "started 1 run in 1 fleet" in retried.stdout
    assert launches.records(results / "x")[-1].info["retried"][0]["error"] == "ValueError: the reward was not a number"
    by_folder = json.loads(call("status", results, "--json").stdout)
    assert by_folder["counts"]["done"] == 2


def test_status_and_cancel_while_it_runs(write: Write, results: Path, behave: Behave) -> None:
    file = write(TEXT)
    behave(seed1="sleep", seed2="sleep")
    started = call("launch", file, "--results", results)
    assert f"follow: bench sweep status {file} --results {results} --watch" in started.stdout
    sweep = expand.load(file)
    wait_until(lambda: all(run.progress.last_return for run in state.read_all(results / "x", sweep.runs)))
    second = call("launch", file, "--results", results)
    assert "2 runs already running or queued by launch 2" in second.stdout
    shown = call("status", file, "--results", results).stdout
    assert "2 runs: 2 running; 1 launch working, ETA 5 s" in shown
    assert "2,000/4,000" in shown
    assert "sac [small]" in shown
    runs, live = state.read_all(results / "x", sweep.runs), launches.live(results / "x")
    drawn = io.StringIO()
    Console(file=drawn, width=150, markup=False).print(follow.display(runs, live))
    assert "sac [small] cup-catch seed 1" in drawn.getvalue()
    cancelled = call("cancel", file, "--results", results).stdout
    assert "stopped launch 2" in cancelled
    assert "2 runs cancelled" in cancelled
    assert "2 runs: 2 pending; no launch is working" in call("status", file, "--results", results).stdout
    assert "nothing to cancel" in call("cancel", results / "x").stdout


@pytest.mark.whole
def test_interrupt_detaches(write: Write, results: Path, behave: Behave, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow, "follow", interrupted)
    file = write(TEXT)
    result = call("launch", file, "--results", results, "--wait")
    assert result.exit_code == 130
    assert "detached, the runs go on. follow: bench sweep status" in result.stdout
    wait_idle(results / "x")
    assert {run.state for run in state.read_all(results / "x", expand.load(file).runs)} == {"done"}


@pytest.mark.whole
def test_live_display_on_a_terminal(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT))
    launch.launch(sweep, results, LocalExecutor())
    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=150, markup=False, highlight=False)
    code = follow.follow(terminal, results / "x", lambda: state.read_all(results / "x", sweep.runs), 0.05)
    assert code == 0
    assert "ETA" in drawn.getvalue()
    assert "ended: 2 done" in drawn.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "no-such.yaml"], "no-such.yaml: cannot be read: No such file or directory"),
        (["status", "{empty}"], "no run below "),
        (["status", "{file}", "--by", "agent"], "--by agent: valid are task, domain"),
        (["launch", "{file}", "--results", "/proc/none"], "cannot write /proc/none/x: "),
        (
            ["launch", "{file}", "--set", "resources.gpus=[3]"],
            "[3], but CUDA_VISIBLE_DEVICES shows 0,1 only",
        ),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"file": write(TEXT), "empty": tmp_path / "empty"}
    with pytest.raises(UserError) as caught:
        call(*(argument.format(**places) for argument in arguments))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_loads_no_torch(write: Write, results: Path) -> None:
    file = str(write(TEXT))
    code = (
        "import sys; from sweeps.cli import app\n"
        f"for command in {[['plan', file], ['status', file], ['launch', '--dry-run', file]]!r}:\n"
        f"    app([*command, '--results', {str(results)!r}], standalone_mode=False)\n"
        "    loaded = {'torch', 'submitit', 'pandas'} & set(sys.modules)\n"
        "    assert not loaded, (command, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
