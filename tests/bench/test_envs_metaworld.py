"""Meta-World: the package's own scripted policies solve its tasks through our environment, and the paper's details."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import envs, tasks
from bench.envs.errors import SimulatorError
from bench.envs.metaworld import MetaWorld
from bench.errors import UserError

ROWS = tasks.task_set("metaworld")


def make(name: str, **options: Any) -> MetaWorld:
    env = envs.make(name, **options)
    assert isinstance(env, MetaWorld)
    return env


def solved(env: MetaWorld, seed: int) -> tuple[bool, bool]:
    """Whether the scripted policy had success at some agent step of an episode, and whether it had at the last."""
    from metaworld.policies import ENV_POLICY_MAP

    policy = ENV_POLICY_MAP[env.task.simulator_id.removesuffix("-goal-observable")]()
    obs, info = env.reset(seed=seed)
    ever, truncated = False, False
    while not truncated:
        action = policy.get_action(obs.astype(np.float64)).clip(-1, 1)
        obs, _, terminated, truncated, info = env.step(action)
        assert not terminated  # success ends nothing
        ever |= info["success"] == 1.0
    return ever, info["success"] == 1.0


def count(rows: Sequence[tasks.Task], seeds: Sequence[int]) -> tuple[int, int, list[str]]:
    """Episodes solved at some step, at the last step, and those that were not at any."""
    ever, last, missed = 0, 0, []
    for task in rows:
        env = make(task.name)
        for seed in seeds:
            some, final = solved(env, seed)
            ever, last = ever + some, last + final
            missed += [] if some else [f"{task.name} (seed {seed})"]
        env.close()
    return ever, last, missed


@pytest.mark.parametrize(
    "name",
    [
        "mw-drawer-open",
        "mw-peg-insert-side",
        *(
            pytest.param(name, marks=pytest.mark.whole)
            for name in ("mw-assembly", "mw-pick-place", "mw-window-close", "mw-reach-wall")
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Constant")
def test_scripted_policies_solve_a_few_tasks(name: str) -> None:
    assert count([tasks.get(name)], seeds=[0])[:2] == (1, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant")
def test_scripted_policies_solve_nearly_every_episode() -> None:
    """They were written to be stopped at success and often push on past it, so success at any step is what counts."""
    ever, last, missed = count(ROWS, seeds=range(4))
    assert ever >= 190, f"{ever} of 200 at some agent step, {last} at the last; never: {missed}"


@pytest.mark.parametrize("name", ["mw-push", "mw-button-press-topdown-wall", "mw-stick-pull"])
def test_a_task_is_the_packages_own(name: str) -> None:
    """One zero action after reset, which the agent does not see; then each action twice."""
    env = make(name)
    theirs: Any = make(name).simulation
    assert theirs.reward_function_version == "v2"  # the paper's
    theirs.seed(11)
    obs, _ = env.reset(seed=11)
    assert (obs == theirs.reset()[0].astype(np.float32)).all()
    theirs.step(np.zeros(4, np.float32))
    random = np.random.default_rng(0)
    for _ in range(15):
        action = random.uniform(-1, 1, 4).astype(np.float32)
        obs, reward, *_, info = env.step(action)
        (_, first, *_), (last, second, *_, told) = (theirs.step(action) for _ in range(2))
        assert (obs == last.astype(np.float32)).all()
        assert reward == first + second
        assert info["success"] == told["success"]


def test_the_goal_varies_from_episode_to_episode() -> None:
    for name in ("mw-reach", "mw-assembly", "mw-door-open"):
        env = make(name)
        goals = {env.reset(seed=seed)[0][-3:].tobytes() for seed in (1, 2, 3, 2, 1)}
        assert len(goals) == 3
        goals = {env.reset()[0][-3:].tobytes() for _ in range(3)}
        assert len(goals) == 3
        env.close()


def test_success_is_that_of_the_last_env_step(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make("mw-reach")
    env.reset(seed=1)
    real, flags = env.simulation.step, iter([0.0, 1.0, 1.0, 0.0])

    def step(action: np.ndarray) -> Any:
        *result, info = real(action)
        return (*result, info | {"success": next(flags)})

    monkeypatch.setattr(env.simulation, "step", step)
    assert env.step(np.zeros(4))[4] == {"success": 1.0}
    assert env.step(np.zeros(4))[2:] == (False, False, {"success": 0.0})


def test_a_simulation_that_diverges_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes a log of its own
    env = make("mw-push")
    env.reset(seed=42)
    env.simulation.data.qvel[:] = 1e12
    with pytest.raises(SimulatorError, match=r"mw-push diverged \(episode seed 42, agent step 0\)"):
        env.step(np.zeros(4))
    assert np.isfinite(env.reset(seed=42)[0]).all()


def test_a_task_that_does_not_exist_is_said() -> None:
    with pytest.raises(UserError, match=r"metaworld has no environment 'fly-v3'.*<task>-v3-goal-observable"):
        envs.make(replace(ROWS[0], simulator_id="fly-v3"))
