"""The training loop of an agent that remembers and learns from sequences, where episodes are shorter than those."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pixel_agent import TASK, installed
from test_training import after, assert_equal, evaluations, never, options

from agents.registry import resolve_hyperparameters
from bench import checkpoint
from bench.envs import rendering
from bench.errors import UserError
from bench.failures import EXIT_DONE, EXIT_INTERRUPTED
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.worker import train_runs

try:
    rendering.choose_backend()
    REASON = ""
except UserError as error:
    REASON = str(error)
pytestmark = pytest.mark.whole

BUDGET = 50  # agent steps of each environment: two and a half episodes
TINY = {
    "deter": 16, "hidden": 16, "units": 16, "stoch": 4, "classes": 4, "vector_layers": 1, "vector_units": 16,
    "cnn_depth": 2, "image_size": 16, "horizon": 3, "batch_size": 3, "batch_length": 30, "prefill_windows": 4,
    "train_ratio": 30,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed(tmp_path / "site", monkeypatch):
        yield


def spec(obs: str, **hyperparameters: Any) -> RunSpec:
    return RunSpec(
        agent="dreamerv3",
        hyperparameters=resolve_hyperparameters("dreamerv3", TINY | hyperparameters),
        task=TASK.name,
        domain=TASK.domain,
        domain_version=TASK.domain_version,
        obs=obs,
        seed=1,
        num_envs=2,
        action_repeat=TASK.action_repeat,
        budget_env_steps=2 * 2 * BUDGET,
        eval_every_env_steps=180,
        eval_episodes=1,
    )


@pytest.mark.parametrize(
    ("obs", "generation"),
    [
        ("state", 2023),
        ("state", 2024),
        pytest.param("rgb", 2023, marks=pytest.mark.skipif(bool(REASON), reason=REASON)),
    ],
)
def test_an_interrupted_run_equals_one_that_never_was(obs: str, generation: int, tmp_path: Path) -> None:
    one = spec(obs, generation=generation)
    workers = options(env_workers=1 if obs == "rgb" else 0)
    whole = RunDir.create(tmp_path / "whole", one)
    assert train_runs([whole], workers, None, never) == EXIT_DONE
    rows = evaluations(whole)
    assert {row["length"] for row in rows} == {"20"}

    run = RunDir.create(tmp_path / "parts", one)
    for calls in (5, 38, 4):  # in the seed phase, within an episode while it learns, later in the same
        assert train_runs([run], workers, None, after(calls)) == EXIT_INTERRUPTED
    assert train_runs([run], workers, None, never) == EXIT_DONE
    assert evaluations(run) == rows
    final = [checkpoint.load(each, 2 * BUDGET) for each in (whole, run)]
    assert final[0] is not None
    assert final[1] is not None
    assert final[0]["agent"]["updates"] > 5
    for part in ("agent", "replay", "collector", "random_actions"):
        assert_equal(final[0][part], final[1][part], part)
