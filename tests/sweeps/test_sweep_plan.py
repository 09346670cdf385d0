"""Planning: what is already done, how runs are grouped, what the rest will cost."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from agents import registry
from bench.errors import UserError
from bench.rundir import RunDir
from bench.runspec import RunSpec
from sweeps import cost, expand, measured, plan, plan_text
from sweeps.cli import app

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
    assert larger.runs[0].left == 500  # 1000 env steps with an action repeat of 2
    assert plan.make(expand.load(write(TEXT), ["env_steps=1000"]), tmp_path).runs[0].state == "done"


def test_a_run_without_its_replay_is_not_extended(write: Callable[[str], Path], tmp_path: Path) -> None:
    run = finish(tmp_path / "x", expand.load(write(TEXT)).runs[0])
    run.mark_done(env_steps=2000, replay_kept=False)
    larger = plan.make(expand.load(write(TEXT), ["env_steps=3000", "seeds=1", "tasks=cup-catch"]), tmp_path)
    assert (larger.runs[0].state, larger.runs[0].extendable, larger.fleets) == ("pending", False, ())
    out = io.StringIO()
    plan_text.show(Console(file=out, width=300), larger, [], cost.total(larger, [], "cpu", []))
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
    assert cup.rate.speed == pytest.approx(100.0)
    assert cup.wall_s == pytest.approx(10.0)
    assert cup.rate.source == "1 × finished run (cup-catch; cpu, this machine)"
    assert assembly.rate.source == "1 × finished run (cup-catch, not mw-assembly; cpu, this machine)"
    assert max(cost.busy_s([cup, assembly, other], slots=2)) == pytest.approx(20.0)
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
    assert [m.speed for m in measured.read(tmp_path)] == [40.0]


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
    made_up = row | {"task": None, "synthetic": {"obs_size": 8, "action_size": 2, "env_ms": 0.0}}
    of_domain = row | {"task": "walker-run", "synthetic": None, "loop_agent_steps_per_s": 25}
    for rows, wall_s, where in (
        ([made_up], 20.0, "made-up environments"),
        ([made_up, of_domain], 40.0, "walker-run, not cup-catch"),
    ):
        path.write_text(json.dumps({"device": "cpu", "host": "laptop", "measurements": rows}))
        item = cost.cost(plan.make(sweep, tmp_path).fleets, "cpu", measured.read(tmp_path))[0]
        assert item.wall_s == pytest.approx(wall_s)
        assert item.rate is not None
        assert item.rate.source == f"1 × laptop.json ({where}; cpu, laptop)"
    path.write_text("{")
    with pytest.raises(UserError, match=r"laptop\.json is not JSON"):
        measured.read(tmp_path)


def test_replay_bytes(write: Callable[[str], Path]) -> None:
    sweep = expand.load(write(TEXT))
    assert plan.replay_bytes(sweep, sweep.runs[0]) == 1000 * (8 + 2 + 2) * 4


def test_a_speed_serves_wherever_nothing_that_decides_it_differs(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Exploration schedules and learning rates differ by the task; so do batches, and those cost."""
    text = (
        "name: x\nagents: [{agent: drqv2, obs: rgb}]\ntasks: [cartpole-swingup, reacher-easy, walker-run]\nseeds: 1\n"
    )
    sweep = expand.load(write(text + "env_steps: 2000\nresources: {device: cpu}\n"))
    easy, medium, _ = sweep.runs
    assert easy.hyperparameters != medium.hyperparameters
    finish(tmp_path / "x", easy, wall_s=100.0)
    known = measured.read(tmp_path)
    costs = {item.fleet.spec.task: item.rate for item in cost.cost(plan.make(sweep, tmp_path).fleets, "cpu", known)}
    rate = costs["reacher-easy"]
    assert rate is not None
    assert (rate.speed, rate.source) == (
        10.0,
        "1 × finished run (cartpole-swingup, not reacher-easy; cpu, this machine)",
    )
    assert costs["walker-run"] is None


def test_what_costs_nothing_is_a_hyperparameter() -> None:
    for name, entry in registry.agents().items():
        free = registry.free_hyperparameters(name)
        assert free <= entry.hyperparameters_model().model_fields.keys()
        assert not {"batch_size", "model_size", "hidden_dim", "num_envs", "horizon", "seed_agent_steps"} & free
    assert registry.free_hyperparameters("gone") == frozenset()


