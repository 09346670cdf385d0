"""Replay of stacked pictures: each is kept once, and batches are those of a replay that keeps every stack whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.protocol import AgentSpec, ReplaySpec
from bench.replay import Replay
from bench.replay_log import ReplayLog

CPU = torch.device("cpu")
SIZE = 4


def replay(stack, kept, **changes):
    """A replay of two runs with two environments, with `kept` pictures told apart in an observation of `stack`."""
    values = {"batch_size": 32, "length": 3, "capacity": 70, "draw": "transition", "finished_episodes_only": False}
    shape = (3 * stack, SIZE, SIZE)
    return Replay(ReplaySpec(**(values | changes)), (1, 2), 2, shape, np.uint8, 2, CPU, frame_stack=kept)


class Cameras:
    """Two runs with two environments, whose episodes last 1 to 9 agent steps and show noise."""

    def __init__(self, stack, replays):
        self.stack, self.replays, self.rng = stack, replays, np.random.default_rng(0)
        self.obs = np.zeros((2, 2, 3 * stack, SIZE, SIZE), np.uint8)
        self.left = np.zeros((2, 2), int)
        self.begin(np.ones((2, 2), bool))

    def begin(self, where):
        self.obs[where] = np.tile(self.frames(), (1, 1, self.stack, 1, 1))[where]
        self.left[where] = self.rng.integers(1, 10, (2, 2))[where]
        for one in self.replays:
            one.begin(self.obs, where)

    def frames(self):
        return self.rng.integers(0, 256, (2, 2, 3, SIZE, SIZE), np.uint8)

    def step(self):
        self.obs = np.concatenate([self.obs[:, :, 3:], self.frames()], axis=2)
        action, reward = self.rng.normal(size=(2, 2, 2)), self.rng.normal(size=(2, 2))
        self.left -= 1
        ended, by_itself = self.left == 0, self.rng.random((2, 2)) < 0.5
        for one in self.replays:
            one.add(self.obs, action, reward, ended & by_itself, ended & ~by_itself)
        self.begin(ended)


@pytest.mark.parametrize("draw", ["episode", "transition", "stream"])
@pytest.mark.parametrize("finished_only", [True, False])
@pytest.mark.parametrize(("stack", "length"), [(3, 2), (3, 4), (2, 3), (1, 3)])
def test_batches_are_those_of_whole_stacks(draw, finished_only, stack, length):
    options = {"draw": draw, "finished_episodes_only": finished_only, "length": length}
    frames, whole = replay(stack, stack, **options), replay(stack, 1, **options)
    cameras, drawn = Cameras(stack, [frames, whole]), 0
    for _ in range(90):  # the capacity is reached after 35
        cameras.step()
        assert frames.can_sample() == whole.can_sample()
        if frames.can_sample():
            batch, plain = frames.sample(), whole.sample()
            assert batch.obs.shape == (2, length, 32, 3 * stack, SIZE, SIZE)
            assert batch.obs.dtype == torch.uint8
            for name in ("obs", "action", "reward", "terminated"):
                assert torch.equal(getattr(batch, name), getattr(plain, name))
            assert (batch.first is None) == (draw != "stream")
            assert batch.first is None or torch.equal(batch.first, plain.first)
            drawn += 1
    assert drawn > 60


def test_the_log_and_a_refilled_replay_hold_each_picture_once(tmp_path):
    frames, whole = replay(3, 3), replay(3, 1)
    cameras = Cameras(3, [frames, whole])
    logs = [ReplayLog(tmp_path / str(run)) for run in range(2)]
    for _ in range(60):
        cameras.step()
        for run, episode in frames.pop_finished():
            logs[run].append([episode])
    stored = sum(path.stat().st_size for path in tmp_path.glob("0/*"))
    episodes = list(logs[0].read(logs[0].position(), 10_000))
    transitions = sum(episode.transitions for episode in episodes)
    per_entry = 3 * SIZE * SIZE + 4 * 4  # a picture; action, reward and end
    assert stored <= per_entry * (transitions + len(episodes)) + 200 + 20 * len(episodes)

    refilled = replay(3, 3, finished_episodes_only=True)
    for run, log in enumerate(logs):
        refilled.load(run, frames.state_dict(run), log.read(log.position(), 70))
    plain = replay(3, 1, finished_episodes_only=True)
    finished = whole.pop_finished()
    for run in range(2):
        plain.load(run, whole.state_dict(run), _last([e for r, e in finished if r == run], 70))
    for _ in range(5):
        assert torch.equal(refilled.sample().obs, plain.sample().obs)


def _last(episodes, transitions):
    """The last episodes that together hold at most so many transitions, oldest first."""
    while sum(episode.transitions for episode in episodes) > transitions:
        episodes = episodes[1:]
    return episodes


def test_bytes_of_a_transition():
    """At the paper's size: one picture of 64 x 64 x 3 bytes, not three, beside actions, reward and end."""
    spec = AgentSpec((9, 64, 64), "rgb", 6, 500, 1000, frame_stack=3)
    one = Replay.of_agent(ReplaySpec(256, 2, 1000, "transition", False), spec, [1], CPU)
    assert one.bytes_per_entry == 64 * 64 * 3 + 4 * (6 + 2)


def test_an_episode_that_does_not_begin_with_one_picture_is_refused():
    one = replay(3, 3)
    obs = np.zeros((2, 2, 9, SIZE, SIZE), np.uint8)
    obs[1, 0, 0] = 1
    with pytest.raises(ValueError, match="begins with other than one picture 3 times"):
        one.begin(obs)
