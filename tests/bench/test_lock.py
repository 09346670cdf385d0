"""One writer for each run directory: against processes that cannot be seen, that sleep, and that wake up again."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from waiting import wait_until

from bench import atomic
from bench.errors import UserError
from bench.lock import LockLost, RunLock, kept, locked
from bench.processes import Process
from bench.replay_log import ReplayLog
from bench.run_progress import STALE_AFTER_S
from bench.rundir import RunDir
from bench.runspec import RunSpec

SPEC = RunSpec(
    agent="sac",
    hyperparameters={},
    task="cartpole-balance",
    domain="dmcontrol",
    domain_version="v",
    seed=1,
    action_repeat=2,
    budget_env_steps=1000,
    eval_every_env_steps=500,
)

ROW = {"env_steps": 2, "agent_steps": 1, "wall_s": 1.0, "episode": 0, "return": 1.0, "success": 0.0, "length": 1}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path, SPEC)


def held_elsewhere(run: RunDir, silent_s: float) -> None:
    """A lock of a process of a machine that cannot be seen from here, silent for so long."""
    owner = Process("elsewhere", 1234, 99).to_json()
    atomic.write_json(run.path / "lock", {"process": owner, "token": "theirs", "job_id": "41"})
    run.beat(env_steps=10)
    then = time.time() - silent_s
    for name in ("lock", "heartbeat"):
        os.utime(run.path / name, (then, then))


def test_an_unseen_owner_is_believed_until_it_is_silent_for_long(run: RunDir) -> None:
    held_elsewhere(run, silent_s=STALE_AFTER_S - 30)
    with pytest.raises(UserError, match="is being trained by process 1234 on elsewhere"):
        RunLock(run).acquire()
    holder = RunLock(run).holder()
    assert holder is not None
    assert holder.job_id == "41"
    held_elsewhere(run, silent_s=STALE_AFTER_S + 30)
    assert RunLock(run).holder() is None
    RunLock(run).acquire()


def test_a_clock_that_differs_does_not_make_an_owner_stale(run: RunDir) -> None:
    """The heartbeat's own time is of another machine's clock; the file system's time decides."""
    held_elsewhere(run, silent_s=5)
    beat = run.read_json("heartbeat") or {}
    atomic.write_json(run.path / "heartbeat", beat | {"time": time.time() - 3600})
    with pytest.raises(UserError, match="is being trained"):
        RunLock(run).acquire()


def test_a_process_of_another_pid_namespace_is_not_taken_for_dead(run: RunDir) -> None:
    """Two containers of one machine have its host name, and neither sees the other's pids."""
    owner = Process.current().to_json() | {"pid": 2**22 - 1, "space": "another"}
    atomic.write_json(run.path / "lock", {"process": owner, "token": "theirs", "job_id": None})
    with pytest.raises(UserError, match="is being trained"):
        RunLock(run).acquire()


def test_whoever_lost_the_lock_can_write_nothing(run: RunDir) -> None:
    first, second = RunDir(run.path), RunDir(run.path)
    mine = RunLock(first)
    mine.acquire()
    first.begin_attempt({})
    first.append_eval([ROW])
    take_over(second)
    log = ReplayLog(first.replay, check=first.guard)
    writes = [
        lambda: first.append_eval([ROW]),
        lambda: first.beat(env_steps=1),
        lambda: first.end_beat(),
        lambda: first.mark_done(env_steps=1000),
        lambda: first.mark_failed(ValueError("no")),
        lambda: first.begin_attempt({}),
        lambda: first.end_attempt("interrupted"),
        lambda: first.rewind(-1, 0),
        lambda: log.truncate(0),
    ]
    second.beat(env_steps=7)
    before = contents(run.path)
    for write in writes:
        with pytest.raises(LockLost, match="was taken over by process"):
            write()
    mine.release()
    assert contents(run.path) == before


def take_over(run: RunDir) -> RunLock:
    """What a successor does once its predecessor is silent for long enough."""
    (run.path / "lock").unlink()
    theirs = RunLock(run)
    theirs.acquire()
    return theirs


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_write_that_was_prepared_is_worthless_after_the_takeover(run: RunDir) -> None:
    """The narrowest moment: the lock was checked, and is lost before the write is committed."""
    first, second = RunDir(run.path), RunDir(run.path)
    RunLock(first).acquire()
    first.append_eval([ROW])
    real, seen = first.guard, []

    def lose_right_after() -> None:
        real()
        seen.append(take_over(second))
        second.rewind(1, 1)

    first.guard = lose_right_after
    with pytest.raises(FileNotFoundError):  # the file it had prepared was removed
        first.mark_done(env_steps=1000)
    assert not (run.path / "done.json").exists()
    seen[-1].release()
    RunLock(first).acquire()
    real = first.guard
    first.guard = lose_right_after
    first.append_eval([ROW | {"agent_steps": 2}])  # goes to a file that has no name any more
    assert run.eval_csv.read_text().splitlines()[1:] == ["2,1,1.0,0,1.0,0.0,1"]


WRITER = """
import sys, time
from pathlib import Path
from bench.lock import LockLost, RunLock
from bench.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
lock = RunLock(run)
lock.acquire()
print("held", flush=True)
row = {"env_steps": 2, "agent_steps": 1, "wall_s": 1.0, "episode": int(sys.argv[2]), "return": 1.0, "success": 0.0}
try:
    while True:
        run.append_eval([row | {"length": 1}])
        run.beat(env_steps=int(sys.argv[2]))
        time.sleep(0.001)
except (LockLost, FileNotFoundError):
    print("lost", flush=True)
"""


