"""Fleets and packs: how plans group runs, by the sweep file and the GPU's memory, and how a slot trains a pack."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from waiting import wait_idle, wait_until

from agents import registry
from bench.rundir import RunDir
from sweeps import cost, devices, expand, launch, launches, measured, plan, plan_text, sizing, state
from sweeps.expand import Sweep
from sweeps.local import LocalExecutor
from sweeps.measured import Measurement
from sweeps.spec import Resources

Behave = Callable[..., None]
Write = Callable[..., Path]

TEXT = """\
name: x
agents: [sac]
tasks: [cup-catch]
seeds: 4
env_steps: 2000
resources: {slots: 1, device: cpu, threads: 1}
"""


@pytest.fixture
def no_fleets(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAC as an agent that cannot train as a fleet."""
    single = [entry.__class__(**(vars(entry) | {"max_fleet": 1})) for entry in registry.BUILT_IN]
    monkeypatch.setattr(registry, "BUILT_IN", tuple(single))


def fleets(sweep: Sweep, results: Path, known: list[Measurement] | None = None) -> list[tuple[int, int]]:
    return [(len(fleet.runs), fleet.pack) for fleet in plan.make(sweep, results, known or []).fleets]


def measurement(sweep: Sweep, **changes: Any) -> Measurement:
    spec = sweep.runs[0]
    facts: dict[str, Any] = {
        **{key: getattr(spec, key) for key in ("agent", "hyperparameters", "obs", "num_envs", "task", "domain")},
        **{"fleet": 1, "device": "cuda", "host": "node", "speed": 10.0, "kind": "finished run"},
    }
    return Measurement(**(facts | changes))


def test_pack_holds_for_agents_without_fleets_and_for_those_named(
    write: Write, tmp_path: Path, no_fleets: None
) -> None:
    both = TEXT.replace("[sac]", "[tdmpc2, sac]").replace("threads: 1", "threads: 1, fleet: 4, pack: 2")
    assert fleets(expand.load(write(both)), tmp_path) == [(1, 2)] * 8
    only_sac = expand.load(write(both), ["resources.pack={sac: 3}"])
    made = plan.make(only_sac, tmp_path)
    assert [(fleet.spec.agent, fleet.pack) for fleet in made.fleets] == [("tdmpc2", 1)] * 4 + [("sac", 3)] * 4
    assert plan.slots(9, made.fleets) == 4 + 2


def test_pack_leaves_fleets_alone_where_they_can_be(write: Write, tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["resources.fleet=2", "resources.pack=2"])
    assert fleets(sweep, tmp_path) == [(2, 1), (2, 1)]
    assert fleets(expand.load(write(TEXT), ["resources.pack={sac: 2}"]), tmp_path) == [(1, 2)] * 4


def test_fleets_fit_in_the_memory_that_was_measured(write: Write, tmp_path: Path) -> None:
    on_gpu = ["resources.device=cuda", "resources.fleet=auto", "resources.gpu_memory_gb=10", "seeds=12"]
    sweep = expand.load(write(TEXT), on_gpu)
    unknown = plan.make(sweep, tmp_path).fleets
    assert [len(fleet.runs) for fleet in unknown] == [1] * 12
    assert unknown[0].why == "fleets of 1: its GPU memory was never measured (resources.run_gpu_gb)"
    # Of 10 GB 9 are usable. Four runs took 3 GB with their process's 0.6: ten in proportion 7.5, eleven 8.25 + 0.6.
    known = [measurement(sweep, fleet=4, peak_gpu_gb=3.0), measurement(sweep, fleet=2, peak_gpu_gb=2.0)]
    made = plan.make(sweep, tmp_path, known).fleets
    assert [len(fleet.runs) for fleet in made] == [6, 6]
    assert made[0].why == "cut to fit: 8.8 of 10.0 GB (2 × finished run; GPU: sweep file)"
    all_fit = plan.make(expand.load(write(TEXT), [*on_gpu, "seeds=11"]), tmp_path, known).fleets
    assert [len(fleet.runs) for fleet in all_fit] == [11]
    given = expand.load(write(TEXT), [*on_gpu, "resources.run_gpu_gb=2"])
    assert fleets(given, tmp_path, known) == [(4, 1)] * 3
    two_slots = expand.load(write(TEXT), [*on_gpu, "seeds=8", "resources.slots=2"])
    assert fleets(two_slots, tmp_path, known) == [(4, 1)] * 2  # no slot stays without work


def test_a_number_is_kept_where_memory_is_unknown_and_cut_where_it_is_not(write: Write, tmp_path: Path) -> None:
    asked = expand.load(write(TEXT), ["resources.device=cuda", "resources.fleet=4", "resources.gpu_memory_gb=4"])
    (fleet,) = plan.make(asked, tmp_path).fleets
    assert fleet.why == "as the sweep file asks, unchecked: its GPU memory was never measured (resources.run_gpu_gb)"
    known = [measurement(asked, fleet=1, peak_gpu_gb=1.0)]
    assert fleets(asked, tmp_path, known) == [(2, 1), (2, 1)]
    too_large = plan.make(asked, tmp_path, [measurement(asked, peak_gpu_gb=8.0)]).fleets
    assert [len(fleet.runs) for fleet in too_large] == [1] * 4
    assert too_large[0].why.startswith("does not fit: 8.6 of 4.0 GB")


def test_packs_fit_in_the_memory_too(write: Write, tmp_path: Path, no_fleets: None) -> None:
    asked = ["resources.device=cuda", "resources.pack=4", "resources.gpu_memory_gb=6", "resources.run_gpu_gb=2"]
    assert fleets(expand.load(write(TEXT), asked), tmp_path) == [(1, 2)] * 4


