"""What status says of a sweep that runs: counts, hours, why runs wait; and how often it asks Slurm."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner
from waiting import wait_until

from bench.rundir import RunDir
from sweeps import expand, follow, launch, launches, plan, slurm_state, state, status, status_text
from sweeps.cli import app
from sweeps.expand import Sweep
from sweeps.local import LocalExecutor
from sweeps.record import LaunchRecord
from sweeps.slurm_state import JobState, SlurmSilent
from sweeps.state import RunState

Behave = Callable[..., None]
Write = Callable[..., Path]

TEXT = """\
name: x
agents: [sac]
tasks: [cup-catch, mw-reach]
seeds: 2
env_steps: 2000
resources: {slots: 1, device: cpu, threads: 1}
"""


def beat(sweep: Sweep, results: Path, index: int, **values: Any) -> RunDir:
    """A run that trains, or has trained, with what its heartbeat said last."""
    run = RunDir.create(results / "x", sweep.runs[index])
    facts: dict[str, Any] = {"env_steps": 1000, "agent_steps_per_s": 10.0, "wall_s": 3600.0, "return": 1.0}
    run.beat(**({"device": "cuda", "fleet": 2, "pack": 1} | facts | values))
    return run


def read(sweep: Sweep, results: Path) -> list[RunState]:
    return state.read_all(results / "x", sweep.runs)


def test_hours_used_and_to_come(write: Write, results: Path) -> None:
    sweep = expand.load(write(TEXT))
    beat(sweep, results, 0)  # 500 of 1000 agent steps are left at 10 a second, and two runs share the GPU: 25 s of it
    done = beat(sweep, results, 1, env_steps=2000, fleet=1, pack=4, wall_s=7200.0, agent_steps_per_s=5.0)
    done.mark_done(env_steps=2000, wall_s=7200.0)
    runs = read(sweep, results)
    found = status.hours(runs, runs)
    assert list(found) == ["cuda"]
    assert found["cuda"].used_h == pytest.approx(1 / 2 + 2 / 4)
    # Two pending runs of 1000 agent steps. The device does 20 agent steps a second, by both runs that were seen.
    assert found["cuda"].to_come_h == pytest.approx((25 + 2 * 1000 / 20) / 3600)
    assert found["cuda"].unknown == 0


def test_hours_of_what_never_ran_are_unknown(write: Write, results: Path) -> None:
    sweep = expand.load(write(TEXT.replace("[sac]", "[sac, tdmpc2]")))
    beat(sweep, results, 0, device="cpu", fleet=1)
    runs = read(sweep, results)
    found = status.hours(runs, runs)
    assert set(found) == {"cpu", "unknown"}
    assert (found["cpu"].unknown, found["unknown"].unknown) == (0, 4)
    lines = status_text.lines(runs, [], None)
    assert lines[0] == "CPU worker-hours: 1.00 used, 0.10 to come at the speed of this sweep's own runs"
    assert lines[1] == "Hours to come are unknown for 4 runs of agents that have not begun (see `plan`)"
    failed = beat(sweep, results, 1, device="cpu", fleet=1)
    failed.mark_failed(ValueError("bad"))
    runs = read(sweep, results)
    assert status.hours([runs[1]], runs)["cpu"].to_come_h == 0.0  # nothing comes of it unless somebody retries it


def test_learners_that_wait_for_environments_are_named(write: Write, results: Path) -> None:
    sweep = expand.load(write(TEXT))
    for index, share in enumerate((0.05, 0.4, 0.2)):
        beat(sweep, results, index, env_wait_share=share)
    runs = read(sweep, results)
    assert [plan.run_json(run)["env_wait_share"] for run in runs] == [0.05, 0.4, 0.2, None]
    (line,) = [line for line in status_text.lines(runs, [], None) if "environments" in line]
    assert line.startswith("2 running runs: the learner waits for environments 30 % of the time")


def test_rows_by_agent_and_domain(write: Write, results: Path) -> None:
    sweep = expand.load(write(TEXT))
    beat(sweep, results, 0)
    by_domain = status.rows(read(sweep, results), "domain")
    assert [(row.agent, row.name, len(row.runs)) for row in by_domain] == [
        ("sac", "dmcontrol", 2),
        ("sac", "metaworld", 2),
    ]
    assert (by_domain[0].reached, by_domain[0].budget) == (1000, 4000)
    assert by_domain[0].eta_s == pytest.approx(50.0)
    assert by_domain[1].eta_s is None
    assert [row.name for row in status.rows(read(sweep, results), "task")] == ["cup-catch", "mw-reach"]


def test_status_for_people_and_programs(write: Write, results: Path, behave: Behave) -> None:
    file = write(TEXT)
    behave(seed1="sleep")
    launch.launch(expand.load(file), results, LocalExecutor())
    wait_until(lambda: any(run.progress.last_return for run in read(expand.load(file), results)))
    arguments = ["status", str(file), "--results", str(results), "--by", "domain"]
    shown = CliRunner().invoke(app, arguments).stdout
    assert "4 runs: 1 running, 3 pending; 1 launch working" in shown
    (name,) = (launched.name for launched in launches.live(results / "x"))
    assert f"3 pending: waits for a slot of launch {name}" in shown
    value = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert value["counts"]["running"] == 1
    assert [(row["agent"], row["domain"]) for row in value["rows"]] == [("sac", "dmcontrol"), ("sac", "metaworld")]
    assert [run["why"] for run in value["runs"]] == [None, *[f"waits for a slot of launch {name}"] * 3]
    launch.cancel(results / "x", grace_s=20)
    later = CliRunner().invoke(app, arguments).stdout
    assert "4 pending: not launched" in later


@pytest.mark.whole
def test_eta_counts_the_workers_of_a_pack(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["tasks=cup-catch", "seeds=4", "resources.pack={sac: 2}"])
    behave(seed1="sleep", seed2="sleep")
    launch.launch(sweep, results, LocalExecutor())
    wait_until(lambda: sum(run.progress.last_return is not None for run in read(sweep, results)) == 2)
    # Two with 500 agent steps to go and two with 1000, at 100 a second, two at a time.
    assert follow.eta_s(read(sweep, results), launches.live(results / "x")) == pytest.approx(15.0)


@pytest.fixture
def on_slurm(write: Write, results: Path) -> tuple[Sweep, LaunchRecord]:
    """A launch of two jobs on Slurm, the first with two fleets; Slurm itself is played by the tests."""
    sweep = expand.load(write(TEXT))
    folder = results / "x"
    (folder / ".launch").mkdir(parents=True)
    fleets = [{"title": run.run_id, "runs": [run.run_id]} for run in sweep.runs[:3]]
    info = {"executor": "slurm", "fleets": fleets, "tasks": [[0, 1], [2]], "slots": 2, "set": []}
    launched = LaunchRecord.create(folder, sweep.path, info)
    launched.add_jobs("41", 0, 2, array=True)
    return sweep, launched


def test_slurm_says_why_runs_wait(
    on_slurm: tuple[Sweep, LaunchRecord], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, launched = on_slurm
    asked = []

    def states(*launches: LaunchRecord) -> dict[str, JobState]:
        asked.append([one.name for one in launches])
        return {"41_0": JobState("PENDING", "Priority"), "41_1": JobState("NODE_FAIL", "")}

    monkeypatch.setattr(slurm_state, "states", states)
    stale = RunDir.create(results / "x", sweep.runs[2])
    stale.beat(env_steps=10, wall_s=1.0)
    content = json.loads((stale.path / "heartbeat").read_text())
    (stale.path / "heartbeat").write_text(json.dumps(content | {"time": 0}))
    looked = launches.Launches(results / "x")
    for _ in range(3):
        found = looked.read()
    assert asked == [[launched.name]]  # once, though it was looked at three times
    runs = read(sweep, results)
    assert [run.state for run in runs] == ["pending", "pending", "stale", "pending"]
    assert list(status.why(runs, found).values()) == [
        "Slurm: PENDING (Priority)",
        "Slurm: PENDING (Priority)",
        "Slurm: NODE_FAIL",
        "not launched",
    ]
    assert [one.alive for one in found] == [True]
    assert follow.eta_s(runs, found) is None
    monkeypatch.setattr(launches, "ASK_SLURM_EVERY_S", 0.0)
    looked.read()
    assert len(asked) == 2


def test_status_works_where_slurm_is_silent(
    on_slurm: tuple[Sweep, LaunchRecord], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, _ = on_slurm

    def states(*launches: LaunchRecord) -> dict[str, JobState]:
        raise SlurmSilent("no squeue here: call this on the cluster's submission host")

    monkeypatch.setattr(slurm_state, "states", states)
    RunDir.create(results / "x", sweep.runs[0])
    shown = CliRunner().invoke(app, ["status", str(results / "x")]).stdout
    assert "1 run: 1 pending" in shown
    assert "could not query Slurm, last known states are shown: no squeue here" in shown


def test_the_live_table(write: Write, results: Path) -> None:
    sweep = expand.load(write(TEXT))
    beat(sweep, results, 0)
    out = io.StringIO()
    runs = read(sweep, results)
    Console(file=out, width=150, markup=False, highlight=False).print(follow.display(runs, [], None, "domain"))
    drawn = out.getvalue()
    assert "dmcontrol" in drawn
    assert "1,000/4,000" in drawn
    assert "GPU-hours: 0.50 used, 0.05 to come" in drawn
    assert "3 pending: not launched" in drawn
    assert "sac cup-catch seed 1" in drawn


def test_the_table_fits_on_a_narrow_terminal(write: Write, results: Path) -> None:
    sweep = expand.load(write(TEXT))
    beat(sweep, results, 0)
    out = io.StringIO()
    console = Console(file=out, width=80, markup=False, highlight=False)
    console.print(status_text.table(read(sweep, results), "task", console.width))
    assert "agent task" in out.getvalue()
    (cup,) = (line.split() for line in out.getvalue().splitlines() if "cup-catch" in line)
    assert cup == ["sac", "cup-catch", "1", "1", "·", "·", "·", "25", "50", "s", "0.50", "0.02"]
