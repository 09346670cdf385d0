"""The committed learning curves: the agents learned, with exactly the settings that the sweep files have."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sweeps import expand

ROOT = Path(__file__).parents[2]
LEARNING = ROOT / "results" / "learning"
SWEEPS = {
    "dreamerv3": "sweeps/dreamerv3-learning.yaml",
    "tdmpc": "sweeps/tdmpc-learning.yaml",
    "simbav2": "sweeps/simbav2-learning.yaml",
    "drqv2": "sweeps/drqv2-learning.yaml",
    "curl": "sweeps/curl-learning.yaml",
}
"""The sweep file of each folder of curves."""
RISES = [
    ("dreamerv3", "finger-spin", 200),
    ("dreamerv3", "cheetah-run", 30),
    ("tdmpc", "cup-catch", 700),
    ("tdmpc", "cartpole-swingup", 500),
    ("simbav2", "cup-catch", 900),
    ("simbav2", "cartpole-swingup", 650),
    ("drqv2", "cartpole-balance", 500),
    ("drqv2", "cartpole-swingup", 150),
    ("curl", "finger-spin", 80),
    ("curl", "walker-walk", 60),
]
"""Folder, task, and by how much every seed's last return is above that of the untrained agent, at least."""


@pytest.mark.parametrize("folder", SWEEPS)
def test_the_sweep_file_is_what_was_measured(folder: str) -> None:
    runs = pd.read_csv(LEARNING / folder / "runs.csv")
    sweep = expand.load(ROOT / SWEEPS[folder])
    assert {run.hash for run in sweep.runs} == set(runs["hash"])
    assert set(runs["state"]) == {"done"}
    assert (runs["env_steps"] >= runs["budget_env_steps"]).all()


@pytest.mark.parametrize(("folder", "task", "rise"), RISES)
def test_every_seed_learned(folder: str, task: str, rise: float) -> None:
    evals = pd.read_csv(LEARNING / folder / "evals.csv")
    curves = evals[evals["task"] == task].sort_values("env_steps").groupby("seed")["return"]
    assert len(curves) >= 2
    assert (curves.last() - curves.first()).min() >= rise
