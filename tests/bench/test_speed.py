"""Measuring speed: on made-up environments without any simulator, at the end of schedules; what sweeps read of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from agents.registry import resolve_hyperparameters
from bench import gpu_check, speed_profile
from bench.cli import app
from bench.devices import CONTEXT_GB, memory_share
from bench.errors import UserError
from bench.speed import Fleet
from bench.speed_worlds import World
from sweeps import measured

CPU = torch.device("cpu")

SPEED = ["speed", "sac", "hidden_dim=16", "batch_size=8", "--synthetic", "5", "2", "--fleet", "1,2", "--calls", "4"]
COMMAND = f"""
import sys
from bench.__main__ import main
sys.argv = ["bench", *{SPEED}, "--results", sys.argv[1]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded = {{"mujoco", "dm_control", "metaworld", "myosuite", "sapien", "gymnasium", "pandas"}} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.mark.whole
def test_made_up_environments_need_no_simulator(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "speed").glob("*.json"))


def test_sweeps_read_what_the_command_measured(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*SPEED, "--threads", "1", "--results", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "time of an update" in done.stdout
    (path,) = (tmp_path / "speed").glob("*.json")
    rows = json.loads(path.read_text())["measurements"]
    assert [row["fleet"] for row in rows] == [1, 2]
    for row in rows:
        assert row["synthetic"] == {"obs_size": 5, "action_size": 2, "env_ms": 0.0}
        assert min(row["update_ms"], row["act_ms"], row["loop_agent_steps_per_s"]) > 0
        assert sum(row["profile"]["update"].values()) == pytest.approx(1, abs=0.01)
        # 1M transitions of 5 + 2 numbers, reward and termination, 4 bytes each, and one entry more an episode
        assert row["replay_gb"] == pytest.approx(row["fleet"] * 1e6 * 65 / 64 * 9 * 4 / 1e9, abs=1e-3)
    speeds = {one.fleet: one.speed for one in measured._of_speed_files(tmp_path / "speed")}
    assert speeds == {row["fleet"]: row["loop_agent_steps_per_s"] for row in rows}


def test_tdmpc_is_measured_at_the_horizon_of_the_end() -> None:
    """It plans one step at the start of a run and five from 25,000 agent steps on, which is what a run costs."""
    hyperparameters = resolve_hyperparameters("tdmpc", {"batch_size": 8, "mlp_dim": 16})
    fleet = Fleet("tdmpc", hyperparameters, World(None, 3, 1), 1, CPU)
    agent: Any = fleet.agent
    assert agent.hp.plan_horizon(agent.episode_start) == 1
    fleet.prepare()
    assert agent.hp.plan_horizon(agent.episode_start) == hyperparameters["horizon"] == 5


@pytest.mark.whole
def test_the_whole_check_of_a_gpu_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "model_size=1 num_samples=16 num_elites=4 num_pi_trajs=4 batch_size=8 mlp_dim=16 enc_dim=16 iterations=1"
    )
    asked = ["--device", "cpu", "--fleet", "2,1", "--calls", "4", "--env-ms", "0", "--results", str(tmp_path)]
    assert gpu_check.main([*asked, *arguments.split()]) == 0
    (path,) = (tmp_path / "speed").glob("*.json")
    content = json.loads(path.read_text())
    assert [row["fleet"] for row in content["measurements"]] == [1, 2]
    assert content["checks"]["fleet_difference"] < 1e-5
    assert content["checks"]["ratio"]["fleet"] == 2
    assert content["ways"].keys() == {"float32", "bf16"}
    assert content["ways"]["float32"]["update_ratio"] == 1.0
    assert content["ways"]["bf16"]["act_ms"] > 0
    assert content["checks"]["cuda_graphs_difference"] is None
    printed = capsys.readouterr().out
    assert "bf16: update" in printed
    assert "written to" in printed


def test_kinds_of_operations() -> None:
    assert speed_profile.kind_of(["aten::bmm", "aten::matmul"]) == "matrix products"
    assert speed_profile.kind_of(["aten::copy_", "Optimizer.step#Adam.step"]) == speed_profile.OPTIMISER
    assert speed_profile.kind_of(["aten::index", speed_profile.REPLAY]) == speed_profile.REPLAY
    assert speed_profile.kind_of(["something new"]) == speed_profile.OTHER


def test_memory_of_processes_that_share_a_gpu() -> None:
    """Their tensors and contexts fit together."""
    for pack in (2, 4, 8):
        assert pack * (80 * memory_share(80.0, pack) + CONTEXT_GB) == pytest.approx(80)
    with pytest.raises(UserError, match="40 processes do not fit side by side"):
        memory_share(16.0, 40)
