"""Collected episodes against plain loops over the environment, and the chunk files that hold them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import save_2023
from pixel_agent import installed
from typer.testing import CliRunner

from agents.registry import get as get_agent
from agents.registry import resolve_hyperparameters
from bench import agent_spec, checkpoint
from bench.data_cli import app
from bench.datasets import collect as collecting
from bench.datasets.chunks import Chunk
from bench.datasets.collect import Episodes, Request, _rows, collect
from bench.datasets.convert import convert
from bench.datasets.dataset import Dataset
from bench.datasets.description import ChunkFolder
from bench.envs import make
from bench.errors import UserError
from bench.replay_log import ReplayLog
from bench.replay_segment import Episode
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.seeding import derive_seed, episode_seed
from bench.tasks import get

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from authors_files import Plain, build
from small_settings import SMALL

TINY = (16, 24, 16, 2, 3, 12)
SHORT = "brief-balance"
"""20 agent steps; cartpole-balance, which is the same with 500, is cut to pieces of these."""


def quiet(what: str, done: int, total: int) -> None:
    """Says nothing."""


@pytest.fixture(autouse=True)
def _short_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task of short episodes, and chunk files written without tensordict, which takes seconds to import."""
    monkeypatch.setattr(
        collecting,
        "write_chunk",
        lambda path, tensors: save_2023({name: torch.from_numpy(rows) for name, rows in tensors.items()}, path),
    )
    with installed(tmp_path / "site", monkeypatch):
        yield