def test_memory_of_the_gpu_is_asked_of_the_driver(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(devices, "cuda_memory_gb", lambda: [80.0, 24.0])
    asked = ["resources.device=cuda", "resources.fleet=auto", "resources.run_gpu_gb=5"]
    assert fleets(expand.load(write(TEXT), asked), tmp_path) == [(4, 1)]
    (first_gpu,) = plan.make(expand.load(write(TEXT), [*asked, "resources.gpus=[0]"]), tmp_path).fleets
    assert first_gpu.why == "fits: 20.6 of 80.0 GB (sweep file; GPU: this machine)"


def test_environment_processes_by_the_cores_of_a_fleet() -> None:
    nothing_said, two = Resources(), Resources(env_workers=2)
    assert [sizing.env_workers(nothing_said, "cuda", cores) for cores in (1, 2, 8, 64)] == [1, 1, 7, 16]
    assert sizing.env_workers(nothing_said, "cpu", 8) == 1
    assert sizing.env_workers(two, "cuda", 8) == sizing.env_workers(two, "cpu", 8) == 2


def test_the_grouping_is_shown(write: Write, tmp_path: Path) -> None:
    made = plan.make(expand.load(write(TEXT), ["resources.pack={sac: 3}"]), tmp_path)
    out = io.StringIO()
    costs = cost.cost(made.fleets, "cpu", [])
    plan_text.show(Console(file=out, width=200), made, costs, cost.total(made, costs, "cpu", []))
    assert "To start: 4 runs in 4 fleets, 1 slot on cpu" in out.getvalue()
    assert "Grouping: sac: 4 fleets of 1 run, 3 side by side in a slot; as the sweep file asks" in out.getvalue()


def test_a_pack_is_estimated_from_packs_alone(write: Write, tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["resources.pack={sac: 2}", "resources.device=cuda"])
    made = plan.make(sweep, tmp_path)
    alone, packed = measurement(sweep), measurement(sweep, pack=2)
    assert cost.rate_of(made.fleets[0], "cuda", [alone]) is None  # how much slower it is side by side was not measured
    costs = cost.cost(made.fleets, "cuda", [alone, packed])
    assert [item.wall_s for item in costs] == [pytest.approx(100.0)] * 4
    assert max(cost.busy_s(costs, slots=1)) == pytest.approx(200.0)  # two at a time


def test_a_larger_fleet_gives_an_estimate_that_is_no_lower(write: Write, tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT), ["resources.fleet=3"])
    (fleet, _) = plan.make(sweep, tmp_path).fleets
    known = [measurement(sweep, fleet=size, device="cpu", speed=100.0 / size) for size in (1, 8, 4)]
    rate = cost.rate_of(fleet, "cpu", known)
    assert rate is not None
    assert rate.speed == pytest.approx(25.0)
    assert rate.source == "1 × finished run (cup-catch; fleet of 4; cpu, node)"


@pytest.mark.whole
def test_a_slot_trains_a_pack_side_by_side(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["resources.pack={sac: 3}", "seeds=5"])
    behave(seed1="sleep", seed2="die", seed3="sleep")
    launched = launch.launch(sweep, results, LocalExecutor())
    assert launched.record is not None
    assert launched.record.info["slots"] == 1

    def states() -> list[str]:
        return [run.state for run in state.read_all(results / "x", sweep.runs)]

    # The one that crashed takes no other with it, and its place is taken by those that wait.
    wait_until(lambda: states() == ["running", "failed", "running", "done", "done"])
    running = [sweep.runs[0].run_id, sweep.runs[2].run_id]
    working = launched.record.working
    wait_until(lambda: sorted(run_id for fleet in working().values() for run_id in fleet) == running)
    first = RunDir(results / "x" / sweep.runs[0].run_id)
    assert first.info()["attempts"][0]["options"][-2:] == ["--pack", "3"]
    launch.cancel(results / "x", ["seed3"], grace_s=20)
    wait_until(lambda: states()[2] == "pending")
    assert states()[0] == "running"  # of the two workers of the slot only the one that was meant has stopped
    everything = launch.cancel(results / "x", grace_s=20)
    assert everything.killed == ()
    assert states() == ["pending", "failed", "pending", "done", "done"]
    assert not launches.live(results / "x")


@pytest.mark.whole
def test_real_workers_side_by_side(write: Write, results: Path) -> None:
    """Three trainings in one slot, two at a time; one fails for good reason and the others reach their budgets."""
    small = "{agent: sac, hyperparameters: {hidden_dim: 8, batch_size: 4, seed_agent_steps: 600}}"
    sweep = expand.load(
        write(TEXT.replace("[sac]", f"[{small}]")),
        ["seeds=3", "env_steps=1200", "eval_episodes=1", "resources.pack={sac: 2}", "resources.env_workers=0"],
    )
    broken = RunDir.create(results / "x", sweep.runs[1])
    (broken.path / "replay").write_text("a file where a folder should be")
    launch.launch(sweep, results, LocalExecutor())
    wait_idle(results / "x")
    runs = state.read_all(results / "x", sweep.runs)
    assert [run.state for run in runs] == ["done", "failed", "done"]
    assert [run.directory.info()["attempts"][0]["pack"] for run in runs] == [2, 2, 2]
    assert {m.pack for m in measured.read(results)} == {2}
    claims = [json.loads(path.read_text()) for path in (results / "x").glob(".launch/*/claims/*.json")]
    assert {claim["role"] for claim in claims} == {"worker", "worker-1"}
