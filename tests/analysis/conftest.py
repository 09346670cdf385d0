"""Run directories made by hand, through the same code that training uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import style
from analysis.tables import frame
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.schema import EVALS

EPISODES = 2


@pytest.fixture(scope="module")
def simple_fonts() -> Iterator[None]:
    """PDFs with Type 3 fonts: embedding those of a paper is most of a figure's time, and other tests do it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(style.SETTINGS, "pdf.fonttype", 3)
        yield


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunDir]:
    """Writes a run of walker-walk (or another task) with a given mean return at each evaluation."""

    def make(
        folder: Path, returns: Mapping[int, float] | None = None, *, done: bool = True, **spec_values: Any
    ) -> RunDir:
        values: dict[str, Any] = {
            "agent": "sac",
            "hyperparameters": {"batch_size": 256},
            "task": "walker-walk",
            "domain": "dmcontrol",
            "domain_version": "dm_control-x",
            "seed": 1,
            "action_repeat": 2,
            "budget_env_steps": 200,
            "eval_every_env_steps": 100,
            "eval_episodes": EPISODES,
        }
        spec = RunSpec(**(values | spec_values))
        run = RunDir.create(folder, spec)
        run.begin_attempt(
            {
                "commit": "abc123",
                "dirty": False,
                "host": "node1",
                "gpu": "H200",
                "device": "cuda:0",
                "fleet": 2,
                "job_id": "77",
                "versions": {"torch": "2.13.0"},
            }
        )
        for env_steps, mean in (returns or {}).items():
            run.append_eval(eval_rows(env_steps, [mean - 10, mean + 10]))
        last = max(returns or {0: 0})
        run.beat(env_steps=last, agent_steps_per_s=50.0, wall_s=7200.0)
        run.end_beat()
        if done:
            run.mark_done(env_steps=last, wall_s=7200.0, peak_gpu_gb=1.5)
        return run

    return make


def eval_rows(env_steps: int, returns: Sequence[float]) -> list[dict[str, Any]]:
    """The episodes of one evaluation as the loop writes them."""
    shared = {"env_steps": env_steps, "agent_steps": env_steps // 2, "wall_s": env_steps / 10}
    return [
        {**shared, "episode": episode, "return": value, "success": episode % 2, "length": 500}
        for episode, value in enumerate(returns)
    ]


@pytest.fixture(scope="session")
def make_evals() -> Callable[[Mapping[tuple[str, str, int], Mapping[int, float]]], pd.DataFrame]:
    """An `evals` table from {(agent, task, seed): {env_steps: score}}."""

    def make(scores: Mapping[tuple[str, str, int], Mapping[int, float]]) -> pd.DataFrame:
        rows = [
            {
                "run_id": f"{agent}/{task}/seed{seed}-0",
                "agent": agent,
                "variant": "default",
                "domain": "dmcontrol",
                "domain_version": "x",
                "task": task,
                "obs": "state",
                "seed": seed,
                "env_steps": env_steps,
                "agent_steps": env_steps // 2,
                "wall_s": np.nan,
                "return": score * 10,
                "success": 0.0,
                "score": score,
                "source": "test",
            }
            for (agent, task, seed), curve in scores.items()
            for env_steps, score in curve.items()
        ]
        return frame(rows, EVALS)

    return make
