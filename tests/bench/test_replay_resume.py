"""A replay that is rebuilt from its log draws as the one that was never interrupted."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.protocol import ReplaySpec
from bench.errors import UserError
from bench.replay import Replay
from bench.replay_log import ReplayLog
from bench.seeding import derive_seed

CPU = torch.device("cpu")
LONGEST = 7


def episode_length(seed, env, number):
    return 1 + derive_seed("length", seed, env, number) % LONGEST


class Runs:
    """A fleet of runs with a replay and logs, as a training loop has them; seeds tell how long episodes are."""

    def __init__(self, spec, seeds, num_envs, folder, stack=1):
        self.replay = Replay(spec, seeds, num_envs, (2 * stack,), np.float32, 1, CPU, frame_stack=stack)
        self.seeds, self.num_envs = seeds, num_envs
        self.logs = [ReplayLog(folder / str(seed), segment_bytes=300) for seed in seeds]
        self.episode = np.zeros((len(seeds), num_envs), int)
        self.at = np.zeros((len(seeds), num_envs), int)

    def observations(self):
        """Each a stack of the last "pictures" of two numbers: which episode, and where in it."""
        which = np.array(self.seeds)[:, None] * 1000 + 100 * np.arange(self.num_envs) + self.episode
        behind = range(self.replay.frame_stack - 1, -1, -1)
        return np.stack([column for back in behind for column in (which, np.maximum(self.at - back, 0))], axis=-1)

    def begin(self, where=None):
        self.replay.begin(self.observations(), where)

    def step(self, where=None):
        self.at += 1 if where is None else where
        lengths = [
            [episode_length(seed, env, self.episode[run, env]) for env in range(self.num_envs)]
            for run, seed in enumerate(self.seeds)
        ]
        ended = self.at >= np.array(lengths)
        terminated = ended & (self.episode % 2 == 0)
        obs = self.observations()
        self.replay.add(obs, obs[..., -2:-1] / 7, obs[..., -1] / 3, terminated, ended & ~terminated, where)
        for run, episode in self.replay.pop_finished():
            self.logs[run].append([episode])
        self.episode += ended
        self.at[ended] = 0
        self.begin(ended)

    def checkpoint(self):
        """What the checkpoint of each run holds, by way of the file that it would be in."""
        states = []
        for run in range(len(self.seeds)):
            file = io.BytesIO()
            state = {
                "replay": self.replay.state_dict(run),
                "log": self.logs[run].position(),
                "episode": self.episode[run].tolist(),
                "at": self.at[run].tolist(),
            }
            torch.save(state, file)
            file.seek(0)
            states.append(torch.load(file, weights_only=True))
        return states

    def resume(self, states):
        for run, state in enumerate(states):
            self.logs[run].truncate(state["log"])
            episodes = self.logs[run].read(state["log"], self.replay.spec.capacity)
            self.replay.load(run, state["replay"], episodes)
        self.episode = np.array([state["episode"] for state in states])
        behind = np.array([state["at"] for state in states])
        self.begin()
        while (behind > self.at).any():
            self.step(where=behind > self.at)


def sample(replay):
    """A batch, after which the replay has new priorities where draws are prioritised."""
    batch = replay.sample()
    batch.priority = batch.obs[:, 0].sum(-1) % 7 + 0.1 + torch.linspace(0, 1, batch.obs.shape[2])
    replay.set_priorities(batch)
    return batch


def assert_equal_batches(batch, other, runs=slice(None)):
    for name in ("obs", "action", "reward", "terminated", "first", "weight", "start"):
        one, two = getattr(batch, name), getattr(other, name)
        assert (one is None and two is None) or torch.equal(one[runs], two), name


@settings(max_examples=20, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    num_envs=st.integers(1, 3),
    capacity=st.integers(3 * LONGEST + 3, 60),
    length=st.integers(2, 4),
    draw=st.sampled_from(["episode", "transition", "stream", "prioritised"]),
    finished_only=st.booleans(),
    interrupted_at=st.integers(0, 60),
    lost_steps=st.integers(0, 15),
    stack=st.sampled_from([1, 3]),
)
def test_resumed_replay_draws_as_the_uninterrupted_one(
    seeds, num_envs, capacity, length, draw, finished_only, interrupted_at, lost_steps, stack
):
    spec = ReplaySpec(4, length, capacity, draw, finished_only or draw == "prioritised")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        uninterrupted = Runs(spec, seeds, num_envs, Path(other), stack)
        before = Runs(spec, seeds, num_envs, Path(folder), stack)
        for runs in (uninterrupted, before):
            runs.begin()
            for _ in range(interrupted_at):
                runs.step()
                if runs.replay.can_sample():
                    sample(runs.replay)
        states = before.checkpoint()
        for _ in range(lost_steps):
            before.step()

        # Resumed in reverse order: a fleet may be put together anew.
        resumed = Runs(spec, seeds[::-1], num_envs, Path(folder), stack)
        resumed.resume(states[::-1])
        for _ in range(12):
            for runs in (uninterrupted, resumed):
                runs.step()
            assert resumed.replay.can_sample() == uninterrupted.replay.can_sample()
            if resumed.replay.can_sample():
                order = list(range(len(seeds)))[::-1]
                assert_equal_batches(sample(uninterrupted.replay), sample(resumed.replay), order)
        assert [log.position() for log in resumed.logs[::-1]] == [log.position() for log in uninterrupted.logs]


def test_fewer_episodes_than_the_checkpoint_needs_are_refused(tmp_path):
    spec = ReplaySpec(4, 2, 50, "transition", True)
    runs = Runs(spec, [1], 1, tmp_path)
    runs.begin()
    for _ in range(40):
        runs.step()
    (state,) = runs.checkpoint()
    episodes = list(runs.logs[0].read(state["log"], 50))
    fresh = Runs(spec, [1], 1, tmp_path).replay
    with pytest.raises(UserError, match="the checkpoint needs"):
        fresh.load(0, state["replay"], episodes[1:])
    with pytest.raises(ValueError, match="not empty"):
        fresh.load(0, state["replay"], episodes)
