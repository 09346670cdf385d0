"""An agent that breaks the protocol stops its run with one line that says how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.registry import resolve_hyperparameters
from baselines.sac import SAC
from bench.failures import EXIT_DONE, EXIT_FAILED
from bench.fleet import TrainOptions
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.tasks import get
from bench.worker import train_runs

pytestmark = pytest.mark.whole


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    row = get("cartpole-balance")
    small = {"hidden_dim": 16, "batch_size": 8, "seed_agent_steps": 10}
    spec = RunSpec(
        agent="sac",
        hyperparameters=resolve_hyperparameters("sac", small),
        task=row.name,
        domain=row.domain,
        domain_version=row.domain_version,
        seed=1,
        action_repeat=20,
        budget_env_steps=1200,
        eval_every_env_steps=1200,
        eval_episodes=1,
    )
    return RunDir.create(tmp_path, spec)


def train(run: RunDir) -> int:
    return train_runs([run], TrainOptions(env_workers=0, threads=1), None, lambda: False)


UPDATE = SAC.update


@pytest.mark.parametrize(
    ("member", "value", "line"),
    [
        ("update", None, "SAC.update must be a method"),
        ("max_fleet", "many", "SAC.max_fleet must be None (any number of runs) or at least 1, not 'many'"),
        (
            "act",
            lambda self, obs, first, explore: torch.zeros(1, 2),
            "SAC.act must return a float32 tensor (R, N, A) = (1, 1, 1) in [-1, 1], not float32 (1, 2)",
        ),
        (
            "act",
            lambda self, obs, first, explore: torch.full((1, obs.shape[1], 1), 1.25),
            "SAC.act must return actions in [-1, 1], not 1.25",
        ),
        (
            "act",
            lambda self, obs, first, explore: torch.full((1, obs.shape[1], 1), torch.nan if explore else 0.0),
            "the agent's action is not a number at agent step ",
        ),
        (
            "updates_due",
            lambda self, before, after: 0.5,
            "SAC.updates_due must return a whole number of at least 0, not 0.5",
        ),
        (
            "update",
            lambda self, batch: {"loss": torch.zeros(())},
            "SAC.update must return a dict of tensors (R,) = (1,) without gradients; 'loss' has shape ()",
        ),
        (
            "update",
            lambda self, batch: UPDATE(self, batch) | {"critic_loss": torch.tensor([torch.inf])},
            "a loss is not a number at agent step ",
        ),
    ],
)
def test_a_breach_is_one_line(member: str, value: Any, line: str, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAC, member, value)
    assert train(run) == EXIT_FAILED
    failed = run.read_json("failed.json")
    assert failed is not None
    assert failed["message"].startswith(line)
    assert "\n" not in failed["message"]


def test_an_agent_that_observes_is_told_every_agent_step(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[torch.Tensor, ...]] = []
    observe: Callable[..., None] = lambda self, *step: told.append(step)  # noqa: E731
    monkeypatch.setattr(SAC, "observe", observe, raising=False)
    assert train(run) == EXIT_DONE
    assert len(told) == 60, "the ten random ones included"
    shapes = [(1, 1, 5), (1, 1), (1, 1), (1, 1)]
    assert all([tuple(value.shape) for value in step] == shapes for step in told)
    assert [value.dtype for value in told[0]] == [torch.float32, torch.float32, torch.bool, torch.bool]
    assert not any(step[2].any() or step[3].any() for step in told[:49])
    assert len({tuple(step[0].flatten().tolist()) for step in told}) == 60
