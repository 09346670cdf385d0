"""Run directories: identity, state at every instant, and repair after an interruption."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.registry import resolve_hyperparameters
from bench import atomic
from bench.errors import UserError
from bench.lock import RunLock
from bench.processes import Process
from bench.run_progress import STALE_AFTER_S
from bench.rundir import RunDir, find_runs
from bench.runspec import MULTITASK, Init, OfflineSpec, RunSpec
from bench.schema import SCHEMA_VERSION
from bench.tasks import get


def spec(**changes: object) -> RunSpec:
    values: dict[str, object] = {
        "agent": "sac",
        "hyperparameters": {"lr": 1e-4, "batch_size": 8},
        "task": "cartpole-balance",
        "domain": "dmcontrol",
        "domain_version": "v",
        "seed": 1,
        "action_repeat": 2,
        "budget_env_steps": 1000,
        "eval_every_env_steps": 500,
    }
    return RunSpec(**(values | changes))  # type: ignore[arg-type]


def eval_row(agent_steps: int) -> dict[str, object]:
    return {
        "env_steps": 2 * agent_steps,
        "agent_steps": agent_steps,
        "wall_s": 1.0,
        "episode": 0,
        "return": 3.5,
        "success": 0.0,
        "length": 500,
    }


def test_identity_is_what_decides_the_result() -> None:
    base = spec().hash
    for changed in (
        {"agent": "tdmpc2"},
        {"hyperparameters": {"lr": 1e-4, "batch_size": 9}},
        {"task": "cup-catch"},
        {"obs": "rgb"},
        {"seed": 2},
        {"num_envs": 2},
        {"action_repeat": 1},
        {"init": Init(sha256="a", path="x")},
    ):
        assert spec(**changed).hash != base, changed
    for same in ({"budget_env_steps": 2000}, {"eval_every_env_steps": 100}, {"variant": "x"}, {"domain_version": "w"}):
        assert spec(**same).hash == base, same
    assert spec(hyperparameters={"batch_size": 8, "lr": 1e-4}).hash == base, "order of keys"


def test_runs_of_before_keep_their_hash() -> None:
    """Golden: a changed hash would make finished runs new ones."""
    assert spec().hash == "2a5b1a6683"
    row = get("walker-walk")
    one = spec(agent="tdmpc2", hyperparameters=resolve_hyperparameters("tdmpc2", {}, row), task=row.name)
    assert one.run_id == "tdmpc2/walker-walk/seed1-9dee844498"
    other = resolve_hyperparameters("tdmpc2", {"precision": "bf16"}, row)
    assert spec(agent="tdmpc2", hyperparameters=other, task=row.name).hash != one.hash


def offline(**changes: object) -> RunSpec:
    learnt: dict[str, object] = {
        "tasks": ("walker-walk", "mw-reach"),
        "domain_versions": {"dmcontrol": "v", "metaworld": "w"},
        "dataset": "f00d",
        "data": "here",
        "updates": 1000,
        "eval_every_updates": 500,
    }
    return spec(
        task="walker-walk+mw-reach",
        domain=MULTITASK,
        action_repeat=1,
        budget_env_steps=0,
        eval_every_env_steps=0,
        offline=OfflineSpec(**(learnt | changes)),  # type: ignore[arg-type]
    )


def test_an_offline_run_is_its_tasks_in_order_and_its_dataset() -> None:
    base = offline()
    assert base.hash not in (offline(tasks=("mw-reach", "walker-walk")).hash, offline(dataset="beef").hash)
    for same in ({"data": "there"}, {"updates": 2000}, {"eval_every_updates": 1}, {"domain_versions": {}}):
        assert offline(**same).hash == base.hash, same
    assert (base.axis, base.clock, base.budget, base.clock_budget) == ("updates", "updates", 1000, 1000)
    assert base.budget_agent_steps == 0
    assert RunSpec(**json.loads(base.model_dump_json())) == base
    for wrong in ({"budget_env_steps": 10}, {"action_repeat": 2}, {"num_envs": 2}):
        with pytest.raises(ValidationError, match="takes no env steps"):
            RunSpec(**(base.model_dump() | wrong))
    with pytest.raises(ValidationError, match="must be at least 1"):
        spec(budget_env_steps=0)


def test_an_offline_run_counts_updates(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, offline())
    run.begin_attempt({})
    assert run.info()["attempts"][0]["from_updates"] == 0
    run.beat(updates=400, updates_per_s=2.0, wall_s=5.0, score=33.0)
    found = run.progress(1000)
    assert (found.state, found.reached, found.speed, found.last_return) == ("running", 400, 2.0, 33.0)
    row = {"wall_s": 1.0, "task": "mw-reach", "episode": 0, "return": 2.0, "success": 1.0, "length": 100}
    run.append_eval([row | {"updates": updates} for updates in (0, 500)])
    run.rewind(0, 400)
    assert (
        run.eval_csv.read_text() == "updates,wall_s,task,episode,return,success,length\n0,1.0,mw-reach,0,2.0,1.0,100\n"
    )
    with pytest.raises(UserError, match="ends at 0 updates, but the checkpoint was taken after the evaluation at 500"):
        run.rewind(500, 500)
    run.mark_done(updates=1000, wall_s=9.0)
    run.end_beat()
    assert run.progress(1000).state == "done"
    assert run.progress(2000).state == "pending", "a larger budget is not reached yet"


def test_a_run_directory_of_the_version_before_goes_on(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec())
    info = json.loads(run.run_json.read_text())
    del info["spec"]["offline"]
    atomic.write_json(run.run_json, info | {"schema_version": 1})
    assert run.spec == spec()
    run.update_spec(spec(budget_env_steps=2000))
    assert (run.info()["schema_version"], run.spec.budget) == (SCHEMA_VERSION, 2000)


def test_the_checkpoint_that_a_run_starts_from_is_part_of_it_but_not_its_place() -> None:
    begun = {sha: spec(init=Init(sha256=sha, path="here")).hash for sha in ("a", "b")}
    assert begun["a"] != begun["b"]
    assert spec(init=Init(sha256="a", path="there", task="cup-catch")).hash == begun["a"]
    rows = {spec(init=Init(sha256="a", embedding=row, path="")).hash for row in (None, "mean", 0, 1)}
    assert len(rows) == 4


def test_states_follow_from_the_files(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec())
    assert run.path == tmp_path / f"sac/cartpole-balance/seed1-{spec().hash}"
    assert run.progress().state == "pending"
    run.beat(env_steps=10, agent_steps_per_s=2.0, wall_s=5.0)
    assert run.progress().state == "running"
    run.end_beat()
    assert run.progress().state == "pending", "let go of before the end: to be taken up again"
    run.mark_failed(ValueError("no"))
    assert run.progress().state == "failed"
    assert run.begin_attempt({"host": "here"}) == 1
    assert run.progress().state == "pending"
    run.mark_done(env_steps=1000, agent_steps=500, wall_s=9.0)
    assert run.progress().state == "done"
    assert run.progress(2000).state == "pending", "a larger budget is not reached yet"


def test_a_silent_or_dead_owner_is_stale(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec())
    run.beat(env_steps=10, agent_steps_per_s=2.0, wall_s=5.0)
    beat = json.loads((run.path / "heartbeat").read_text())
    atomic.write_json(run.path / "heartbeat", beat | {"time": time.time() - STALE_AFTER_S - 1})
    assert run.progress().state == "stale"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    atomic.write_json(run.path / "heartbeat", beat | {"process": beat["process"] | {"pid": dead.pid}})
    assert run.progress().state == "stale"
    elsewhere = beat["process"] | {"pid": dead.pid, "host": "elsewhere"}
    atomic.write_json(run.path / "heartbeat", beat | {"process": elsewhere})
    assert run.progress().state == "running", "a process of another machine cannot be seen from here"


def test_a_diff_is_kept_once_however_many_attempts_ran_with_it(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec())
    for digest in ("a" * 64, "a" * 64, "b" * 64):
        run.begin_attempt({"commit": "c", "diff": f"-x\n+{digest}\n", "diff_sha256": digest})
    run.begin_attempt({"commit": "c", "diff": None, "diff_sha256": None})
    named = [attempt.get("diff_file") for attempt in run.info()["attempts"]]
    assert named == ["dirty-aaaaaaaaaaaa.diff"] * 2 + ["dirty-bbbbbbbbbbbb.diff", None]
    assert all("diff" not in attempt for attempt in run.info()["attempts"])
    assert {path.name: path.read_text() for path in run.path.glob("dirty-*")} == {
        "dirty-aaaaaaaaaaaa.diff": f"-x\n+{'a' * 64}\n",
        "dirty-bbbbbbbbbbbb.diff": f"-x\n+{'b' * 64}\n",
    }


def test_a_disk_too_full_for_the_diff_starts_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path, spec())
    write = atomic.write_text

    def full(path: Path, text: str, check: Callable[[], None]) -> None:
        if path.suffix == ".diff":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text, check)

    monkeypatch.setattr(atomic, "write_text", full)
    run.begin_attempt({"commit": "c", "diff": "-x\n+y\n", "diff_sha256": "a" * 64})
    (attempt,) = json.loads(run.run_json.read_text())["attempts"]
    assert (attempt["diff_file"], attempt["diff_error"]) == (None, "No space left on device")
    assert attempt["diff_sha256"] == "a" * 64


def test_rewind_drops_torn_and_later_rows(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec())
    run.append_eval([eval_row(0)])
    run.append_eval([eval_row(250)])
    whole = run.eval_csv.read_text()
    run.append_eval([eval_row(500)])
    text = run.eval_csv.read_text()
    for end in range(len(whole), len(text) + 1):
        run.eval_csv.write_text(text[:end])
        run.rewind(250, 250)
        assert run.eval_csv.read_text() == whole
    run.rewind(0, 0)
    assert len(run.eval_csv.read_text().splitlines()) == 2
    run.eval_csv.write_text("env_steps,agent_st")
    run.rewind(-1, 0)
    assert not run.eval_csv.exists(), "a torn header is no table"
    with pytest.raises(UserError, match=r"eval\.csv ends at -1 agent steps, .* at 250: restore the file"):
        run.rewind(250, 250)


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec())
    atomic.write_json(run.path / "heartbeat", {"time": 0.0, "ended": False})
    with pytest.raises(UserError, match="heartbeat is damaged"):
        run.progress()
    run.run_json.write_text("{")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        run.info()
    run.run_json.write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema version 99"):
        run.info()
    run.run_json.unlink()
    with pytest.raises(UserError, match="no run directory"):
        run.info()
    with pytest.raises(UserError, match="no folder"):
        find_runs(tmp_path / "nothing")


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic.write_text(path, "before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path], "nothing is left lying about"


HOLD = """
import sys, time
from pathlib import Path
from bench.lock import RunLock
from bench.rundir import RunDir
RunLock(RunDir(Path(sys.argv[1]))).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_one_writer_and_a_dead_one_gives_way(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec())
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"being trained by process {holder.pid}"):
            RunLock(run).acquire()
    finally:
        holder.kill()
        holder.wait()
    lock = RunLock(run)
    lock.acquire()
    with pytest.raises(UserError, match="being trained"):
        RunLock(run).acquire()
    lock.release()
    RunLock(run).acquire()


