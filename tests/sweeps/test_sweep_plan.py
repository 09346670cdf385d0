"""Planning: what is already done, how runs are grouped, what the rest will cost."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from agents import registry
from bench.errors import UserError
from bench.rundir import RunDir
from bench.runspec import RunSpec
from sweeps import cost, expand, measured, plan, text

TEXT = """\
name: x
agents: [sac]
tasks: [cup-catch, mw-assembly, mw-hammer]
seeds: 3
env_steps: 2000
resources: {fleet: 4, slots: 2, device: cpu}
"""


def finish(folder: Path, spec: RunSpec, wall_s: float = 10.0, fleet: int = 1, device: str = "cpu") -> RunDir:
    run = RunDir.create(folder, spec)
    run.begin_attempt({"device": device, "fleet": fleet, "host": socket.gethostname()})
    run.mark_done(env_steps=spec.budget_env_steps, wall_s=wall_s)
    return run


def test_grouping(write: Callable[[str], Path], tmp_path: Path) -> None:
    fleets = plan.make(expand.load(write(TEXT)), tmp_path).fleets
    members = [[(run.spec.task, run.spec.seed) for run in fleet.runs] for fleet in fleets]
    # Tasks of Meta-World have one shape and mix; equal shares instead of 4 + 2.
    assert members == [
        [("cup-catch", seed) for seed in (1, 2, 3)],
        [("mw-assembly", seed) for seed in (1, 2, 3)],
        [("mw-hammer", seed) for seed in (1, 2, 3)],
    ]
    assert fleets[0].title() == "sac cup-catch seeds 1,2,3"
    bigger = plan.make(expand.load(write(TEXT), ["resources.fleet=6"]), tmp_path).fleets
    assert [len(fleet.runs) for fleet in bigger] == [3, 6]
    assert bigger[1].title() == "sac 2 tasks (mw-assembly …) seeds 1,2,3"


def test_max_fleet_of_the_agent(write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    single = [entry.__class__(**(vars(entry) | {"max_fleet": 1})) for entry in registry.BUILT_IN]
    monkeypatch.setattr(registry, "BUILT_IN", tuple(single))
    assert all(len(fleet.runs) == 1 for fleet in plan.make(expand.load(write(TEXT)), tmp_path).fleets)


def test_done_and_failed_are_left_out(write: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT))
    finish(tmp_path / "x", sweep.runs[0])
    failed = RunDir.create(tmp_path / "x", sweep.runs[1])
    failed.mark_failed(ValueError("bad\nworse"))
    made = plan.make(sweep, tmp_path)
    assert plan.counts(made.runs) == {"pending": 7, "running": 0, "stale": 0, "failed": 1, "done": 1}
    assert made.runs[1].error == "ValueError: bad"
    assert made.fleets[0].run_ids == [sweep.runs[2].run_id]


def test_a_larger_budget_makes_a_done_run_pending(write: Callable[[str], Path], tmp_path: Path) -> None:
    finish(tmp_path / "x", expand.load(write(TEXT)).runs[0])
    larger = plan.make(expand.load(write(TEXT), ["env_steps=3000"]), tmp_path)
    assert larger.runs[0].state == "pending"
    assert larger.runs[0].left_agent_steps == 500  # 1000 env steps with an action repeat of 2
    assert plan.make(expand.load(write(TEXT), ["env_steps=1000"]), tmp_path).runs[0].state == "done"


def test_a_run_without_its_replay_is_not_extended(write: Callable[[str], Path], tmp_path: Path) -> None:
    run = finish(tmp_path / "x", expand.load(write(TEXT)).runs[0])
    run.mark_done(env_steps=2000, replay_kept=False)
    larger = plan.make(expand.load(write(TEXT), ["env_steps=3000", "seeds=1", "tasks=cup-catch"]), tmp_path)
    assert (larger.runs[0].state, larger.runs[0].extendable, larger.fleets) == ("pending", False, ())
    out = io.StringIO()
    text.show_plan(Console(file=out, width=300), larger, [], "cpu")
    assert "1 run ended at a smaller budget and kept no replay, so cannot be extended: left alone" in out.getvalue()


def test_a_damaged_run_is_named_and_not_fatal(write: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT))
    run = finish(tmp_path / "x", sweep.runs[0])
    (run.path / "done.json").write_text("{")
    state = plan.make(sweep, tmp_path).runs[0]
    assert state.state == "failed"
    assert "done.json is damaged" in str(state.error)


def test_cost_is_unknown_until_measured(write: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["resources.fleet=1"])
    fleets = plan.make(sweep, tmp_path).fleets
    assert all(item.wall_s is None for item in cost.cost(fleets, "cpu", measured.read(tmp_path)))


def test_cost_from_finished_runs(write: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["resources.fleet=1", "tasks=[cup-catch,mw-assembly]", "seeds=2"])
    finish(tmp_path / "x", sweep.runs[0], wall_s=10.0)  # 1000 agent steps
    made = plan.make(sweep, tmp_path)
    known = measured.read(tmp_path)
    cup, assembly, other = cost.cost(made.fleets, "cpu", known)
    assert cup.rate is not None
    assert assembly.rate is not None
    assert cup.rate.agent_steps_per_s == pytest.approx(100.0)
    assert cup.wall_s == pytest.approx(10.0)
    assert cup.rate.source == "1 × finished run (cup-catch; cpu, this machine)"
    assert assembly.rate.source == "1 × finished run (cup-catch, not mw-assembly; cpu, this machine)"
    assert cost.makespan_s([cup, assembly, other], slots=2) == pytest.approx(20.0)
    assert [item.rate for item in cost.cost(made.fleets, "cuda", known)] == [None] * 3
    other_agent = expand.load(write(TEXT), ["resources.fleet=1", "agent.batch_size=8"])
    assert cost.cost(plan.make(other_agent, tmp_path).fleets, "cpu", known)[0].rate is None


def test_cost_from_running_runs_only_once_they_learn(write: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["resources.fleet=1"])
    run = RunDir.create(tmp_path / "x", sweep.runs[0])
    run.begin_attempt({"device": "cpu", "fleet": 1})
    run.beat(env_steps=100, agent_steps_per_s=40.0, wall_s=1.0)
    assert measured.read(tmp_path) == []  # random actions are quick: no train.csv yet
    run.train_csv.write_text("env_steps\n")
    assert [m.agent_steps_per_s for m in measured.read(tmp_path)] == [40.0]


def test_cost_from_speed_files(write: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT))
    row = {"agent": "sac", "hyperparameters": sweep.runs[0].hyperparameters, "fleet": 3, "loop_agent_steps_per_s": 50}
    (tmp_path / "speed").mkdir()
    path = tmp_path / "speed" / "laptop.json"
    path.write_text(json.dumps({"device": "cpu", "host": "laptop", "measurements": [row]}))
    item = cost.cost(plan.make(sweep, tmp_path).fleets, "cpu", measured.read(tmp_path))[0]
    assert item.wall_s == pytest.approx(20.0)
    assert item.rate is not None
    assert item.rate.source == "1 × laptop.json (no single task; cpu, laptop)"
    path.write_text("{")
    with pytest.raises(UserError, match=r"laptop\.json is not JSON"):
        measured.read(tmp_path)


def test_replay_bytes(write: Callable[[str], Path]) -> None:
    sweep = expand.load(write(TEXT))
    assert plan.replay_bytes(sweep, sweep.runs[0]) == 1000 * (8 + 2 + 2) * 4
