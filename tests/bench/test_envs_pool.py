"""The environment pool: the same episodes over any number of processes, and every way in which a worker can fail."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_envs import row

from bench import tasks
from bench.envs import rendering
from bench.envs.errors import ActionError, WorkerError
from bench.envs.pool import EnvPool, StepResult
from bench.errors import UserError


def steps(pool: EnvPool, agent_steps: int) -> list[StepResult]:
    random = np.random.default_rng(0)
    shape = (len(pool.tasks), pool.layout.action_size)
    return [pool.step(random.uniform(-1, 1, shape).astype(np.float32)) for _ in range(agent_steps)]


def alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in status(pid)]


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def gone(pids: Sequence[int], within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pids)


# What holds for every number of workers.


def test_the_same_episodes_with_any_number_of_workers() -> None:
    names = ["cartpole-swingup", "cartpole-balance", "cartpole-swingup"]
    results = []
    for workers in (0, 1, 2):
        with EnvPool(names, workers=workers) as pool:
            first = pool.reset(range(3), seeds=[5, 6, 7])
            assert first.shape == (3, 5)
            assert first.dtype == np.float32
            parts = [first, *[np.column_stack([r.obs, r.reward]) for r in steps(pool, 5)]]
            parts.append(pool.reset([1], seeds=[5]))  # one alone, the others wait
            parts += [np.column_stack([r.obs, r.reward]) for r in steps(pool, 3)]
        results.append(np.concatenate([part.ravel() for part in parts]))
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()
    assert (results[0][:5] != results[0][10:15]).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_indices_flags_and_copies(workers: int) -> None:
    with EnvPool([row("toy")] * 3, workers=workers) as pool:
        obs = pool.reset([2, 0], seeds=[12, 10])
        assert obs[:, 0].tolist() == [12, 10]
        pool.reset(np.array([1]), seeds=[11])
        # Rows belong to the indices in the order given.
        result = pool.step(np.array([[0.75], [-0.25]]), indices=[2, 1])
        assert result.obs[:, :3].tolist() == [[12, 1, 0.75], [11, 1, -0.25]]
        assert result.reward.tolist() == [0.75, -0.25]
        assert result.success.tolist() == [1.0, 0.0]
        kept = result.obs.copy()
        for _ in range(4):
            last = pool.step(np.zeros((1, 1)), indices=[2])
        assert (last.truncated.tolist(), last.terminated.tolist()) == ([True], [False])
        assert (result.obs == kept).all()
        # The others are where they were, and no environment resets itself.
        result = pool.step(np.zeros((2, 1)), indices=np.array([0, 1]))
        assert result.obs[:, 1].tolist() == [1, 2]
        assert result.truncated.tolist() == [False, False]
        assert pool.reset([2], seeds=[99])[0, :2].tolist() == [99, 0]
        pids = set(pool.reset(range(3), seeds=range(3))[:, 3].astype(int).tolist())
    if workers:
        assert os.getpid() not in pids
        assert len(pids) == workers
        assert gone(list(pids), within_s=1.0)
    else:
        assert pids == {os.getpid()}


@pytest.mark.parametrize("workers", [0, 1])
def test_misuse_is_refused_and_does_no_harm(workers: int) -> None:
    with EnvPool([row("toy")] * 2, workers=workers) as pool:
        pool.reset([0, 1], seeds=[1, 2])
        with pytest.raises(ActionError, match=r"action \[nan\] for toy"):
            pool.step(np.array([[0.0], [np.nan]]))
        with pytest.raises(ActionError, match=r"shape \(1, 1\), expected \(2, 1\)"):
            pool.step(np.zeros((1, 1)))
        with pytest.raises(IndexError, match=r"indices \[0, 2\] must be different ones of 0 .. 1"):
            pool.step(np.zeros((2, 1)), indices=[0, 2])
        with pytest.raises(RuntimeError, match="step_recv without step_send"):
            pool.step_recv()
        pool.step_send(np.zeros((2, 1)))
        with pytest.raises(RuntimeError, match="call step_recv first"):
            pool.reset([0], seeds=[3])
        assert pool.step_recv().obs[:, 1].tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.reset([0], seeds=[1])
    pool.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_unequal_shapes_are_padded_where_asked(workers: int) -> None:
    """Each environment shows what it shows alone, and takes the first dimensions of an action."""
    names, seeds = ["cartpole-balance", "cup-catch"], [5, 6]
    with EnvPool(names, workers=workers, pad=True) as pool:
        assert (pool.layout.obs_shape, pool.layout.action_size) == ((8,), 2)
        together = [pool.reset(range(2), seeds), *(result.obs for result in steps(pool, 5))]
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 2, 2)).astype(np.float32)
    for index, (name, size, action_size) in enumerate(zip(names, (5, 8), (1, 2), strict=True)):
        with EnvPool([name]) as pool:
            alone = [pool.reset([0], [seeds[index]])[0]]
            alone += [pool.step(action[None, index, :action_size]).obs[0] for action in actions]
        for own, padded in zip(alone, together, strict=True):
            assert (padded[index, :size] == own).all()
            assert (padded[index, size:] == 0).all()


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(UserError, match=r"need equal shapes.*walker-run: obs \(24,\), action 6; dog-run: obs \(223,\)"):
        EnvPool(["walker-run", "dog-run"])
    with pytest.raises(UserError, match="at least one task"):
        EnvPool([])
    with pytest.raises(UserError, match="did you mean walker-run"):
        EnvPool(["walker-rum"])


def test_action_repeat_of_each_environment() -> None:
    with EnvPool([row("toy", 6)] * 2, action_repeats=[1, 3]) as pool:
        pool.reset([0, 1], seeds=[0, 0])
        result = pool.step(np.full((2, 1), 0.5))
        assert result.reward.tolist() == [0.5, 1.5]
        assert pool.step(np.zeros((2, 1))).truncated.tolist() == [False, True]


# Failures.


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_that_raises_is_named_with_its_traceback(workers: int) -> None:
    pool = EnvPool([row("toy"), row("raising")], workers=workers)
    pids = [worker.process.pid for worker in pool._workers]
    pool.reset([0, 1], seeds=[1, 2])
    with pytest.raises(WorkerError, match=r"raising \(environment 1\): KeyError: 'no such key'") as caught:
        steps(pool, 3)
    assert (caught.value.indices, caught.value.tasks) == ((1,), ("raising",))
    assert "_step_simulator" in str(caught.value)
    assert gone([pid for pid in pids if pid])
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.reset([0], seeds=[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_mistake_in_a_worker_stays_one_line(workers: int) -> None:
    with pytest.raises(UserError, match=r"^this simulator wants a licence$"):
        EnvPool([row("unbuildable")], workers=workers)


def test_a_worker_that_dies_is_named_with_all_it_held() -> None:
    pool = EnvPool([row("toy"), row("dying"), row("toy")], workers=2)  # the first holds two
    pids = [worker.process.pid for worker in pool._workers]
    pool.reset(range(3), seeds=[1, 2, 3])
    with pytest.raises(
        WorkerError, match=r"dying \(environment 1\) was killed by SIGKILL \(out of memory\?\)"
    ) as caught:
        steps(pool, 3)
    assert caught.value.indices == (0, 1)
    assert gone([pid for pid in pids if pid])


def test_a_worker_that_hangs_is_named_and_killed() -> None:
    pool = EnvPool([row("toy"), row("hanging")], workers=2, timeout_s=0.5)
    pids = [worker.process.pid for worker in pool._workers]
    pool.reset(range(2), seeds=[1, 2])
    with pytest.raises(WorkerError, match=r"no answer in 0.5 s from the worker of hanging \(environment 1\)"):
        steps(pool, 3)
    assert gone([pid for pid in pids if pid])


def test_signals_to_the_whole_group_leave_workers_alone() -> None:
    with EnvPool([row("toy", episode_agent_steps=9)], workers=1) as pool:
        pid = int(pool.reset([0], seeds=[1])[0, 3])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
            pool.step(np.zeros((1, 1)))
    assert gone([pid], within_s=1.0)


def test_a_forgotten_pool_leaves_no_process() -> None:
    pool = EnvPool([row("toy")], workers=1)
    pids = [worker.process.pid for worker in pool._workers]
    assert len(alive([pid for pid in pids if pid])) == 1
    del pool
    gc.collect()
    assert gone([pid for pid in pids if pid])


SCRIPT = """
import sys
import numpy as np
from bench.envs.pool import EnvPool
from toy_envs import row

