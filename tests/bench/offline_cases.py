"""Two tasks of short episodes, a data set of them with random numbers, and runs that learn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset_files import folder_of, mixed

from agents.registry import resolve_hyperparameters
from bench import offline, tasks
from bench.datasets.convert import convert
from bench.runspec import RunSpec
from bench.tasks import get

BALANCE = replace(get("cartpole-balance"), name="brief-balance", simulator_id="cartpole/balance", episode_agent_steps=8)
SWINGUP = replace(BALANCE, name="brief-swingup", simulator_id="cartpole/swingup")
CATCH = replace(get("cup-catch"), name="brief-catch", simulator_id="ball_in_cup/catch", episode_agent_steps=12)
BRIEF = (BALANCE, CATCH, SWINGUP)
"""The first and the last are of one shape."""
NAMES = [task.name for task in BRIEF]

TINY: dict[str, Any] = {
    "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "task_dim": 4, "num_q": 2, "num_samples": 16, "num_elites": 4,
    "num_pi_trajs": 2, "iterations": 1, "batch_size": 8, "lr": 3e-3,
}  # fmt: skip


def install(monkeypatch: Any) -> None:
    """Add the brief tasks to the task table."""
    monkeypatch.setattr(tasks, "_registered", lambda: [("brief", replace(task, tags=frozenset())) for task in BRIEF])
    clear()


def clear() -> None:
    """Forget what the task table held."""
    tasks._table.cache_clear()
    tasks._sets.cache_clear()


def make_dataset(folder: Path, rows: int = 6, seed: int = 0) -> Path:
    """A converted data set of the brief tasks, of random rows."""
    chunks = [mixed([rows] * len(BRIEF), 9, seed, NAMES)]
    convert(folder_of(folder / "chunks", chunks), folder / "set", NAMES)
    return folder / "set"


def spec(data: Path, seed: int = 1, names: Sequence[str] = NAMES, **changes: Any) -> RunSpec:
    """A run on the brief tasks."""
    rows = [get(name) for name in names]
    hyperparameters = resolve_hyperparameters("tdmpc2", TINY | changes.pop("hyperparameters", {}), tasks=rows)
    values: dict[str, Any] = {"updates": 12, "eval_every_updates": 5, "eval_episodes": 2}
    fingerprint = offline.fingerprint(data, rows)
    return offline.run_spec("tdmpc2", hyperparameters, rows, data, fingerprint, seed, **(values | changes))
