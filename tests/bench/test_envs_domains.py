"""Every row of Meta-World, MyoSuite and ManiSkill against its live simulator (DMControl's have a file of their own)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from bench import envs, tasks
from bench.envs import rendering
from bench.envs.errors import ActionError
from bench.envs.missing import SIMULATORS
from bench.envs.pool import EnvPool
from bench.errors import UserError
from bench.tasks import Task

EPISODE_AGENT_STEPS = 100
QUICK = ("mw-push", "myo-obj-hold-hard", "pick-cube")
"""Rows of `make test-fast`; all of them are in `make test`."""
FLAT = ("mw-pick-place-wall", "mw-shelf-place")
"""Their dense reward is 0 far from the goal, where random actions stay."""

ROWS = [
    pytest.param(task, id=task.name, marks=[] if task.name in QUICK else [pytest.mark.whole])
    for domain in ("metaworld", "myosuite", "maniskill")
    for task in tasks.task_set(domain)
]


def episode(env: Any, seed: int, agent_steps: int, action_seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations (T + 1, O) and rewards (T,) under random actions."""
    random = np.random.default_rng(action_seed)
    observations, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(agent_steps):
        obs, reward, terminated, truncated, info = env.step(random.uniform(-1, 1, env.action_space.shape))
        assert not terminated
        assert truncated == (len(rewards) == EPISODE_AGENT_STEPS - 1)
        assert info["success"] in (0.0, 1.0)
        observations.append(obs)
        rewards.append(reward)
    return np.stack(observations), np.array(rewards)


def check_row(task: Task) -> None:
    """Sizes, episode length, action repeat, seeds: what the table says is what the simulator does."""
    env = envs.make(task)
    repeat = 1 if task.domain == "myosuite" else 2
    assert (env.action_repeat, env.episode_agent_steps) == (repeat, EPISODE_AGENT_STEPS)
    np.random.seed(3)
    global_state = np.random.get_state()[1].tolist()
    observations, rewards = episode(env, seed=7, agent_steps=EPISODE_AGENT_STEPS)
    assert observations.dtype == np.float32
    assert observations.shape == (EPISODE_AGENT_STEPS + 1, task.obs_size)
    assert len(np.unique(rewards)) > 10 or task.name in FLAT
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step(np.zeros(task.action_size))

    # Another seed gives another episode (MyoSuite's fixed tasks start alike on purpose); the same seed the same one
    # bit for bit, in an environment with a past and in a fresh one, whatever numpy's global generator does.
    other = episode(env, seed=8, agent_steps=13, action_seed=1)[0][0]
    fixed = task.domain == "myosuite" and not task.name.endswith("-hard")
    assert (other == observations[0]).all() == fixed
    assert np.random.get_state()[1].tolist() == global_state
    np.random.seed(4)
    again = episode(env, seed=7, agent_steps=20)
    fresh = envs.make(task, seed=5)
    for obs, reward in (again, episode(fresh, seed=7, agent_steps=20)):
        assert (obs == observations[:21]).all()
        assert (reward == rewards[:20]).all()
    env.close()
    fresh.close()


@pytest.mark.parametrize("task", ROWS)
def test_every_row(task: Task) -> None:
    if task.domain == "maniskill":
        skip_what_this_machine_lacks(task)
    check_row(task)


def skip_what_this_machine_lacks(task: Task) -> None:
    """Two tasks of ManiSkill2 need models from the internet."""
    try:
        envs.make(task).close()
    except UserError as error:
        if "needs models" in str(error):
            pytest.skip(str(error))
        raise


# In the pool.


@pytest.mark.whole
@pytest.mark.parametrize("name", ["mw-push", "myo-pose-hard", "lift-cube"])
def test_the_same_episodes_with_any_number_of_workers(name: str) -> None:
    task = tasks.get(name)
    if task.domain == "maniskill":
        skip_what_this_machine_lacks(task)
    results = []
    for workers in (0, 1, 2):
        random = np.random.default_rng(0)
        with EnvPool([name] * 3, workers=workers) as pool:
            parts = [pool.reset(range(3), seeds=[5, 6, 7])]
            for agent_step in range(8):
                if agent_step == 5:
                    parts.append(pool.reset([1], seeds=[5]))  # one alone, the others wait
                result = pool.step(random.uniform(-1, 1, (3, task.action_size)))
                parts += [result.obs, result.reward, result.success]
        results.append(np.concatenate([part.ravel() for part in parts]))
    assert (results[0] == results[1]).all()
    assert (results[0] == results[2]).all()
    assert (results[0][: task.obs_size] != results[0][task.obs_size : 2 * task.obs_size]).any()


@pytest.mark.whole
@pytest.mark.parametrize("name", ["mw-push", "myo-pose-hard"])
def test_pictures_through_the_pool(name: str) -> None:
    """They show the episode, and do not change it."""
    try:
        rendering.choose_backend()
    except UserError as error:
        pytest.skip(str(error))
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 10, tasks.get(name).action_size))
    with EnvPool([name] * 2, workers=1, render=True) as pool, EnvPool([name] * 2) as blind:
        assert (pool.reset([0, 1], seeds=[1, 2]) == blind.reset([0, 1], seeds=[1, 2])).all()
        first = pool.render(1, height=64, width=96)
        assert (first.shape, first.dtype) == ((64, 96, 3), np.uint8)
        assert first.std() > 5
        for agent_step in range(10):
            seen, unseen = pool.step(actions[:, agent_step]), blind.step(actions[:, agent_step])
            assert (seen.obs == unseen.obs).all()
            assert (seen.reward == unseen.reward).all()
        assert (pool.render(1, 64, 96) != first).any()
        assert pool.render(0, 32, 32).shape == (32, 32, 3)


# What a domain lacks.


@pytest.mark.parametrize(
    ("broken", "name", "whole"),
    [
        ("dmcontrol", "pendulum-swingup", ("mw-push",)),  # myosuite itself is built on dm_control
        ("metaworld", "mw-push", ("myo-reach", "pendulum-swingup")),
        ("myosuite", "myo-reach", ("mw-push", "pendulum-swingup")),
        ("maniskill", "lift-cube", ("mw-push", "pendulum-swingup")),
    ],
)
def test_a_domain_that_is_not_installed_hides_no_other(
    broken: str, name: str, whole: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = SIMULATORS[broken]
    for module in [loaded for loaded in sys.modules if loaded.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # import fails as if it were not installed
    with pytest.raises(UserError) as caught:
        envs.make(name)
    assert isinstance(caught.value.__cause__, ImportError)
    assert f"{name} needs {package}, whose import failed" in str(caught.value)
    assert f'pip install "tdmpc2-bench[{broken}]"' in str(caught.value)
    assert "\n" not in str(caught.value)
    for other in whole:
        envs.make(other).close()


@pytest.mark.parametrize("name", ["mw-push", "lift-cube", "myo-reach"])
def test_pixels_are_refused_clearly(name: str) -> None:
    with pytest.raises(UserError, match=f"obs=rgb is not to be had for {name}: domain {tasks.get(name).domain} gives"):
        envs.make(name, obs="rgb")


def test_an_action_out_of_range_is_refused() -> None:
    env = envs.make("mw-push")
    env.reset(seed=1)
    with pytest.raises(ActionError, match=r"action .* for mw-push is not within \[-1, 1\]"):
        env.step(np.array([0.0, 2.0, 0.0, 0.0]))
