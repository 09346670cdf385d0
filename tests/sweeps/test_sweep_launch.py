"""Launching through submitit's local executor, with a worker that obeys the test."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from waiting import wait_idle, wait_until

from bench.errors import UserError
from bench.processes import Process
from bench.rundir import RunDir
from sweeps import expand, follow, launch, launches, plan, state
from sweeps.expand import Sweep
from sweeps.local import LocalExecutor
from sweeps.record import LaunchRecord

Behave = Callable[..., None]
Write = Callable[..., Path]

TEXT = """\
name: x
agents: [sac]
tasks: [cup-catch]
seeds: 4
env_steps: 2000
resources: {slots: 2, device: cpu, threads: 1}
"""


def states(sweep: Sweep, results: Path) -> list[str]:
    return [run.state for run in state.read_all(results / sweep.name, sweep.runs)]


def run_dirs(sweep: Sweep, results: Path) -> list[RunDir]:
    return [RunDir(results / sweep.name / run.run_id) for run in sweep.runs]


def live_record(sweep: Sweep, results: Path) -> LaunchRecord:
    (found,) = launches.live(results / sweep.name)
    return found


def processes(launched: LaunchRecord, role: str) -> list[Process]:
    return [slot.processes[role] for slot in launched.slots() if role in slot.processes]


def test_two_slots_train_everything(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT))
    launched = launch.launch(sweep, results, LocalExecutor())
    assert len(launched.fleets) == 4
    wait_idle(results / "x")
    assert states(sweep, results) == ["done"] * 4
    assert launched.record is not None
    claims = [json.loads(path.read_text()) for path in sorted(launched.record.path.glob("claims/*.json"))]
    assert [claim["exit_code"] for claim in claims] == [0] * 4
    attempt = run_dirs(sweep, results)[0].info()["attempts"]
    assert len(attempt) == 1
    assert attempt[0]["options"] == [
        *("--device", "cpu", "--env-workers", "1", "--threads", "1", "--checkpoint-every-s", "300.0")
    ]
    again = launch.launch(sweep, results, LocalExecutor())
    assert again.record is None
    assert len(again.done) == 4


@pytest.mark.whole
def test_every_kind_of_failure_is_named_and_the_slot_goes_on(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["resources.slots=1", "seeds=5"])
    behave(seed1="die", seed2="fail", seed3="exit7", seed4="silent")
    launch.launch(sweep, results, LocalExecutor())
    wait_idle(results / "x")
    runs = state.read_all(results / "x", sweep.runs)
    assert [run.state for run in runs] == ["failed"] * 4 + ["done"]
    errors = [str(run.error) for run in runs[:4]]
    log = "(log: "
    assert errors[0].startswith(f"WorkerDied: the worker was killed by SIGSEGV; its last line: about to crash {log}"), (
        errors[0]
    )
    assert errors[1] == "ValueError: the reward was not a number"
    assert errors[2].startswith(
        f"WorkerDied: the worker ended with exit code 7; its last line: error: something is missing {log}"
    )
    assert errors[3].startswith(f"WorkerDied: the worker ended with exit code 0 and left the run unfinished {log}")
    failure = run_dirs(sweep, results)[0].read_json("failed.json")
    assert failure is not None
    assert failure["exit_code"] == -signal.SIGSEGV


@pytest.mark.whole
def test_a_worker_stopped_before_it_listens_leaves_its_run_to_a_later_launch(
    write: Write, results: Path, behave: Behave
) -> None:
    sweep = expand.load(write(TEXT), ["seeds=1"])
    behave(seed1="deaf")
    launch.launch(sweep, results, LocalExecutor())
    wait_idle(results / "x")
    assert states(sweep, results) == ["pending"]
    behave()
    launch.launch(sweep, results, LocalExecutor())
    wait_idle(results / "x")
    assert states(sweep, results) == ["done"]


@pytest.mark.whole
def test_second_launch_leaves_alone_what_the_first_has(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["seeds=3", "resources.slots=1"])
    behave(seed1="sleep")
    first = launch.launch(sweep, results, LocalExecutor())
    assert first.record is not None
    wait_until(lambda: states(sweep, results)[0] == "running")
    more = expand.load(write(TEXT), ["seeds=4", "resources.slots=1"])
    second = launch.launch(more, results, LocalExecutor())
    assert second.record is not None
    assert second.record.fleets == [[more.runs[3].run_id]]  # only what nobody has
    assert {name: len(runs) for name, runs in second.busy.items()} == {f"launch {first.record.name}": 3}
    wait_until(lambda: states(more, results)[3] == "done")
    assert states(more, results)[:3] == ["running", "pending", "pending"]


@pytest.mark.whole
def test_cancel_kills_and_a_later_launch_goes_on(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["seeds=3"])
    behave(seed1="sleep", seed2="sleep")
    launch.launch(sweep, results, LocalExecutor())
    wait_until(lambda: states(sweep, results) == ["running", "running", "pending"])
    launched = live_record(sweep, results)
    everyone = [p for role in ("controller", "slot", "worker") for p in processes(launched, role)]
    assert len(everyone) == 6
    assert all(process.alive for process in everyone)
    cancelled = launch.cancel(results / "x", grace_s=20)
    assert len(cancelled.runs) == 3
    assert cancelled.killed == ()  # all of them listened to SIGTERM
    assert not any(process.alive for process in everyone)
    assert states(sweep, results) == ["pending"] * 3
    behave()
    launch.launch(sweep, results, LocalExecutor())
    wait_idle(results / "x")
    assert states(sweep, results) == ["done"] * 3
    assert launch.cancel(results / "x").stopped == ()


def test_cancel_is_final_for_a_worker_that_does_not_listen(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["seeds=1"])
    behave(seed1="stubborn")
    launch.launch(sweep, results, LocalExecutor())
    wait_until(lambda: states(sweep, results) == ["running"])
    (worker,) = processes(live_record(sweep, results), "worker")
    cancelled = launch.cancel(results / "x", grace_s=0.3)
    assert worker in cancelled.killed
    assert not worker.alive
    assert not launches.live(results / "x")
    assert states(sweep, results) == ["pending"]


@pytest.mark.whole
def test_cancelling_one_run_of_a_fleet_lets_the_others_go_on(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["resources.slots=1", "resources.fleet=2"])
    behave(seed1="sleep", seed4="sleep")
    launch.launch(sweep, results, LocalExecutor())
    wait_until(lambda: states(sweep, results)[:2] == ["running", "running"])
    cancelled = launch.cancel(results / "x", ["cup-catch/seed[14]"], grace_s=20)
    assert len(cancelled.runs) == 2
    wait_idle(results / "x")
    assert states(sweep, results) == ["pending", "done", "done", "pending"]


def test_a_dead_slot_leaves_its_fleet_to_another(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["seeds=2"])
    behave(seed1="sleep", seed2="sleep")
    launch.launch(sweep, results, LocalExecutor())
    wait_until(lambda: states(sweep, results) == ["running", "running"])
    launched = live_record(sweep, results)
    owner = {runs[0]: slot for (slot, _), runs in launched.working().items()}
    slot = launched.slots()[owner[sweep.runs[0].run_id]]
    slot.processes["slot"].signal(signal.SIGKILL)
    slot.processes["worker"].signal(signal.SIGKILL)
    wait_until(lambda: states(sweep, results)[0] == "stale")
    behave()
    other = launched.slots()[owner[sweep.runs[1].run_id]]
    other.processes["worker"].signal(signal.SIGTERM)  # frees the other slot
    wait_idle(results / "x")
    assert states(sweep, results) == ["done", "pending"]


@pytest.mark.whole
def test_a_larger_budget_extends_done_runs(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["seeds=1"])
    launch.launch(sweep, results, LocalExecutor())
    wait_idle(results / "x")
    larger = expand.load(write(TEXT), ["seeds=1", "env_steps=4000"])
    assert launch.launch(larger, results, LocalExecutor()).record is not None
    wait_idle(results / "x")
    (run,) = run_dirs(larger, results)
    assert run.spec.budget_env_steps == 4000
    assert run.progress().reached == 4000
    assert len(run.info()["attempts"]) == 2


def test_submission_failure_is_one_line(
    write: Write, results: Path, behave: Behave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.local.sys.executable", "/bin/false")
    with pytest.raises(UserError, match=r"the slots of launch .* could not be started: no output \(log: "):
        launch.launch(expand.load(write(TEXT)), results, LocalExecutor())
    assert not launches.live(results / "x")


def test_following_says_what_happens(
    write: Write, results: Path, behave: Behave, capsys: pytest.CaptureFixture
) -> None:
    sweep = expand.load(write(TEXT), ["resources.fleet=2", "resources.slots=1"])
    behave(seed3="fail", seed1="sleep")
    launch.launch(sweep, results, LocalExecutor())
    wait_until(lambda: any(run.progress.last_return for run in state.read_all(results / "x", sweep.runs)))
    runs, live = state.read_all(results / "x", sweep.runs), launches.live(results / "x")
    (row,) = follow.rows(runs, live)
    assert row[0] == "sac cup-catch seeds 1,2"
    assert row[2:4] == ("return 12.5", "100.0 agent steps/s")
    # Half of 1000 agent steps are done, seed 2 has its 1000 to go, and so has the second fleet: 20 s at 100 a second.
    assert follow.eta_s(runs, live) == pytest.approx(20.0)
    behave(seed3="fail")
    processes(live[0], "worker")[0].signal(signal.SIGTERM)  # interrupted: seeds 1 and 2 stay unfinished
    code = follow.follow(
        Console(width=200, highlight=False, markup=False),
        results / "x",
        lambda: state.read_all(results / "x", sweep.runs),
        line_every_s=0.1,
    )
    text = capsys.readouterr().out
    assert code == 1
    assert "sac/cup-catch/seed3-" in text
    assert "failed: ValueError: the reward was not a number" in text
    assert "done at 2,000 env steps, return 25.0" in text
    assert "ended: 1 done, 1 failed, 2 pending" in text
    assert "2 runs unfinished: launch again to go on" in text


def test_runs_have_a_session_of_their_own_and_count_as_running(write: Write, results: Path, behave: Behave) -> None:
    sweep = expand.load(write(TEXT), ["seeds=2", "resources.slots=1"])
    behave(seed1="sleep")
    launch.launch(sweep, results, LocalExecutor())
    wait_until(lambda: states(sweep, results)[0] == "running")
    assert [fleet.run_ids for fleet in plan.make(sweep, results).fleets] == [[sweep.runs[1].run_id]]
    launched = live_record(sweep, results)
    for role in ("controller", "slot", "worker"):
        (process,) = processes(launched, role)
        assert os.getsid(process.pid) != os.getsid(0)  # closing the terminal, or Ctrl-C in it, does not reach them


def test_claims_survive_slow_readers(tmp_path: Path, write: Write) -> None:
    """A fleet is claimed once; a claim whose owner is gone is free again, an ended one is not."""
    info = {"fleets": [{"runs": ["a/t/seed1-x"]}, {"runs": ["a/t/seed2-y"]}]}
    launched = LaunchRecord.create(tmp_path, write(TEXT), info)
    me, gone = Process.current(), Process(Process.current().host, os.getpid(), 1)
    assert launched.claim_next(0, gone) == 0
    assert launched.claim_next(1, me) == 0
    assert launched.claim_next(2, me) == 1
    assert launched.claim_next(3, me) is None
    launched.end_claim(0, 0)
    launched.release(["a/t/seed2-y"])
    assert launched.claim_next(3, me) is None
