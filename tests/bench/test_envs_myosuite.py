"""MyoSuite: the paper's reading of its episodes, and nothing on the screen."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import envs, tasks
from bench.envs.errors import SimulatorError
from bench.envs.myosuite import MyoSuite
from bench.errors import UserError


def make(name: str, **options: Any) -> MyoSuite:
    env = envs.make(name, **options)
    assert isinstance(env, MyoSuite)
    return env


@pytest.mark.parametrize("name", [pytest.param("myo-key-turn", marks=pytest.mark.whole), "myo-pen-twirl-hard"])
def test_a_task_is_the_packages_own_without_its_early_ends(name: str) -> None:
    """Rewards and observations as the package gives them; its `done` and its shorter time limits end nothing."""
    task = tasks.get(name)
    env, theirs = make(name), make(name).simulation
    theirs.seed(11)
    obs, _ = env.reset(seed=11)
    assert (obs == theirs.reset()[0].astype(np.float32)).all()
    random = np.random.default_rng(0)
    done_at, truncated, agent_steps = [], False, 0
    while not truncated:
        action = random.uniform(-1, 1, task.action_size).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(action)
        last, value, done, _, told = theirs.step(action)
        assert (obs == last.astype(np.float32)).all()
        assert reward == pytest.approx(float(np.squeeze(value)))
        assert info["success"] == float(np.squeeze(told["solved"]))
        assert not terminated
        agent_steps += 1
        done_at += [agent_steps] if done else []
    assert agent_steps == 100
    if name == "myo-pen-twirl-hard":  # the pen is dropped; the package's own limit is 50
        assert done_at
        assert done_at[0] < 100


def test_solved_is_success(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make("myo-reach")
    env.reset(seed=1)
    real = env.simulation.step

    def step(action: np.ndarray) -> Any:
        *result, info = real(action)
        return (*result, info | {"solved": np.array([True])})

    assert env.step(np.zeros(39))[4] == {"success": 0.0}
    monkeypatch.setattr(env.simulation, "step", step)
    assert env.step(np.zeros(39))[4] == {"success": 1.0}


@pytest.mark.parametrize("name", ["myo-reach", pytest.param("myo-obj-hold", marks=pytest.mark.whole)])
def test_fixed_and_hard_starts(name: str) -> None:
    fixed, hard = make(name), make(f"{name}-hard")
    assert len({fixed.reset(seed=seed)[0].tobytes() for seed in range(3)}) == 1
    assert len({hard.reset(seed=seed)[0].tobytes() for seed in range(3)}) == 3


def test_a_simulation_that_diverges_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes a log of its own
    env = make("myo-reach")
    env.reset(seed=42)
    env.simulation.sim.data.qvel[:] = 1e12
    with pytest.raises(SimulatorError, match=r"myo-reach diverged \(episode seed 42, agent step 0\)"):
        env.step(np.zeros(39))
    assert np.isfinite(env.reset(seed=42)[0]).all()


def test_a_task_that_does_not_exist_is_said() -> None:
    with pytest.raises(UserError, match="myosuite has no environment 'myoHandFly-v0'"):
        envs.make(replace(tasks.get("myo-reach"), simulator_id="myoHandFly-v0"))


@pytest.mark.whole
def test_nothing_on_the_screen() -> None:
    """Its banner, its credits and gymnasium's warnings stay away; what this program prints does not."""
    code = (
        "from bench import envs; env = envs.make('myo-pose'); env.reset(seed=1)\n"
        "env.step(env.action_space.sample()); env.close(); print('mine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "mine\n"
    assert done.stderr == ""