CONTEND = """
import sys, time
from pathlib import Path
from bench.errors import UserError
from bench.lock import RunLock
from bench.rundir import RunDir
while sys.stdin.readline():
    lock = RunLock(RunDir(Path(sys.argv[1])))
    try:
        lock.acquire()
        print("held", flush=True)
    except UserError as error:
        print("refused", flush=True)
    sys.stdin.readline()
    lock.release()
    print("over", flush=True)
"""


def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    stale = Process.current().to_json() | {"pid": dead.pid, "started_ticks": 1}
    dead.wait()
    command = [sys.executable, "-c", CONTEND, str(run.path)]
    contenders = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for _ in range(3):
        atomic.write_json(run.path / "lock", {"process": stale, "token": "x", "job_id": None})
        answers = ask(contenders, "go")
        assert {path.name for path in run.path.iterdir()} == {"run.json", "lock"}
        assert ask(contenders, "end") == ["over"] * 6
        assert sorted(answers) == ["held"] + ["refused"] * 5
    for contender in contenders:
        contender.communicate()


def ask(contenders: list[subprocess.Popen[str]], word: str) -> list[str]:
    """Say a word to all before the first answer is awaited; the answers."""
    answers = []
    for contender in contenders:
        assert contender.stdin is not None
        contender.stdin.write(f"{word}\n")
        contender.stdin.flush()
    for contender in contenders:
        assert contender.stdout is not None
        answers.append(contender.stdout.readline().strip())
    return answers