def test_a_launch_reads_measurements_once(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = measured.read, []
    monkeypatch.setattr(measured, "read", lambda results: calls.append(results) or read(results))
    arguments = ["launch", str(write(TEXT)), "--results", str(tmp_path / "r"), "--max-gpu-hours", "5", "--dry-run"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(calls) == 1


def gpu_run(folder: Path, spec: RunSpec, wall_s: float, checkpoint: int) -> None:
    run = finish(folder, spec, wall_s=wall_s, device="cuda:0")
    run.checkpoints.mkdir()
    for agent_steps in (500, 1000):
        (run.checkpoints / f"{agent_steps:010d}.pt").write_bytes(b"x" * checkpoint)


def test_gpu_hours_and_disk(write: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["resources={device: cuda, slots: 2}", "tasks=cup-catch", "seeds=4"])
    gpu_run(tmp_path / "x", sweep.runs[0], wall_s=3600.0, checkpoint=1000)
    known = measured.read(tmp_path)
    made = plan.make(sweep, tmp_path, known)
    costs = cost.cost(made.fleets, "cuda", known)
    total = cost.total(made, costs, "cuda", known)
    assert total.wall_s == pytest.approx(2 * 3600)  # three fleets of an hour in two slots
    assert total.device_h == pytest.approx(3.0)
    assert cost.total(made, costs, "cuda", known, gpus=0.5).device_h == pytest.approx(1.5)  # both slots on one GPU
    assert total.unknown == ()
    one = 1000 * (8 + 2 + 2) * 4
    assert (total.disk.replay_at_once, total.disk.replay) == (2 * one, 3 * one)
    assert total.disk.checkpoints == 3 * 2000
    assert total.disk.checkpoints_source == "1 × finished run"
    value = cost.plan_json(made, costs, total)
    assert (value["gpu_h"], value["cpu_worker_h"]) == (pytest.approx(3.0), 0.0)
    out = io.StringIO()
    plan_text.show(Console(file=out, width=200), made, costs, total)
    assert "Time: 2.0 h with 2 slots, 3.0 GPU-hours" in out.getvalue()
    assert "checkpoints 0.0 MB (1 × finished run)" in out.getvalue()
    cost.check_gpu_hours(total, 3.5)
    with pytest.raises(UserError, match=r"--max-gpu-hours 2: this would take 3\.0 GPU-hours"):
        cost.check_gpu_hours(total, 2)


def test_more_gpu_hours_than_allowed_or_unknown_start_nothing(write: Callable[[str], Path], tmp_path: Path) -> None:
    file = write(TEXT)
    arguments = ["launch", str(file), "--results", str(tmp_path / "r"), "--max-gpu-hours", "5"]
    refused = CliRunner().invoke(app, [*arguments, "--set", "resources.device=cuda"])
    assert isinstance(refused.exception, UserError)
    assert (
        "--max-gpu-hours 5: the cost of 3 fleets is unknown (the first: sac cup-catch seeds 1,2,3): measure it"
        in str(refused.exception)
    )
    assert "`bench speed sac --task cup-catch --fleet 3 --device cuda`" in str(refused.exception)
    assert not (tmp_path / "r").exists()
    on_cpu = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert on_cpu.exit_code == 0  # no GPU, no GPU-hours


def test_many_fleets_are_added_up_by_domain(write: Callable[[str], Path], tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["seeds=12", "resources.fleet=1"])
    finish(tmp_path / "x", sweep.runs[0], wall_s=100.0)
    known = measured.read(tmp_path)
    made = plan.make(sweep, tmp_path, known)
    costs = cost.cost(made.fleets, "cpu", known)
    out = io.StringIO()
    plan_text.show(Console(file=out, width=200), made, costs, cost.total(made, costs, "cpu", known))
    (dmcontrol,) = (line for line in out.getvalue().splitlines() if "dmcontrol" in line)
    assert dmcontrol.split()[:5] == ["sac", "dmcontrol", "11", "11", "11,000"]
    assert "18 min" in dmcontrol
    assert "10.0 agent steps/s: 1 × finished run (cup-catch; cpu, this machine)" in dmcontrol