def rollout(task: str, purpose: str, episode: int, act: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T + 1, O) observations, (T, A) actions and (T,) rewards of one episode, by a loop that shares nothing."""
    env = make(task)
    obs, _ = env.reset(seed=episode_seed(1, f"collect/{purpose}/{task}", 0, episode))
    shown, actions, rewards, over = [obs], [], [], False
    while not over:
        actions.append(act(obs, len(actions)))
        obs, reward, terminated, truncated, _ = env.step(actions[-1])
        shown.append(obs)
        rewards.append(reward)
        over = terminated or truncated
    env.close()
    return np.array(shown), np.array(actions), np.array(rewards, np.float32)


def test_random_episodes(tmp_path: Path) -> None:
    request = Request(tasks=["cartpole-balance", SHORT], random_episodes=1, envs=2, workers=0)
    folder = collect(request, tmp_path / "chunks", quiet)
    assert (folder.tasks, folder.row_entries) == (["cartpole-balance", SHORT], 21)
    for number, (task, rows) in enumerate((("cartpole-balance", 25), (SHORT, 1))):
        chunk = Chunk.open(tmp_path / "chunks" / f"chunk_{number}.pt")
        assert (chunk.rows, np.unique(chunk.task).tolist()) == (rows, [number])
        random = np.random.default_rng(derive_seed(1, "collect", "random", task))
        obs, action, reward = rollout(
            task, "random/0", 0, lambda *_, g=random: g.uniform(-1, 1, (1, 1)).astype(np.float32)[0]
        )
        for row in range(rows):
            steps = slice(20 * row, 20 * row + 20)
            np.testing.assert_array_equal(chunk.obs[row], obs[20 * row : 20 * row + 21])
            np.testing.assert_array_equal(chunk.action[row, 1:], action[steps])
            np.testing.assert_array_equal(chunk.reward[row, 1:], reward[steps])
        assert folder.parts[number].source == "random actions"
        assert folder.parts[number].mean_return == pytest.approx(reward.sum(), rel=1e-5)
    layout = convert(tmp_path / "chunks", tmp_path / "set")  # chunks.json names the tasks
    assert [(part.task, part.rows) for part in layout.parts] == [("cartpole-balance", 25), (SHORT, 1)]


def test_episodes_are_cut_to_equal_rows_and_padded() -> None:
    random = np.random.default_rng(0)
    shapes = ((2, 13, 5), (2, 12, 2), (2, 12))
    played = Episodes(*(random.normal(size=shape).astype(np.float32) for shape in shapes))
    rows = _rows(played, 7, 5, (8, 3))
    assert {name: value.shape for name, value in rows.items()} == {
        "obs": (6, 5, 8),
        "action": (6, 5, 3),
        "reward": (6, 5),
        "task": (6, 5),
    }
    for episode in range(2):
        for piece in range(3):
            row, begin = 3 * episode + piece, 4 * piece
            np.testing.assert_array_equal(rows["obs"][row, :, :5], played.obs[episode, begin : begin + 5])
            np.testing.assert_array_equal(rows["action"][row, 1:, :2], played.action[episode, begin : begin + 4])
            np.testing.assert_array_equal(rows["reward"][row, 1:], played.reward[episode, begin : begin + 4])
    assert not rows["obs"][..., 5:].any()
    assert not rows["action"][:, 1:, 2:].any()
    assert np.isnan(rows["action"][:, 0]).all()
    assert np.isnan(rows["reward"][:, 0]).all()
    assert (rows["task"] == 7).all()


def authors_file(folder: Path, name: str, **settings: Any) -> Path:
    torch.save(build(dims=TINY, **({"obs": 5, "action": 1} | settings)), folder / name)
    return folder / name


def test_a_file_of_the_authors_plays(tmp_path: Path) -> None:
    path = authors_file(tmp_path, f"{SHORT}-1.pt")
    request = Request([path], episodes=3, policy=True, envs=2, workers=0)
    folder = collect(request, tmp_path / "chunks", quiet)
    assert folder.parts[0].source.startswith(f"{SHORT}-1.pt: TD-MPC2 of the authors")
    assert folder.parts[0].source.endswith(f"{SHORT}, policy")
    chunk, plain = Chunk.open(tmp_path / "chunks" / "chunk_0.pt"), Plain(torch.load(path, weights_only=True))

    def act(obs: np.ndarray, at: int) -> np.ndarray:
        z = plain.stack("_encoder.state", torch.from_numpy(obs), simplices=True)
        return plain.stack("_pi", z)[:1].tanh().numpy()

    for episode in range(3):
        obs, action, reward = rollout(SHORT, "agent/0", episode, act)
        np.testing.assert_allclose(chunk.obs[episode], obs, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(chunk.action[episode, 1:], action, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(chunk.reward[episode, 1:], reward, rtol=1e-3)
    explored = Request([path], episodes=3, policy=True, explore=True, envs=2, workers=0)
    assert collect(explored, tmp_path / "explored", quiet).parts[0].source.endswith("policy, exploring")
    noisy = Chunk.open(tmp_path / "explored" / "chunk_0.pt")
    np.testing.assert_array_equal(noisy.obs[:, 0], chunk.obs[:, 0])
    assert (noisy.action[:, 1:] != chunk.action[:, 1:]).all()


def trained(folder: Path, episodes: int, steps: int = 20) -> tuple[RunDir, list[Episode]]:
    """A run of SAC with a checkpoint, and random numbers for its replay."""
    row = get(SHORT)
    spec = RunSpec(
        agent="sac",
        hyperparameters=resolve_hyperparameters("sac", SMALL["sac"]),
        task=SHORT,
        domain=row.domain,
        domain_version=row.domain_version,
        seed=3,
        action_repeat=2,
        budget_env_steps=40 * episodes,
        eval_every_env_steps=100,
    )
    run = RunDir.create(folder, spec)
    entry = get_agent("sac")
    hyperparameters = entry.hyperparameters_model()(**spec.hyperparameters)
    agent = entry.load()(agent_spec.of_run(spec), hyperparameters, [3], torch.device("cpu"))
    checkpoint.save(run, 20 * episodes, {"agent": agent.state_dict(0)})
    random = np.random.default_rng(0)
    shapes = ((steps + 1, 5), (steps, 1), (steps,))
    replay = [
        Episode(0, *(random.normal(size=shape).astype(np.float32) for shape in shapes), np.zeros(steps, np.float32))
        for _ in range(episodes)
    ]
    ReplayLog(run.replay).append(replay)
    return run, replay


def test_replay_of_a_run(tmp_path: Path) -> None:
    run, replay = trained(tmp_path / "runs", 7)
    request = Request([run.path], episodes=2, replay_episodes=3, random_episodes=1, envs=2, workers=0)
    folder = collect(request, tmp_path / "chunks", quiet)
    assert [part.episodes for part in folder.parts] == [2, 3, 1]
    assert folder.parts[1].source == f"replay of {run.path.name}: sac on {SHORT}, seed 3, at 280 env steps"
    assert folder.parts[1].mean_success is None
    chunk = Chunk.open(tmp_path / "chunks" / "chunk_1.pt")
    for row, number in enumerate((0, 3, 6)):
        np.testing.assert_array_equal(chunk.obs[row], replay[number].obs)
        np.testing.assert_array_equal(chunk.action[row, 1:], replay[number].action)
        np.testing.assert_array_equal(chunk.reward[row, 1:], replay[number].reward)
    with pytest.raises(
        UserError, match=r"holds 7 episodes, 8 were asked for: ask for fewer, or train with --keep-replay"
    ):
        collect(Request([run.path], replay_episodes=8), tmp_path / "more", quiet)


def test_an_interrupted_collection_goes_on(tmp_path: Path) -> None:
    path = authors_file(tmp_path, f"{SHORT}-1.pt")
    # The same source twice: its noise must not depend on what it played before.
    request = Request([path, path], episodes=2, random_episodes=1, policy=True, explore=True, workers=0)
    whole = collect(request, tmp_path / "whole", quiet)

    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if (what, done) == ("chunk files", 1):
            raise Killed

    with pytest.raises(Killed):
        collect(request, tmp_path / "killed", kill)
    first = (tmp_path / "killed" / "chunk_0.pt").stat().st_mtime_ns
    assert not (tmp_path / "killed" / "chunk_1.pt").exists()
    assert collect(request, tmp_path / "killed", quiet) == whole == ChunkFolder.read(tmp_path / "killed")
    assert (tmp_path / "killed" / "chunk_0.pt").stat().st_mtime_ns == first
    for number in range(3):
        one, other = (Chunk.open(tmp_path / name / f"chunk_{number}.pt") for name in ("whole", "killed"))
        for name in ("obs", "action", "reward", "task"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(UserError, match="was begun with, other episodes: choose another folder"):
        collect(Request(tasks=[SHORT], random_episodes=1), tmp_path / "killed", quiet)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    run, _ = trained(tmp_path / "runs", 2, steps=19)
    path = authors_file(tmp_path, f"{SHORT}-1.pt")
    (tmp_path / "full").mkdir()
    authors_file(tmp_path / "full", "chunk_0.pt")
    for request, target, message in (
        (Request(), "a", "nothing to collect: give a run or a file, or --task with --random-episodes"),
        (Request([path]), "a", f"nothing to collect for {SHORT}: give a source of it with --episodes"),
        (
            Request([path], ["cup-catch"], episodes=1),
            "a",
            "takes observations of 5 numbers and gives 1 actions, cup-catch need",
        ),
        (Request([run.path], ["cup-catch"], episodes=1), "a", f"plays {SHORT}, none of which is asked for"),
        (Request([run.path], replay_episodes=1), "a", r"has episodes of \[19\] agent steps"),
        (Request(tasks=[SHORT], random_episodes=1), "full", "holds chunk files of something else"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            collect(request, tmp_path / target, quiet)
        assert "\n" not in str(caught.value)


@pytest.mark.whole
def test_from_random_actions_to_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands, with chunk files that tensordict writes and reads."""
    monkeypatch.undo()
    runner = CliRunner()

    def run(*arguments: str) -> str:
        result = runner.invoke(app, ["data", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    chunks, made = str(tmp_path / "chunks"), str(tmp_path / "set")
    names = ("--task", "cup-catch", "--task", "pendulum-swingup")
    out = run("collect", *names, "--random-episodes", "2", "-o", chunks, "--env-workers", "0", "--threads", "1")
    assert "pendulum-swingup" in out
    assert "random actions" in out
    loaded = torch.load(tmp_path / "chunks" / "chunk_1.pt", weights_only=False)
    assert type(loaded).__name__ == "TensorDict"
    assert tuple(loaded.batch_size) == (2, 501)
    assert {name: (value.dtype, tuple(value.shape[2:])) for name, value in loaded.items()} == {
        "obs": (torch.float32, (8,)),
        "action": (torch.float32, (2,)),
        "reward": (torch.float32, ()),
        "task": (torch.int32, ()),
    }
    assert "4 rows of 2 tasks, 0.0 GB" in run("convert", chunks, "-o", made)
    shown = run("show", made)
    assert "4 rows of 500 transitions (2,000 in all)" in shown
    assert "cup-catch" in shown
    batch = Dataset.open(tmp_path / "set", ["pendulum-swingup"]).sampler(4, 3, [1], torch.device("cpu")).sample()
    assert batch.obs.shape == (1, 3, 4, 3)
