"""Tasks of the user's own: the example package, Gymnasium environments, and episodes that end early."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from bench import envs
from bench.envs.errors import SimulatorError
from bench.envs.gymnasium_env import GymnasiumEnv
from bench.envs.pool import EnvPool
from bench.errors import UserError
from bench.tasks import Task

EXAMPLE = Path(__file__).parents[2] / "examples" / "own-task"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Task]]:
    """The example's rows by name, without the package being installed."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import own_task

    yield {task.name: task for task in own_task.TASKS}
    del sys.modules["own_task"]


def random_episode(env: Any, seed: int) -> tuple[list[np.ndarray], list[float], tuple[bool, bool], float]:
    """Observations, rewards, (terminated, truncated) and success of an episode under random actions."""
    random = np.random.default_rng(0)
    observations, rewards, ended = [env.reset(seed=seed)[0]], [], (False, False)
    while not any(ended):
        obs, reward, *ended, info = env.step(random.uniform(-1, 1, env.action_space.shape))
        observations.append(obs)
        rewards.append(reward)
    return observations, rewards, tuple(ended), info["success"]


@pytest.mark.parametrize("name", ["gym-pendulum", "gym-inverted-pendulum", "landing"])
def test_the_examples_keep_the_contract(rows: dict[str, Task], name: str) -> None:
    task = rows[name]
    env = envs.make(task)
    observations, rewards, ended, _ = random_episode(env, seed=7)
    assert observations[0].shape == (task.obs_size,)
    assert observations[0].dtype == np.float32
    assert ended == ((True, False) if task.terminates else (False, True))
    assert len(rewards) < task.episode_agent_steps if task.terminates else len(rewards) == 200
    with pytest.raises(RuntimeError, match="call reset first"):
        env.step(np.zeros(1))
    other, *_ = random_episode(env, seed=8)
    assert (other[0] != observations[0]).any()
    again, again_rewards, *_ = random_episode(env, seed=7)
    assert np.array_equal(again, observations)
    assert again_rewards == rewards


def test_actions_are_spread_over_the_bounds(rows: dict[str, Task]) -> None:
    env, theirs = envs.make(rows["gym-pendulum"]), gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=3)
    assert (obs == theirs.reset(seed=3)[0]).all()
    for action in (-1.0, -0.25, 0.0, 1.0):
        obs, reward, *_ = env.step(np.array([action]))
        last, value, *_ = theirs.step(np.array([2 * action], np.float32))  # torque in [-2, 2]
        assert (obs == last).all()
        assert reward == pytest.approx(float(value))


def test_an_early_end_cuts_the_action_repeat_short(rows: dict[str, Task]) -> None:
    """Success and reward are those of the last env step that there was; the pool tells terminated from truncated."""
    task = replace(rows["landing"], action_repeat=25, episode_agent_steps=4)
    with EnvPool([task, rows["landing"]], workers=0) as pool:
        pool.reset([0, 1], seeds=[1, 1])
        fall = np.full((1, 1), -1.0)
        result = pool.step(fall, [0])
        while not result.terminated[0]:
            assert not result.truncated[0]
            result = pool.step(fall, [0])
        assert not result.truncated[0]
        assert result.obs[0, 0] <= 0.0
        assert result.success[0] == 0.0  # at 9 m/s
        assert pool.step(fall, [1]).terminated.tolist() == [False]
        assert pool.reset([0], seeds=[2])[0, 0] > 4.0


def test_hovering_reaches_the_time_limit(rows: dict[str, Task]) -> None:
    env = envs.make(rows["landing"])
    env.reset(seed=1)
    hover = np.array([9.81 / 7.5 - 1])
    ends = [env.step(hover)[2:4] for _ in range(50)]
    assert ends == [(False, False)] * 49 + [(False, True)]


# What does not fit.


