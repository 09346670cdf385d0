"""Every DMControl row keeps the environment contract."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench import envs, tasks
from bench.envs.dmcontrol import DMControl
from bench.envs.errors import ActionError, SimulatorError
from bench.errors import UserError

SLOW = ("dog-stand", "dog-trot", "dog-walk")
"""Rows of `make test` alone: dog-run, which has the same body, is in `make test-fast`, and a dog takes seconds."""
ROWS = [
    pytest.param(task, id=task.name, marks=[pytest.mark.whole] if task.name in SLOW else [])
    for task in tasks.task_set("dmcontrol")
]
CONTROL_S = {  # seconds of an env step, by body
    "acrobot": 0.01,
    "cartpole": 0.01,
    "cheetah": 0.01,
    "cup": 0.02,
    "dog": 0.015,
    "finger": 0.02,
    "fish": 0.04,
    "hopper": 0.02,
    "humanoid": 0.025,
    "pendulum": 0.02,
    "quadruped": 0.02,
    "reacher": 0.02,
    "walker": 0.025,
}


def episode(env: Any, seed: int | None, agent_steps: int, action_seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Observations (T + 1, O) and rewards (T,) under random actions."""
    random = np.random.default_rng(action_seed)
    observations, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(agent_steps):
        obs, reward, terminated, truncated, info = env.step(random.uniform(-1, 1, env.action_space.shape))
        assert not terminated
        assert not truncated
        assert info["success"] == 0.0
        observations.append(obs)
        rewards.append(reward)
    return np.stack(observations), np.array(rewards)


@pytest.mark.parametrize("task", ROWS)
def test_every_row(task: tasks.Task) -> None:
    """Sizes, seeds and action repeat of each of the 39 tasks."""
    env = envs.make(task)
    assert isinstance(env, DMControl)
    assert env.observation_space.shape == (task.obs_size,)
    assert env.action_space.shape == (task.action_size,)
    assert (env.action_repeat, env.episode_agent_steps) == (2, 500)
    assert env.simulation.control_timestep() == pytest.approx(CONTROL_S[task.name.split("-")[0]])

    observations, rewards = episode(env, seed=7, agent_steps=20)
    assert observations.dtype == np.float32
    assert observations.shape == (21, task.obs_size)
    assert ((rewards >= 0) & (rewards <= 2)).all()  # at most 1 an env step

    # The same seed gives the same numbers bit for bit in an environment with a past; another seed does not.
    assert (episode(env, seed=8, agent_steps=13, action_seed=1)[0][0] != observations[0]).any()
    again, again_rewards = episode(env, seed=7, agent_steps=20)
    assert (observations == again).all()
    assert (rewards == again_rewards).all()

    # So it does in a fresh one, and an agent step is two env steps with one action.
    single = envs.make(task, seed=5, action_repeat=1)
    assert (single.reset(seed=7)[0] == observations[0]).all()
    random = np.random.default_rng(0)
    for t in range(20):
        action = random.uniform(-1, 1, task.action_size)
        (_, first, *_), (obs, second, *_) = (single.step(action) for _ in range(2))
        assert (obs == observations[t + 1]).all()
        assert first + second == rewards[t]
    env.close()
    single.close()


@pytest.mark.parametrize(("name", "repeat"), [("pendulum-swingup", None), ("reacher-three-hard", 4)])
def test_an_episode_has_1000_env_steps(name: str, repeat: int | None) -> None:
    env = envs.make(name, action_repeat=repeat)
    env.reset(seed=1)
    action = np.zeros(env.action_space.shape, np.float32)
    length = 500 if repeat is None else 1000 // repeat
    ends = [env.step(action)[2:4] for _ in range(length)]
    assert ends == [(False, False)] * (length - 1) + [(False, True)]
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step(action)
    env.reset()
    env.step(action)


@pytest.mark.parametrize("name", ["cartpole-swingup", "finger-turn-hard", "walker-run", "humanoid-walk"])
def test_a_standard_task_is_the_suites_own(name: str) -> None:
    from dm_control import suite
    from dm_control.suite.wrappers import action_scale

    task = tasks.get(name)
    domain, _, suite_name = task.simulator_id.partition("/")
    theirs = action_scale.Wrapper(suite.load(domain, suite_name, {"random": 11}), -1.0, 1.0)
    ours = envs.make(name)
    obs, _ = ours.reset(seed=11)
    random = np.random.default_rng(0)
    step = theirs.reset()
    for _ in range(30):
        assert (obs == np.concatenate([np.ravel(v) for v in step.observation.values()]).astype(np.float32)).all()
        action = random.uniform(-1, 1, task.action_size).astype(np.float32)
        obs, reward, *_ = ours.step(action)
        first, step = (theirs.step(action.astype(np.float64)) for _ in range(2))
        assert reward == first.reward + step.reward


def test_the_suites_time_limit_is_the_tables() -> None:
    from dm_control import suite

    for name in ("acrobot-swingup", "pendulum-swingup", "cup-catch"):
        domain, _, suite_name = tasks.get(name).simulator_id.partition("/")
        simulation = suite.load(domain, suite_name, {"random": 0})
        simulation.reset()
        action = np.zeros(simulation.action_spec().shape)
        length = 1
        while not simulation.step(action).last():
            length += 1
        assert length == tasks.get(name).episode_env_steps


