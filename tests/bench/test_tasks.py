"""The task table and its sets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bench import tasks
from bench.errors import UserError


def test_counts_of_sets() -> None:
    sizes = {
        "dmcontrol": 39,
        "metaworld": 50,
        "maniskill": 5,
        "myosuite": 10,
        "all": 104,
        "mt30": 30,
        "mt80": 80,
        "locomotion": 7,
        "dmc-hard": 7,
        "visual": 10,
        "sparse": 10,
        "new": 11,
        "original": 28,
        "ablation": 3,
    }
    assert {name: len(tasks.task_set(name)) for name in sizes} == sizes
    assert set(tasks.set_names()) == set(sizes)
    assert set(tasks.BUILT_IN_SETS) == set(sizes)
    assert len({task.name for task in tasks.tasks()}) == 104


def test_multi_task_order_is_the_task_id() -> None:
    mt80 = [task.name for task in tasks.task_set("mt80")]
    assert mt80[:30] == [task.name for task in tasks.task_set("mt30")]
    known = {0: "walker-stand", 5: "reacher-hard", 12: "cup-catch", 19: "walker-walk-backwards", 29: "pendulum-spin"}
    known |= {30: "mw-assembly", 33: "mw-button-press-topdown-wall", 52: "mw-lever-pull", 79: "mw-hand-insert"}
    assert {index: mt80[index] for index in known} == known
    assert {task.name for task in tasks.task_set("mt30")} == {
        task.name
        for task in tasks.task_set("dmcontrol")
        if task.name.split("-")[0] not in ("dog", "humanoid", "quadruped")
    }


@pytest.mark.parametrize(
    ("name", "obs", "action", "episode", "budget", "agent_budget", "eval_every", "simulator_id"),
    [
        ("dog-run", 223, 38, 500, 14_000_000, 7_000_000, 100_000, "dog/run"),
        ("humanoid-walk", 67, 21, 500, 14_000_000, 7_000_000, 100_000, "humanoid/walk"),
        ("finger-spin", 9, 2, 500, 4_000_000, 2_000_000, 100_000, "finger/spin"),
        ("finger-turn-hard", 12, 2, 500, 4_000_000, 2_000_000, 100_000, "finger/turn_hard"),
        ("cup-catch", 8, 2, 500, 4_000_000, 2_000_000, 100_000, "ball_in_cup/catch"),
        ("reacher-three-hard", 8, 3, 500, 4_000_000, 2_000_000, 100_000, "reacher/three_hard"),
        ("mw-assembly", 39, 4, 100, 2_000_000, 1_000_000, 100_000, "assembly-v3-goal-observable"),
        ("pick-ycb", 51, 7, 100, 14_000_000, 7_000_000, 100_000, "PickSingleYCB-v0"),
        ("turn-faucet", 40, 7, 100, 4_000_000, 2_000_000, 100_000, "TurnFaucet-v0"),
        ("myo-key-turn-hard", 93, 39, 100, 2_000_000, 2_000_000, 50_000, "myoHandKeyTurnRandom-v0"),
        ("myo-reach", 115, 39, 100, 2_000_000, 2_000_000, 50_000, "myoHandReachFixed-v0"),
    ],
)
def test_rows(
    name: str, obs: int, action: int, episode: int, budget: int, agent_budget: int, eval_every: int, simulator_id: str
) -> None:
    task = tasks.get(name)
    assert (task.obs_size, task.action_size, task.episode_agent_steps) == (obs, action, episode)
    assert (task.budget_env_steps, task.budget_agent_steps) == (budget, agent_budget)
    assert (task.eval_every_env_steps, task.simulator_id) == (eval_every, simulator_id)


def test_totals_of_the_paper() -> None:
    # 198M agent steps for one seed of everything, and no task that ends by itself.
    assert sum(task.budget_agent_steps for task in tasks.tasks()) == 198_000_000
    assert not any(task.terminates for task in tasks.tasks())
    assert all("unknown" not in task.domain_version for task in tasks.tasks())


def test_score() -> None:
    assert tasks.get("walker-walk").score(985.0, 0.0) == pytest.approx(98.5)
    assert tasks.get("mw-push").score(3000.0, 0.7) == pytest.approx(70.0)


def test_score_of_a_users_own_scale() -> None:
    task = tasks.Task("x", "mine", "x:y", 1, 1, 1, 1, 1, "return", return_range=(-1600.0, 0.0))
    assert [task.score(return_, 1.0) for return_ in (-1600.0, -400.0, 0.0)] == [0.0, 75.0, 100.0]
    with pytest.raises(UserError, match=r"return_range is 5.0, 5.0, but the first must be the smaller"):
        replace(task, return_range=(5.0, 5.0))


def test_published_names() -> None:
    assert tasks.get("myo-hand-reach-hard").name == "myo-reach-hard"
    assert tasks.get("dog-run").published_name == "dog-run"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown task 'walker-wlk': did you mean walker-walk"):
        tasks.get("walker-wlk")
    with pytest.raises(UserError, match=r"unknown task set 'mt-30': did you mean mt30"):
        tasks.task_set("mt-30")
    with pytest.raises(UserError, match=r"unknown task or set 'locomotoin': did you mean locomotion"):
        tasks.expand(["mt30", "locomotoin"])


def test_expand_keeps_order_and_drops_duplicates() -> None:
    names = [task.name for task in tasks.expand(["humanoid-run", "locomotion", "cup-catch", "humanoid-run"])]
    assert names[:2] == ["humanoid-run", "dog-stand"]
    assert names[-1] == "cup-catch"
    assert len(names) == 8


def _register(monkeypatch: pytest.MonkeyPatch, load: Callable[[], object]) -> None:
    point = SimpleNamespace(name="mine", value="mine:TASKS", load=load)
    monkeypatch.setattr(tasks, "entry_points", lambda group: [point])


@pytest.fixture
def _fresh_table() -> Iterator[None]:
    tasks._table.cache_clear()
    tasks._sets.cache_clear()
    yield
    tasks._table.cache_clear()
    tasks._sets.cache_clear()


@pytest.mark.usefixtures("_fresh_table")
def test_users_add_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> list[tasks.Task]:
        # Derived from a row of the table while the package is being loaded.
        return [replace(tasks.get("walker-walk"), name="walker-moonwalk", tags=frozenset({"new", "moon"}))]

    _register(monkeypatch, load)
    mine = load()[0]
    assert tasks.get("walker-moonwalk") == mine
    assert tasks.task_set("moon") == (mine,)
    assert tasks.task_set("new")[-1] == mine
    assert len(tasks.tasks()) == 105


@pytest.mark.usefixtures("_fresh_table")
@pytest.mark.parametrize("name", ["dog-run", "myo-hand-reach", "mt30"])
def test_a_clash_of_names_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _register(monkeypatch, lambda: replace(tasks.get("walker-walk"), name=name))
    with pytest.raises(UserError, match=f"'{name}' of entry point 'mine' takes a name that is in use"):
        tasks.tasks()


@pytest.mark.usefixtures("_fresh_table")
def test_a_package_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> object:
        raise ImportError("no module named moon")

    _register(monkeypatch, load)
    with pytest.raises(UserError, match=r"entry point 'mine' cannot be loaded from mine:TASKS.*no module named moon"):
        tasks.tasks()


@pytest.mark.usefixtures("_fresh_table")
def test_a_wrong_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, lambda: ["dog-run"])
    with pytest.raises(UserError, match=r"'dog-run', which is no bench.tasks.Task"):
        tasks.tasks()
    with pytest.raises(UserError, match="metric is 'reward', valid are return, success"):
        tasks.Task("x", "mine", "x", 1, 1, 1, 1, 1, "reward")  # type: ignore[arg-type]


def test_importing_the_table_is_light() -> None:
    heavy = ["torch", "numpy", "gymnasium", "dm_control", "mujoco", "pandas", "pydantic"]
    code = f"import sys, bench.tasks; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
