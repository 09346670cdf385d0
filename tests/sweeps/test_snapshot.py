"""The code that jobs run, and runs that die again and again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from waiting import wait_idle

from bench import provenance
from bench.provenance import CHECKOUT
from bench.rundir import RunDir
from sweeps import expand, launch, snapshot, state
from sweeps.local import LocalExecutor

Behave = Callable[..., None]
Write = Callable[..., Path]

TEXT = """\
name: x
agents: [sac]
tasks: [cup-catch]
seeds: [1]
env_steps: 2000
resources: {device: cpu, threads: 1}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the suite that a test may edit."""
    for package in snapshot.PACKAGES:
        shutil.copytree(CHECKOUT / package, tmp_path / "checkout" / package)
    return tmp_path / "checkout"


def imported_from(code: Path, folder: Path) -> dict[str, str]:
    """Where Python finds the suite with a snapshot's environment, in whatever folder it starts."""
    ask = (
        "import json, bench.tasks; from bench import provenance\n"
        "snapshot = provenance.collect('cpu')['snapshot']\n"
        "print(json.dumps([bench.tasks.__file__, snapshot]))"
    )
    environment = {**os.environ, **snapshot.environment(code)}
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    file, digest = json.loads(done.stdout)
    return {"file": file, "snapshot": digest}


def test_editing_the_checkout_changes_no_snapshot(tmp_path: Path, checkout: Path) -> None:
    code = snapshot.take(tmp_path / ".launch", checkout)
    assert snapshot.take(tmp_path / ".launch", checkout) == code  # the same content is kept once
    before = snapshot.content_hash(code)
    assert before == code.name
    with (checkout / "bench" / "tasks" / "__init__.py").open("a") as file:
        file.write("\nraise RuntimeError('edited')\n")
    assert imported_from(code, checkout) == {
        "file": str(code / "bench" / "tasks" / "__init__.py"),
        "snapshot": code.name,
    }
    edited = snapshot.take(tmp_path / ".launch", checkout)
    assert edited.name != code.name
    assert snapshot.content_hash(code) == before


def test_a_launch_notes_the_snapshot_that_it_runs(write: Write, results: Path, behave: Behave) -> None:
    launched = launch.launch(expand.load(write(TEXT)), results, LocalExecutor())
    assert launched.record is not None
    code = Path(launched.record.info["code"])
    assert code.parent == results.resolve() / "x" / ".launch" / "code"
    assert json.loads((code / "snapshot.json").read_text())["commit"] == provenance.git_state(CHECKOUT)["commit"]
    assert provenance.collect("cpu", code)["snapshot"] == code.name
    wait_idle(results / "x")


@pytest.mark.whole
def test_a_run_that_dies_three_times_at_one_place_has_failed(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT))
    run = RunDir.create(results / "x", sweep.runs[0])
    run.checkpoints.mkdir()
    (run.checkpoints / "0000000400.pt").touch()
    for _ in range(2):
        run.begin_attempt({"host": "n1"})  # and no word of how it ended
    run.end_attempt("interrupted")
    for _ in range(2):
        run.begin_attempt({"host": "n1"})
    assert run.silent_deaths() == 2
    run.begin_attempt({"host": "n1"})
    launch.launch(sweep, results, LocalExecutor())
    wait_idle(results / "x")
    (found,) = state.read_all(results / "x", sweep.runs)
    assert found.error == (
        "DiedRepeatedly: 3 attempts in a row ended without a word before the next checkpoint after 800 env steps"
    )
    retried = launch.launch(sweep, results, LocalExecutor(), lambda run: run.state == "failed")
    assert len(retried.fleets) == 1  # a retry counts anew
    wait_idle(results / "x")
    assert [run.state for run in state.read_all(results / "x", sweep.runs)] == ["done"]