def test_resets_without_a_seed_follow_from_the_last_one() -> None:
    first, second = envs.make("pendulum-swingup", seed=3), envs.make("pendulum-swingup")
    starts = [first.reset()[0] for _ in range(3)]
    assert len({start.tobytes() for start in starts}) == 3
    assert (starts[0] == second.reset(seed=3)[0]).all()
    assert (starts[1] == second.reset()[0]).all()
    assert (starts[2] == second.reset()[0]).all()


def test_global_random_state_is_neither_used_nor_moved() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    one = episode(envs.make("cup-spin"), seed=4, agent_steps=3)[0]
    assert np.random.get_state()[1].tolist() == before
    np.random.seed(2)
    assert (episode(envs.make("cup-spin"), seed=4, agent_steps=3)[0] == one).all()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0, 1.2], r"action \[0.0, 1.2.*\] for reacher-easy is not within \[-1, 1\]"),
        ([float("nan"), 0.0], r"action \[nan, 0.0\] for reacher-easy"),
        ([0.0], r"actions for reacher-easy have shape \(1, 1\), expected \(1, 2\)"),
    ],
)
def test_wrong_actions(action: list[float], message: str) -> None:
    env = envs.make("reacher-easy")
    env.reset()
    with pytest.raises(ActionError, match=message):
        env.step(np.array(action))
    env.step(np.array([1 + 5e-5, -1.0]))  # rounding is no error


def test_a_simulator_that_diverges_is_one_clear_error() -> None:
    env = envs.make("walker-walk")
    assert isinstance(env, DMControl)
    env.reset(seed=42)
    env.simulation.physics.data.qvel[:] = 1e12
    with pytest.raises(SimulatorError, match=r"walker-walk .*\(episode seed 42, agent step 0\)"):
        env.step(np.zeros(6, np.float32))
    env.reset(seed=42)
    env.simulation.task.get_reward = lambda physics: float("nan")
    with pytest.raises(SimulatorError, match="walker-walk gave the reward nan"):
        env.step(np.zeros(6, np.float32))


def test_numbers_that_float32_cannot_hold_are_named_where_they_arise() -> None:
    env = envs.make("walker-walk")
    assert isinstance(env, DMControl)
    env.reset(seed=42)
    env.simulation.task.get_reward = lambda physics: 1e39
    with pytest.raises(SimulatorError, match=r"walker-walk gave the reward 2e\+39, which is not finite in float32"):
        env.step(np.zeros(6, np.float32))
    env.reset(seed=42)
    env._step_simulator = lambda action: (np.full(24, 1e39), 0.0, False, 0.0)  # type: ignore[method-assign]
    with pytest.raises(SimulatorError, match=r"not finite in float32 \(number 0: 1e\+39\)"):
        env.step(np.zeros(6, np.float32))


def test_a_row_that_the_simulator_does_not_match_is_refused() -> None:
    env = envs.make(replace(tasks.get("walker-walk"), obs_size=25))
    with pytest.raises(SimulatorError, match=r"shape \(24,\), the task table says 25"):
        env.reset()
    with pytest.raises(SimulatorError, match=r"takes actions of shape \(6,\), the task table says 5"):
        envs.make(replace(tasks.get("walker-walk"), action_size=5))
    with pytest.raises(UserError, match="dm_control has no task 'walker/fly'"):
        envs.make(replace(tasks.get("walker-walk"), simulator_id="walker/fly"))


def test_an_end_that_the_table_rules_out_is_an_error() -> None:
    row = replace(tasks.get("walker-walk"), simulator_id="lqr/lqr_2_1", obs_size=4, action_size=1)
    action = np.zeros(1, np.float32)
    env = envs.make(replace(row, terminates=True))
    assert isinstance(env, DMControl)
    env.reset(seed=0)
    env.simulation.task.get_termination = lambda physics: 0.0
    assert env.step(action)[2:4] == (True, False)
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step(action)
    env = envs.make(row)
    assert isinstance(env, DMControl)
    env.reset(seed=0)
    env.simulation.task.get_termination = lambda physics: 0.0
    with pytest.raises(SimulatorError, match="ended an episode before its time limit"):
        env.step(action)


def test_what_is_not_supported_is_said() -> None:
    with pytest.raises(UserError, match=r"mine is of domain 'lunar', which has no environments: use one of dmcontrol,"):
        envs.make(replace(tasks.get("walker-walk"), name="mine", domain="lunar"))
    with pytest.raises(
        UserError, match=r"obs=rgb is not to be had for mw-push: .* gives state, obs=rgb is for dmcontrol"
    ):
        envs.make("mw-push", obs="rgb")
    with pytest.raises(UserError, match="does not divide its episode of 1000 env steps"):
        envs.make("walker-walk", action_repeat=3)
    with pytest.raises(UserError, match="was made without rendering"):
        envs.make("pendulum-spin").render()


def test_a_missing_package_is_named_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("dm_control", "bench.envs.dmcontrol"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "dm_control", None)  # import fails as if it were not installed
    with pytest.raises(UserError, match=r"walker-walk needs dm_control.*pip install .*requirements.lock") as caught:
        envs.make("walker-walk")
    assert isinstance(caught.value.__cause__, ImportError)


def test_importing_the_package_loads_no_simulator() -> None:
    code = (
        "import sys, bench.envs; print([m for m in ('torch', 'dm_control', 'mujoco', 'gymnasium') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