class Awkward(gymnasium.Env[Any, Any]):
    """A dictionary of observations, and a time limit of its own after two env steps."""

    observation_space = spaces.Dict({"place": spaces.Box(-1, 1, (2, 2)), "clock": spaces.Discrete(3)})
    action_space = spaces.Box(-1, 1, (2, 1), np.float64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.clock = 0
        return {"place": np.full((2, 2), 0.5), "clock": 0}, {}

    def step(self, action: np.ndarray) -> Any:
        assert action.shape == (2, 1)
        assert action.dtype == np.float64
        self.clock += 1
        obs = {"place": np.full((2, 2), 0.5), "clock": self.clock}
        return obs, 1.0, False, self.clock >= 2, {"is_success": True}


def awkward(task: Task, **options: Any) -> GymnasiumEnv:
    return GymnasiumEnv(task, **options, env=Awkward())


AWKWARD = Task("awkward", "mine", f"{__name__}:awkward", 7, 2, 1, 5, 100, "success")


def test_dictionaries_are_flattened_and_hidden_time_limits_found() -> None:
    env = envs.make(AWKWARD)
    assert env.reset(seed=1)[0].tolist() == [1.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    assert env.step(np.zeros(2))[4] == {"success": 1.0}
    with pytest.raises(SimulatorError, match="awkward has a time limit of its own that is shorter than its row's"):
        env.step(np.zeros(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs_size": 4}, "its row says obs_size = 4, its environment has 3: mend the row"),
        ({"action_size": 2}, "its row says action_size = 2, its environment has 1: mend the row"),
        ({"simulator_id": "gymnasium:Pendulun-v1"}, r"gymnasium.make\('Pendulun-v1'\) failed .*[Dd]id you mean"),
        (
            {"simulator_id": "gymnasium:no_such:Pendulum-v1"},
            r"gymnasium.make\('no_such:Pendulum-v1'\) failed .*no_such",
        ),
        ({"simulator_id": "gymnasium:CartPole-v1"}, r"must be a bounded Box of numbers, its environment has Discrete"),
        ({"simulator_id": "no_such_module:make"}, "names no function that can be loaded .*no_such_module"),
        ({"simulator_id": "bench.tasks:make"}, "names no function that can be loaded .*'make'"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(rows: dict[str, Task], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        envs.make(replace(rows["gym-pendulum"], **changes))
    assert "gym-pendulum" in str(caught.value)


def test_more_that_does_not_fit(rows: dict[str, Task]) -> None:
    with pytest.raises(UserError, match="obs=rgb is not to be had for gym-pendulum"):
        envs.make(rows["gym-pendulum"], obs="rgb")
    env = envs.make(replace(rows["gym-inverted-pendulum"], terminates=False))
    with pytest.raises(SimulatorError, match="ended an episode before its time limit"):
        random_episode(env, seed=1)


# Through the command line, as an installed package.


@pytest.mark.whole
@pytest.mark.parametrize(
    ("agent", "overrides"),
    [
        ("sac", "hidden_dim=32 batch_size=32 seed_agent_steps=200"),
        (
            "tdmpc2",
            "enc_dim=16 mlp_dim=16 latent_dim=16 num_q=2 batch_size=16 num_samples=16 num_elites=4 num_pi_trajs=2 "
            "iterations=1 seed_agent_steps=200",
        ),
    ],
)
def test_it_trains_with_early_ends(tmp_path: Path, agent: str, overrides: str) -> None:
    about = tmp_path / "site" / "own_task-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-task\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text("[tdmpc2_bench.tasks]\nown_task = own_task:TASKS\n")
    path = os.pathsep.join([str(about.parent), str(EXAMPLE), str(Path(__file__).parents[2])])

    def bench(*arguments: str) -> str:
        command = [sys.executable, "-m", "bench", *arguments]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "gym-inverted-pendulum" in bench("tasks", "--set", "own", "--json")
    budget = ["--env-steps", "500", "--eval-every-env-steps", "250", "--eval-episodes", "2", "--env-workers", "0"]
    results = tmp_path / "results"
    bench("train", agent, "landing", *overrides.split(), *budget, "--results", str(results), "--threads", "1")
    (written,) = results.rglob("eval.csv")
    rows = list(csv.DictReader(written.open()))
    assert [int(row["env_steps"]) for row in rows] == [0, 0, 250, 250, 500, 500]
    assert all(1 <= int(row["length"]) <= 50 for row in rows)
    assert any(int(row["length"]) < 50 for row in rows)
    if agent == "tdmpc2":  # its termination head is on by itself where the row says that episodes end
        assert json.loads(written.with_name("run.json").read_text())["spec"]["hyperparameters"]["episodic"] is True
        trained = list(csv.DictReader(written.with_name("train.csv").open()))
        assert float(trained[-1]["termination_loss"]) < 0.5  # of a guess: 0.69
