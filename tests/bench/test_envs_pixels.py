"""Observations from the camera: the paper's stack of pictures, the same episodes as from state."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from bench import envs, tasks
from bench.envs import Pixels, rendering
from bench.envs.pool import EnvPool
from bench.errors import UserError

try:
    BACKEND = rendering.choose_backend()
    REASON = ""
except UserError as error:
    BACKEND, REASON = "", str(error)
needs_rendering = pytest.mark.skipif(not BACKEND, reason=REASON)
# MuJoCo settles its backend when it is loaded, and other tests of this process load it without one: so in workers.


def actions(task: str, agent_steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (agent_steps, 1, tasks.get(task).action_size)).astype(np.float32)


@needs_rendering
def test_the_stack_and_the_episode() -> None:
    """Each observation holds the last three pictures; rewards and seeds are those from state."""
    with EnvPool(["cheetah-run"], obs="rgb", workers=1) as pool, EnvPool(["cheetah-run"]) as blind:
        start = pool.reset([0], seeds=[7])
        assert (start.shape, start.dtype) == ((1, 9, 64, 64), np.uint8)
        assert start.std() > 5
        assert (start[0, :3] == start[0, 3:6]).all()
        assert (start[0, :3] == start[0, 6:]).all()
        assert (pool.render(0, 64, 64) == np.moveaxis(start[0, 6:], 0, 2)).all()  # rows of pixels, not columns
        blind.reset([0], seeds=[7])
        seen = [start[0]]
        for action in actions("cheetah-run", 4):
            result, unseen = pool.step(action), blind.step(action)
            assert result.reward == unseen.reward
            assert (result.obs[0, :6] == seen[-1][3:]).all()
            assert (result.obs[0, 6:] != seen[-1][6:]).any()
            seen.append(result.obs[0])
        other = pool.reset([0], seeds=[8])
        assert (other != start).any()
        assert (pool.reset([0], seeds=[7]) == start).all()
        for action, obs in zip(actions("cheetah-run", 4), seen[1:], strict=True):
            assert (pool.step(action).obs[0] == obs).all()


@needs_rendering
@pytest.mark.whole
def test_other_sizes_and_stacks() -> None:
    with EnvPool(["cup-catch"] * 2, obs="rgb", workers=1, pixels=Pixels(size=84, stack=1)) as pool:
        assert pool.reset([0, 1], seeds=[1, 2]).shape == (2, 3, 84, 84)
        first = pool.step(np.zeros((2, 2)))
        assert (first.obs[0] != first.obs[1]).any()


@needs_rendering
@pytest.mark.whole
def test_shadows_can_be_left_out() -> None:
    """The same episode in other pictures: those of the cartpole are then darker nowhere."""
    wanted = envs.agents_pixels({"image_size": 36, "shadows": False})
    assert (wanted, envs.agents_pixels({"image_size": 36})) == (Pixels(36, 3, shadows=False), Pixels(36, 3))
    with (
        EnvPool(["cartpole-balance"], obs="rgb", workers=1, pixels=wanted) as plain,
        EnvPool(["cartpole-balance"], obs="rgb", workers=1, pixels=Pixels(36, 3)) as usual,
    ):
        pictures = [pool.reset([0], seeds=[1])[0].astype(int) for pool in (plain, usual)]
        assert (pictures[0] != pictures[1]).mean() > 0.01
        assert pictures[0].std() > 5
        action = np.ones((1, 1))
        assert plain.step(action).reward == usual.step(action).reward


def frames(names: Sequence[str], workers: int) -> list[np.ndarray]:
    """Two observations of each task, from a pool of its own kind of bodies."""
    found = []
    for name in names:
        with EnvPool([name], obs="rgb", workers=workers) as pool:
            pool.reset([0], seeds=[1])
            found += [pool.step(action).obs[0] for action in actions(name, 2)]
    return found


@needs_rendering
@pytest.mark.slow
@pytest.mark.parametrize("task", tasks.task_set("dmcontrol"), ids=lambda task: task.name)
def test_every_task_can_be_seen(task: tasks.Task) -> None:
    first, second = frames([task.name], workers=1)
    assert first.shape == (9, 64, 64)
    assert first.std() > 5
    assert (second[6:] != second[:3]).any()  # it moves


@needs_rendering
@pytest.mark.whole
def test_it_is_made_in_a_process_of_its_own() -> None:
    """Without a pool, where nothing has loaded MuJoCo before."""
    code = (
        "from bench import envs; env = envs.make('quadruped-walk', obs='rgb', seed=3); obs, _ = env.reset()\n"
        "assert env.observation_space.contains(obs); obs, *_ = env.step(env.action_space.sample())\n"
        "print(obs.shape, obs.dtype, env.env._camera)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(9, 64, 64) uint8 2\n", done.stderr


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="pictures of size 0, 3 stacked: both must be at least 1"):
        Pixels(size=0)
    assert envs.obs_spec(tasks.get("dog-run"), "rgb") == ((9, 64, 64), "uint8")
    assert envs.obs_spec(tasks.get("dog-run"), "rgb", Pixels(84, 2)) == ((6, 84, 84), "uint8")
    with pytest.raises(UserError, match="obs=rgb is not to be had for myo-reach"):
        envs.obs_spec(tasks.get("myo-reach"), "rgb")

    def refuse(*_: Any) -> str:
        raise UserError("no rendering works here")

    monkeypatch.setattr(rendering, "choose_backend", refuse)
    with pytest.raises(UserError, match="no rendering works here"):
        EnvPool(["cup-catch"], obs="rgb", workers=1)