@pytest.mark.whole
def test_a_suspended_process_that_wakes_up_writes_nothing(run: RunDir) -> None:
    """Suspended again and again at any moment of its writing, taken over, and woken up."""
    for number in range(8):
        run.eval_csv.unlink(missing_ok=True)
        (run.path / "lock").unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(run.path), str(number)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"held\n"
        wait_until(run.eval_csv.exists)
        time.sleep(0.05 + 0.0007 * number)
        writer.send_signal(signal.SIGSTOP)
        successor = RunDir(run.path)
        theirs = take_over(successor)
        successor.rewind(1, 1)
        successor.beat(env_steps=-1)
        rows, beat = run.eval_csv.read_text(), (run.path / "heartbeat").read_text()
        writer.send_signal(signal.SIGCONT)
        assert writer.stdout.readline() == b"lost\n"
        writer.wait()
        assert run.eval_csv.read_text() == rows
        assert (run.path / "heartbeat").read_text() == beat
        assert json.loads((run.path / "lock").read_text())["token"] == theirs._token
        theirs.release()


def _count(path: Path, times: int) -> None:
    for _ in range(times):
        with locked(path.with_name("lock")):
            path.write_text(str(int(path.read_text()) + 1))


def test_a_lock_for_a_moment_is_exclusive(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    (tmp_path / "lock").touch()  # left behind by an earlier version, which used flock
    processes = [multiprocessing.get_context("fork").Process(target=_count, args=(counter, 20)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "80"
    dead = Process.current().to_json() | {"started_ticks": 1}
    atomic.write_json(tmp_path / "lock", {"process": dead, "token": "x", "job_id": None})
    _count(counter, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"counter"}


OPERATIONS = ("open", "os.link", "os.remove", "os.rename")
"""Audit events of what a process does to files; each comes before the operation."""


def take(run: RunDir, stop_before: int, answer: Connection, end: Connection) -> None:
    """Take the run's lock, suspended before the n-th operation on its folder; then hold it until the end."""
    done = 0

    def suspend(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        if event in OPERATIONS and str(run.path) in str(arguments):
            done += 1
            if done == stop_before:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(suspend)
    held = RunLock(run)
    try:
        held.acquire()
    except UserError:
        answer.send(("refused", done))
        return
    answer.send(("held", done))
    end.recv()
    held.check()
    answer.send(("still held", done))


class Taker:
    """A process that takes the lock of a run and is suspended on the way."""

    def __init__(self, run: RunDir, stop_before: int = 0) -> None:
        context = multiprocessing.get_context("fork")
        self.answer, answer = context.Pipe(duplex=False)
        end, self.end = context.Pipe(duplex=False)
        self.process = context.Process(target=take, args=(run, stop_before, answer, end))
        self.process.start()
        answer.close()

    def proceed(self) -> None:
        """Let it go on until it is suspended, has the lock, is refused, or waits for another that is suspended."""
        deadline = time.monotonic() + 0.2
        while not self.answer.poll(0.002) and time.monotonic() < deadline:
            if self.suspended:
                return

    @property
    def suspended(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def outcomes_of(takers: Sequence[Taker]) -> list[str]:
    """Let all go on, woken up wherever they are suspended."""
    while not all(taker.answer.poll(0.002) for taker in takers):
        for taker in takers:
            if taker.suspended:
                os.kill(taker.process.pid or 0, signal.SIGCONT)
    return [str(taker.answer.recv()[0]) for taker in takers]


@pytest.mark.whole
@pytest.mark.parametrize("left", ["dead", "garbage"])
def test_a_stale_lock_is_taken_by_one_wherever_others_are_suspended(run: RunDir, left: str) -> None:
    """One is suspended between any two steps of taking it, a second too, a third takes it or waits; then all go on."""
    dead = {"process": Process.current().to_json() | {"started_ticks": 1}, "token": "theirs", "job_id": None}

    def stale() -> None:
        for path in run.path.glob("*lock*"):
            path.unlink()
        (run.path / "lock").write_text(json.dumps(dead) if left == "dead" else "")

    stale()
    alone = Taker(run)
    outcome, steps = alone.answer.recv()
    assert outcome == "held"
    alone.end.send(None)
    alone.process.join()
    assert steps >= 8
    for first in range(1, steps + 1):
        for second in range(1, steps + 1, 2):
            stale()
            takers = [Taker(run, first), Taker(run, second), Taker(run)]
            for taker in takers[:2]:
                taker.proceed()
            time.sleep(0.02)  # for the third, which may have to wait for them
            outcomes = outcomes_of(takers)
            assert sorted(outcomes) == ["held", "refused", "refused"], (first, second, outcomes)
            holder = takers[outcomes.index("held")]
            holder.end.send(None)
            assert outcomes_of([holder]) == ["still held"], (first, second)
            for taker in takers:
                taker.process.join()


def test_a_claim_of_a_process_that_died_is_removed(run: RunDir) -> None:
    """Killed between claiming the removal of a stale lock and removing it."""
    dead = json.dumps({"process": Process.current().to_json() | {"started_ticks": 1}, "token": "a", "job_id": None})
    (run.path / "lock").write_text(dead)
    claim = run.path / f".lock.removal-{hashlib.sha256(dead.encode()).hexdigest()[:32]}"
    claim.write_text(dead.replace('"a"', '"b"'))
    RunLock(run).acquire()
    assert [path.name for path in run.path.glob("*lock*")] == ["lock"]


def test_a_lock_is_kept_alive_during_long_work(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), kept(path, every_s=0.02):
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > 1)
    assert not path.exists()
