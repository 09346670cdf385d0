"""What status, logs, failures and retry say of a launch on a real Slurm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cases import FAKE, executor, load, start, states, wait_for
from slurm_cluster import SlurmCluster
from typer.testing import CliRunner

from sweeps.cli import app

pytestmark = pytest.mark.whole

Behave = Callable[..., None]
Write = Callable[..., Path]


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_slurms_reason_and_a_retry_with_more_memory(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE)
    behave(seed1="fail", seed2="sleep")
    start(sweep, results, executor(tmp_path, parallel=1))
    wait_for(lambda: states(sweep, results) == ["failed", "running", "pending"])
    value = json.loads(call("status", results.parent / "s.yaml", "--results", results, "--json"))
    assert value["counts"] == {"pending": 1, "running": 1, "stale": 0, "failed": 1, "done": 0}
    assert value["slurm_silent"] is None
    assert value["runs"][2]["why"] == "Slurm: PENDING (JobArrayTaskLimit)"
    behave(seed2="sleep")
    profile = tmp_path / "profile.yaml"
    again = call(
        *("retry", results.parent / "s.yaml", "--results", results, "--class", "nan", "--cluster", profile),
        *("--set", "cluster.memory_gb=0.3"),
    )
    assert "started 1 run in 1 fleet" in again
    script = max((results / "x" / ".launch").glob("*/submitit/*_submission.sh"))
    assert "--mem=307M" in script.read_text()
    wait_for(lambda: states(sweep, results)[0] == "done")
    assert call("logs", "cup-catch/seed1", "--results", results).count("==> launch ") == 4
    call("cancel", results / "x")
    wait_for(lambda: states(sweep, results)[1] == "pending")


def test_a_job_of_a_pack_reports_a_state_for_each_run(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE, "resources.pack={sac: 3}")
    behave(seed1="sleep", seed2="die")
    launched = start(sweep, results, executor(tmp_path))
    assert len(launched.jobs()) == 1
    wait_for(lambda: states(sweep, results) == ["running", "failed", "done"])
    behave()
    call("cancel", results / "x")
    wait_for(lambda: states(sweep, results) == ["pending", "failed", "done"])