if __name__ == "__main__":
    pool = EnvPool([row("toy", 10**6), row(sys.argv[1], 10**6)], workers=2)
    print(*pool.reset([0, 1], seeds=[1, 2])[:, 3].astype(int), flush=True)
    while True:
        pool.step(np.zeros((2, 1)))
"""


def _run_script(folder: Path, environment: str) -> tuple[subprocess.Popen[str], list[int]]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    process = subprocess.Popen(
        [sys.executable, str(script), environment],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
        # A shell ignores SIGINT for what it runs in the background, and the tests may be run so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_workers_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    process, pids = _run_script(tmp_path, "toy")
    assert len(alive(pids)) == 2
    process.kill()
    process.communicate()
    assert gone(pids)


def test_ctrl_c_stops_the_parent_and_its_workers_in_peace(tmp_path: Path) -> None:
    process, pids = _run_script(tmp_path, "toy")
    time.sleep(0.2)
    try:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
        _, stderr = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert gone(pids)
    assert stderr.count("Traceback") == 1  # the parent's own; none of a worker
    assert "KeyboardInterrupt" in stderr
    assert "leaked" not in stderr


# Rendering.


def test_rendering_in_a_worker() -> None:
    try:
        rendering.choose_backend()
    except UserError as error:
        pytest.skip(str(error))
    names = ["walker-run", "walker-run-backwards"]
    with EnvPool(names, workers=1, render=True) as pool, EnvPool(names) as blind:
        pool.reset([0, 1], seeds=[1, 2])
        blind.reset([0, 1], seeds=[1, 2])
        first = pool.render(1, height=64, width=96)
        assert (first.shape, first.dtype) == ((64, 96, 3), np.uint8)
        assert first.std() > 5
        seen, unseen = steps(pool, 3), steps(blind, 3)
        assert (pool.render(1, 64, 96) != first).any()
        # Pictures do not change the episode.
        assert all((a.obs == b.obs).all() for a, b in zip(seen, unseen, strict=True))


def test_rendering_is_refused_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(UserError, match="MUJOCO_GL=disabled switches it off"):
        rendering.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(rendering, "failure", lambda backend: "no such device")
    with pytest.raises(UserError, match=r"MUJOCO_GL=egl fails here \(no such device\)"):
        rendering.choose_backend()
    monkeypatch.delenv("MUJOCO_GL")
    with pytest.raises(UserError, match=r"egl: no such device; osmesa.*libegl1.*libosmesa6"):
        rendering.choose_backend()
    monkeypatch.setattr(rendering, "failure", lambda backend: None if backend == "osmesa" else "no such device")
    assert rendering.choose_backend() == "osmesa"


def test_a_backend_that_does_not_exist_is_told_apart() -> None:
    assert rendering.failure("no-such-backend") is not None


def test_the_environment_of_this_process_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    before = dict(os.environ)
    EnvPool([replace(row("toy"), name="x")], workers=1).close()
    assert dict(os.environ) == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == mask


def test_pools_take_rows_of_the_table() -> None:
    with EnvPool([tasks.get("pendulum-spin")]) as pool:
        assert pool.reset([0], seeds=[1]).shape == (1, 3)
