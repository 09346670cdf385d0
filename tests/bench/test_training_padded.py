"""Tasks of different sizes in one fleet: what is written is what the runs write alone, and any grouping resumes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_training import after, assert_equal, never, options, spec, train

from agents.registry import resolve_hyperparameters
from bench import agent_spec, checkpoint
from bench.errors import UserError
from bench.failures import EXIT_DONE, EXIT_INTERRUPTED
from bench.replay_log import ReplayLog
from bench.rundir import RunDir
from bench.runspec import Init, RunSpec
from bench.worker import train_runs

TINY = {
    "enc_dim": 8, "mlp_dim": 8, "latent_dim": 8, "num_q": 2, "num_samples": 8, "num_elites": 4, "num_pi_trajs": 2,
    "iterations": 1, "batch_size": 8, "seed_agent_steps": 50, "lr": 1e-5,
}  # fmt: skip
# Episodes of 1000 env steps last 50 agent steps.
CHANGES: dict[str, Any] = {
    "hyperparameters": resolve_hyperparameters("tdmpc2", TINY),
    "action_repeat": 20,
    "budget_env_steps": 3000,
    "eval_every_env_steps": 3000,
    "eval_episodes": 1,
}
SPECS = [spec("tdmpc2", seed, task, **CHANGES) for seed, task in ((1, "reacher-easy"), (2, "fish-swim"))]
"""Damped bodies: a pole that falls over would turn the last digit of an action into the fourth of an observation."""
REL = 1e-4
"""Float32 rounds otherwise in a fleet, and training amplifies that."""


def rows(path: Path) -> tuple[list[str], np.ndarray]:
    """The columns of a table but for the times, and its numbers."""
    with path.open() as file:
        table = [{key: value for key, value in row.items() if "wall_s" not in key and "per_s" not in key}
                 for row in csv.DictReader(file)]  # fmt: skip
    return list(table[0]), np.array([[float(value or "nan") for value in row.values()] for row in table])


def assert_alike(one: RunDir, other: RunDir) -> None:
    for name in ("eval_csv", "train_csv"):
        (columns, left), (others, right) = rows(getattr(one, name)), rows(getattr(other, name))
        assert columns == others
        np.testing.assert_allclose(left, right, rtol=REL, atol=1e-6, err_msg=name)
    for left, right in zip(episodes(one), episodes(other), strict=True):
        assert left.keys() == right.keys()
        for key, value in left.items():
            np.testing.assert_allclose(value, right[key], rtol=REL, atol=1e-4, err_msg=key)


def episodes(run: RunDir) -> list[dict[str, Any]]:
    log = ReplayLog(run.replay)
    return [vars(episode) for episode in log.read(log.position(), 10**6)]


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    folder = tmp_path_factory.mktemp("singles")
    return [train(folder, [one])[0] for one in SPECS]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    return train(tmp_path_factory.mktemp("fleet"), SPECS)


@pytest.mark.whole
def test_a_padded_fleet_gives_what_single_runs_give(singles: Sequence[RunDir], fleet: Sequence[RunDir]) -> None:
    for one, together in zip(singles, fleet, strict=True):
        assert_alike(one, together)
        seed_phase = episodes(one)[0], episodes(together)[0]
        for key, value in seed_phase[0].items():
            assert np.array_equal(value, seed_phase[1][key]), key
    assert [episodes(run)[0]["obs"].shape for run in fleet] == [(51, 6), (51, 24)]
    assert [episodes(run)[0]["action"].shape for run in fleet] == [(50, 2), (50, 5)]


@pytest.mark.whole
def test_runs_go_on_in_another_fleet(singles: Sequence[RunDir], tmp_path: Path) -> None:
    """Interrupted in mid-episode: padded in the seed phase, then alone, then padded in another order with a third."""
    runs = [RunDir.create(tmp_path, one) for one in SPECS]
    third = RunDir.create(tmp_path, spec("tdmpc2", 3, "cartpole-balance", **CHANGES))
    for group in (runs, [third]):
        assert train_runs(group, options(), None, after(80)) == EXIT_INTERRUPTED
        assert 0 < checkpoint.saved(group[0])[-1] < 50
    for run in (*runs, third):
        assert train_runs([run], options(), None, after(60)) == EXIT_INTERRUPTED
    assert train_runs([third, runs[1], runs[0]], options(), None, after(30)) == EXIT_INTERRUPTED
    assert checkpoint.saved(third)[-1] % 50 > 0
    assert train_runs([runs[1], runs[0]], options(), None, never) == EXIT_DONE
    for one, other in zip(singles, runs, strict=True):
        assert_alike(one, other)


@pytest.mark.whole
def test_a_padded_fleet_resumed_as_itself_goes_on_exactly(fleet: Sequence[RunDir], tmp_path: Path) -> None:
    """In some attempts environments step in a process of their own, while the learner updates."""
    parts = [RunDir.create(tmp_path, one) for one in SPECS]
    for calls, env_workers in ((80, 0), (45, 1)):
        assert train_runs(parts, options(env_workers=env_workers), None, after(calls)) == EXIT_INTERRUPTED
    assert train_runs(parts, options(), None, never) == EXIT_DONE
    for one, other in zip(fleet, parts, strict=True):
        assert np.array_equal(rows(one.eval_csv)[1], rows(other.eval_csv)[1], equal_nan=True)
        states = [checkpoint.load(run, SPECS[0].clock_budget) for run in (one, other)]
        assert states[0] is not None
        assert states[1] is not None
        for part in ("agent", "replay", "collector", "random_actions"):
            assert_equal(states[0][part], states[1][part], part)


def test_what_a_fleet_is_told() -> None:
    told = agent_spec.of_fleet(SPECS)
    assert (told.obs_shape, told.action_size) == ((24,), 5)
    assert [(one.obs, one.action) for one in told.sizes] == [(6, 2), (24, 5)]
    assert agent_spec.of_fleet(SPECS[:1]) == agent_spec.of_run(SPECS[0])
    assert agent_spec.of_fleet([SPECS[1], SPECS[1]]).sizes == ()


def _other(task: str, **changes: Any) -> RunSpec:
    agent = changes.pop("agent", "tdmpc2")
    return spec(agent, 1, task, **(CHANGES | {"hyperparameters": resolve_hyperparameters(agent, {})} | changes))


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([_other(task, agent="sac") for task in ("cartpole-balance", "cup-catch")], "sac trains runs of equal sizes"),
        ([SPECS[0], _other("mw-push")], "their episodes are of different lengths"),
        ([SPECS[0], SPECS[1].model_copy(update={"init": Init(sha256="", path="")})], "that start from no checkpoint"),
    ],
)
def test_what_cannot_be_one_fleet_is_refused(specs: list[RunSpec], message: str) -> None:
    with pytest.raises(UserError, match=message):
        agent_spec.of_fleet(specs)
