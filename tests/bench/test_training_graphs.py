"""A fleet whose acting and updating are recorded and replayed learns, evaluates and resumes as a plain one does.

A tape stands in for CUDA graphs on a CPU; see `tests/agents/test_cuda_graphs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tape import GpuNoise, Tape

from agents.registry import resolve_hyperparameters
from agents.tdmpc2 import agent as tdmpc2
from bench import cuda_graphs
from bench.failures import EXIT_DONE, EXIT_INTERRUPTED
from bench.fleet import TrainOptions
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.tasks import get
from bench.worker import train_runs

pytestmark = pytest.mark.whole

TINY: dict[str, dict[str, Any]] = {
    "tdmpc2": {
        "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_q": 2, "num_samples": 16, "num_elites": 4, "horizon": 2,
        "num_pi_trajs": 2, "iterations": 1, "batch_size": 8, "seed_agent_steps": 100,
    },
    "sac": {"hidden_dim": 16, "batch_size": 8, "seed_agent_steps": 100},
}  # fmt: skip


def spec(agent: str, seed: int) -> RunSpec:
    row = get("mw-reach")  # with the shortest episodes, 100 agent steps
    return RunSpec(
        agent=agent,
        hyperparameters=resolve_hyperparameters(agent, TINY[agent]),
        task=row.name,
        domain=row.domain,
        domain_version=row.domain_version,
        seed=seed,
        action_repeat=row.action_repeat,
        budget_env_steps=230,
        eval_every_env_steps=230,
        eval_episodes=2,
    )


def train(folder: Path, agent: str, graphs: bool, *interruptions: int) -> list[RunDir]:
    """Two runs as one fleet, stopped at some safe points."""
    runs = [RunDir.create(folder, spec(agent, seed)) for seed in (1, 2)]
    options = TrainOptions(env_workers=0, threads=1, cuda_graphs=graphs)

    def after(calls: int) -> Callable[[], bool]:
        left = iter(range(calls))
        return lambda: next(left, None) is None

    for calls in interruptions:
        assert train_runs(runs, options, None, after(calls)) == EXIT_INTERRUPTED
    assert train_runs(runs, options, None, lambda: False) == EXIT_DONE
    return runs


def returns(runs: list[RunDir]) -> list[str]:
    """eval.csv without the times."""
    return [",".join(line.split(",")[:2] + line.split(",")[3:]) for run in runs for line in run.eval_csv.open()]


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    made: list[Tape] = []

    def recorder(agent: Any) -> Callable[[], Tape]:
        def make() -> Tape:
            made.append(Tape(agent.generators()))
            return made[-1]

        return make

    monkeypatch.setattr(cuda_graphs, "_cuda_graphs", recorder)
    monkeypatch.setattr(tdmpc2, "Noise", GpuNoise)
    return made


def test_a_recorded_fleet_equals_a_plain_one(tapes: list[Tape], tmp_path: Path) -> None:
    plain = returns(train(tmp_path / "plain", "tdmpc2", False))
    assert not tapes
    recorded = train(tmp_path / "recorded", "tdmpc2", True, 208, 50)
    assert returns(recorded) == plain
    assert sum(bool(tape.operations) for tape in tapes) >= 3, "both ways to act, and update, were recorded"
    assert [attempt["cuda_graphs"] for attempt in recorded[0].info()["attempts"]] == [True] * 3


def test_an_agent_that_cannot_be_recorded_goes_on_as_it_is(tapes: list[Tape], tmp_path: Path) -> None:
    (run, _) = train(tmp_path, "sac", True)
    assert not tapes
    assert [attempt["cuda_graphs"] for attempt in run.info()["attempts"]] == [False]
