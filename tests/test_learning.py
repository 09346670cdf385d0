"""They learn: the cheapest of the committed learning runs, again, as far as it takes to see it (results/learning/)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import pytest

from bench.failures import EXIT_DONE
from bench.fleet import TrainOptions
from bench.rundir import RunDir
from bench.worker import train_runs
from sweeps.expand import load

SWEEPS = Path(__file__).parents[1] / "sweeps"


@dataclass(frozen=True)
class Case:
    """A part of a sweep, and what its runs get, as a mean over the episodes of an evaluation."""

    sweep: str
    agent: str
    task: str
    env_steps: int
    untrained: float
    """At most, at 0 env steps."""
    learned: float
    """At least, at `env_steps`."""


CASES = [
    # Measured at 30,000 env steps, two seeds: TD-MPC2 971 and 999, SAC 599 and 669. Random actions get about 330.
    Case("cpu-learning", "tdmpc2", "cartpole-balance", 30_000, 400, 850),
    Case("cpu-learning", "sac", "cartpole-balance", 30_000, 400, 500),
    # Measured at 10,000: 185 and 193.
    Case("dreamerv3-learning", "dreamerv3", "finger-spin", 10_000, 5, 90),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.agent}-{case.task}")
def test_what_was_measured_is_learned_again(case: Case, tmp_path: Path) -> None:
    sweep = load(SWEEPS / f"{case.sweep}.yaml", [f"env_steps={case.env_steps}"])
    specs = [run for run in sweep.runs if (run.agent, run.task) == (case.agent, case.task)]
    runs = [RunDir.create(tmp_path, spec) for spec in specs]
    # Pictures are drawn in a process of their own: another test may have loaded MuJoCo without a backend into this one.
    options = TrainOptions(env_workers=1 if specs[0].obs == "rgb" else 0, threads=1)
    assert train_runs(runs, options, None, lambda: False) == EXIT_DONE
    assert len(runs) == 2
    for run in runs:
        with run.eval_csv.open() as file:
            rows = [(int(row["env_steps"]), float(row["return"])) for row in csv.DictReader(file)]
        assert mean(value for env_steps, value in rows if env_steps == 0) < case.untrained
        assert mean(value for env_steps, value in rows if env_steps == case.env_steps) > case.learned
