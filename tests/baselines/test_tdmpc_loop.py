"""TD-MPC in the training loop: interrupted between and after its blocks of updates, it goes on with its priorities."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from pixel_agent import TASK

from agents.registry import resolve_hyperparameters
from bench import checkpoint, tasks
from bench.failures import EXIT_DONE, EXIT_INTERRUPTED
from bench.fleet import TrainOptions
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.worker import train_runs

pytestmark = pytest.mark.whole

TINY = {
    "enc_dim": 8,
    "mlp_dim": 8,
    "latent_dim": 6,
    "batch_size": 8,
    "num_samples": 20,
    "num_elites": 4,
    "iterations": 1,
    "horizon": 2,
    "seed_agent_steps": 40,
    "schedule_agent_steps": 120,
    "buffer_size": 70,
}
OPTIONS = TrainOptions(env_workers=0, threads=1, keep_replay=True)


@pytest.fixture(autouse=True)
def _short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose episodes last 20 agent steps."""
    monkeypatch.setattr(tasks, "_built_in", lambda: {TASK.name: TASK})


def run_in(folder: Path, seed: int) -> RunDir:
    spec = RunSpec(
        agent="tdmpc",
        hyperparameters=resolve_hyperparameters("tdmpc", TINY, TASK),
        task=TASK.name,
        domain=TASK.domain,
        domain_version=TASK.domain_version,
        seed=seed,
        action_repeat=TASK.action_repeat,
        budget_env_steps=300,
        eval_every_env_steps=150,
        eval_episodes=1,
    )
    return RunDir.create(folder, spec)


def train(runs: list[RunDir], safe_points: int | None = None) -> int:
    """Train to the budget, or to an interruption at the given safe point."""
    left = iter(range(safe_points or 0))
    return train_runs(runs, OPTIONS, None, lambda: safe_points is not None and next(left, None) is None)


def returns(run: RunDir) -> list[str]:
    with run.eval_csv.open() as file:
        return [row["return"] for row in csv.DictReader(file)]


def assert_equal(left: Any, right: Any) -> None:
    """Every tensor and number the same, bit for bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list):
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    else:
        assert left == right


def test_an_interrupted_fleet_equals_one_that_never_was(tmp_path: Path) -> None:
    whole = [run_in(tmp_path / "whole", seed) for seed in (1, 2)]
    assert train(whole) == EXIT_DONE
    parts = [run_in(tmp_path / "parts", seed) for seed in (1, 2)]
    # Within the first planned episode, right after the burst of updates, and within an episode once replay is full.
    for safe_points in (52, 12, 40):
        assert train(parts, safe_points) == EXIT_INTERRUPTED
    assert train(parts) == EXIT_DONE
    for one, other in zip(whole, parts, strict=True):
        assert returns(one) == returns(other)
        left, right = (checkpoint.load(run, 150) for run in (one, other))
        assert left is not None
        assert right is not None
        for part in ("agent", "replay", "collector"):
            assert_equal(left[part], right[part])
        assert left["agent"]["updates"] == 120
        priorities = left["replay"]["priorities"]
        assert priorities["end"] == 7 * 19  # finished episodes x slices in each
        assert len(priorities["powers"]) == 3 * 19  # those that the replay has room for beside the one in progress
        assert len(priorities["powers"].unique()) > 20
