"""CUDA graphs as a choice of the sweep: for the agents that can be recorded, and only on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UserError
from sweeps import cost, expand, launch, plan
from sweeps.measured import Measurement

Write = Callable[[str], Path]

TEXT = """\
name: x
agents: [tdmpc2, sac]
tasks: [cup-catch]
seeds: 2
env_steps: 2000
resources: {cuda_graphs: true, device: cuda, fleet: 2}
"""


def measurement(fleet: plan.Fleet, **changes: Any) -> Measurement:
    facts: dict[str, Any] = {
        **{key: getattr(fleet.spec, key) for key in ("agent", "hyperparameters", "obs", "num_envs", "task", "domain")},
        **{"fleet": 2, "device": "cuda", "host": "node", "speed": 10.0, "kind": "finished run"},
    }
    return Measurement(**(facts | changes))


def test_agents_that_can_be_are_recorded(write: Write, tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT))
    fleets = plan.make(sweep, tmp_path).fleets
    assert {fleet.spec.agent: fleet.cuda_graphs for fleet in fleets} == {"tdmpc2": True, "sac": False}
    assert "--cuda-graphs" in launch.worker_options(sweep.resources)
    plain = expand.load(write(TEXT), ["resources.cuda_graphs=false"])
    assert not any(fleet.cuda_graphs for fleet in plan.make(plain, tmp_path).fleets)
    assert "--cuda-graphs" not in launch.worker_options(plain.resources)


def test_recorded_fleets_are_estimated_from_recorded_ones(write: Write, tmp_path: Path) -> None:
    recorded, plain = sorted(
        plan.make(expand.load(write(TEXT)), tmp_path).fleets, key=lambda fleet: not fleet.cuda_graphs
    )
    for fleet, own in ((recorded, True), (plain, False)):
        known = [measurement(fleet, cuda_graphs=graphs, speed=20.0 if graphs else 10.0) for graphs in (True, False)]
        rate = cost.rate_of(fleet, "cuda", known)
        assert rate is not None
        assert rate.speed == (20.0 if own else 10.0)
        assert cost.rate_of(fleet, "cuda", [measurement(fleet, cuda_graphs=not own)]) is None


def test_without_a_gpu_it_is_a_mistake(write: Write, tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["resources.device=cpu"])
    with pytest.raises(UserError, match=r"resources\.cuda_graphs needs a GPU, and device is cpu here: leave it out"):
        plan.make(sweep, tmp_path)
