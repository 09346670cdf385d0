"""The training loop in each domain: films where something can draw them, and episodes that end early."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from rich.console import Console
from test_envs_domains import skip_what_this_machine_lacks
from test_training import TINY, after, assert_equal, evaluations, never, options

from agents.registry import resolve_hyperparameters
from bench import checkpoint, tasks
from bench.envs import rendering, vulkan
from bench.envs.base import TaskEnv
from bench.errors import UserError
from bench.failures import EXIT_DONE, EXIT_INTERRUPTED
from bench.replay_log import ReplayLog
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.tasks import Task
from bench.worker import train_runs

pytestmark = pytest.mark.whole


def spec(agent: str, row: Task, budget_agent_steps: int, **changes: Any) -> RunSpec:
    budget = budget_agent_steps * row.action_repeat
    values: dict[str, Any] = {
        "agent": agent,
        "hyperparameters": resolve_hyperparameters(agent, TINY[agent] | {"seed_agent_steps": 90}),
        "task": row.name,
        "domain": row.domain,
        "domain_version": row.domain_version,
        "seed": 1,
        "action_repeat": row.action_repeat,
        "budget_env_steps": budget,
        "eval_every_env_steps": budget,
        "eval_episodes": 1,
    }
    return RunSpec(**(values | changes))


def add_row(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package had brought the row."""
    table = dict(tasks._table()) | {task.name: task}
    monkeypatch.setattr(tasks, "_table", lambda: table)


def is_drawn(task: Task) -> bool:
    """Whether this machine can draw the task's domain."""
    if task.domain == "maniskill":
        return vulkan.device() is not None
    try:
        rendering.choose_backend()
    except UserError:
        return False
    return True


@pytest.mark.parametrize("name", ["pendulum-swingup", "mw-reach", "lift-cube", "myo-reach"])
def test_films_in_every_domain(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that moves for each evaluation; where nothing can draw, one line says so and training goes on."""
    task = replace(tasks.get(name), name=f"brief-{name}", published_name="", episode_agent_steps=8)
    add_row(task, monkeypatch)
    if task.domain == "maniskill":
        skip_what_this_machine_lacks(task)
    run, screen = RunDir.create(tmp_path, spec("sac", task, 2)), io.StringIO()
    console = Console(file=screen, width=1000)
    assert train_runs([run], options(video=True), console, never) == EXIT_DONE
    assert len(evaluations(run)) == 2
    films = sorted((run.path / "videos").glob("*.mp4"))
    notes = [line for line in screen.getvalue().splitlines() if "no videos, training goes on: " in line]
    if not is_drawn(task):
        assert (films, len(notes)) == ([], 1)
        pytest.skip(f"only the refusal was tested: {notes[0].strip()}")
    assert notes == []
    assert [film.name for film in films] == ["0000000000.mp4", f"{2 * task.action_repeat:010d}.mp4"]
    frames = iio.imread(films[0], plugin="FFMPEG")
    assert frames.shape == (task.episode_agent_steps, 256, 256, 3)
    assert frames[0].std() > 5
    assert np.abs(frames[-1].astype(float) - frames[0]).max() > 30


class Ending(TaskEnv):
    """A walk on a line from 0, which ends by itself beyond +-1 and else after the row's time."""

    def _reset_simulator(self, seed: int) -> np.ndarray:
        self.random, self.place = np.random.default_rng(seed), 0.0
        return np.array([self.place, 0.0])

    def _step_simulator(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, float]:
        move = 0.5 * float(action[0]) + self.random.normal(0, 0.15)
        self.place += move
        return np.array([self.place, move]), 1.0, abs(self.place) > 1, 0.0

    def _draw(self, height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.uint8)


def make(task: Task, obs: str, seed: int, action_repeat: int, render_mode: Any) -> Ending:
    return Ending(task, seed, action_repeat, render_mode)


ENDING = Task(
    name="line-walk",
    domain="own",
    simulator_id="test_training_domains:make",
    obs_size=2,
    action_size=1,
    action_repeat=1,
    episode_agent_steps=20,
    budget_env_steps=1000,
    metric="return",
    terminates=True,
)


@pytest.mark.parametrize("agent", ["sac", "tdmpc2"])
def test_episodes_that_end_early_resume_too(agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of all lengths, two environments out of step: an interrupted run equals one that never was."""
    add_row(ENDING, monkeypatch)
    changes: dict[str, Any] = {"num_envs": 2, "eval_every_env_steps": 100, "eval_episodes": 3}
    if agent == "tdmpc2":
        small = TINY["tdmpc2"] | {"seed_agent_steps": 90, "episodic": True}
        changes["hyperparameters"] = resolve_hyperparameters("tdmpc2", small)
    one = spec(agent, ENDING, 300, **changes)
    whole = RunDir.create(tmp_path / "whole", one)
    assert train_runs([whole], options(), None, never) == EXIT_DONE
    rows = evaluations(whole)
    assert len(rows) == 12
    run = RunDir.create(tmp_path / "parts", one)
    for calls in (23, 30, 31, 7):
        assert train_runs([run], options(), None, after(calls)) == EXIT_INTERRUPTED
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert evaluations(run) == rows
    final = [checkpoint.load(directory, 300) for directory in (whole, run)]
    assert final[0] is not None
    assert final[1] is not None
    for part in ("agent", "replay", "collector", "random_actions"):
        assert_equal(final[0][part], final[1][part], part)

    episodes = list(ReplayLog(run.replay).read(final[1]["replay_log"], 10_000))
    ends = {(episode.transitions, bool(episode.terminated[-1])) for episode in episodes}
    assert len({length for length, _ in ends}) > 5
    assert {by_itself for _, by_itself in ends} >= {True}
    assert all(not episode.terminated[:-1].any() for episode in episodes)
    assert len({episode.env for episode in episodes}) == 2
