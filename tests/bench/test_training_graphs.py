"""A fleet whose acting and updating are recorded and replayed learns, evaluates and resumes as a plain one does.

A tape stands in for CUDA graphs on a CPU; see `tests/agents/test_cuda_graphs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_training
from tape import GpuNoise, Tape
from test_training import after, evaluations, never, options, spec

from agents.registry import resolve_hyperparameters
from agents.tdmpc2 import agent as tdmpc2
from bench import cuda_graphs
from bench.failures import EXIT_DONE, EXIT_INTERRUPTED
from bench.rundir import RunDir
from bench.worker import train_runs

pytestmark = pytest.mark.whole

SHORT = {"budget_env_steps": 230, "eval_every_env_steps": 230}
"""Of a task whose episodes are the shortest, 100 agent steps."""


def train(folder: Path, agent: str, graphs: bool, *interruptions: int) -> list[RunDir]:
    """Two runs as one fleet, stopped at some safe points."""
    tiny = test_training.TINY[agent] | {"seed_agent_steps": 100}
    changes = SHORT | {"hyperparameters": resolve_hyperparameters(agent, tiny)}
    runs = [RunDir.create(folder, spec(agent, seed, "mw-reach", **changes)) for seed in (1, 2)]
    how = options(cuda_graphs=graphs)
    for calls in interruptions:
        assert train_runs(runs, how, None, after(calls)) == EXIT_INTERRUPTED
    assert train_runs(runs, how, None, never) == EXIT_DONE
    return runs


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
    plain = train(tmp_path / "plain", "tdmpc2", False)
    assert not tapes
    recorded = train(tmp_path / "recorded", "tdmpc2", True, 208, 50)
    assert [evaluations(run) for run in recorded] == [evaluations(run) for run in plain]
    assert sum(bool(tape.operations) for tape in tapes) >= 3, "both ways to act, and update, were recorded"
    assert [attempt["cuda_graphs"] for attempt in recorded[0].info()["attempts"]] == [True] * 3


def test_an_agent_that_cannot_be_recorded_goes_on_as_it_is(tapes: list[Tape], tmp_path: Path) -> None:
    (run, _) = train(tmp_path, "sac", True)
    assert not tapes
    assert [attempt["cuda_graphs"] for attempt in run.info()["attempts"]] == [False]
