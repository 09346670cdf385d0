"""Slices that cross episodes, against plain lists of what each environment showed."""

from __future__ import annotations

from collections import Counter, deque

import numpy as np
import pytest
import torch

from agents.protocol import ReplaySpec
from bench.errors import UserError
from bench.replay import Replay

CPU = torch.device("cpu")


def spec(**changes):
    values = {"batch_size": 64, "length": 6, "capacity": 60, "draw": "stream", "finished_episodes_only": False}
    return ReplaySpec(**(values | changes))


class World:
    """Drives a replay of one run with short episodes; every observation is a number that occurs once."""

    def __init__(self, replay_spec, num_envs=2, seed=0):
        self.spec, self.num_envs = replay_spec, num_envs
        self.replay = Replay(replay_spec, [1], num_envs, (1,), np.float32, 1, CPU)
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.finished = deque()  # (env, entries) in the order of their end
        self.open = {}
        self.begin(np.ones((1, num_envs), bool))

    def observations(self):
        self.count += self.num_envs
        return np.arange(self.count - self.num_envs, self.count, dtype=np.float32).reshape(1, self.num_envs, 1)

    def begin(self, where):
        obs = self.observations()
        self.replay.begin(obs, where)
        for env in np.flatnonzero(where[0]):
            self.open[env] = [(obs[0, env, 0], True, 0.0, False)]

    def step(self, chance_of_end=0.3):
        obs = self.observations()
        terminated = self.rng.random((1, self.num_envs)) < chance_of_end / 2
        ended = terminated | (self.rng.random((1, self.num_envs)) < chance_of_end / 2)
        self.replay.add(obs, obs + 0.25, obs[..., 0] + 0.5, terminated, ended & ~terminated)
        while self.held() + self.num_envs > self.spec.capacity:
            self.finished.popleft()
        for env in range(self.num_envs):
            self.open[env].append((obs[0, env, 0], False, obs[0, env, 0] + 0.5, bool(terminated[0, env])))
        for env in np.flatnonzero(ended[0]):
            self.finished.append((env, self.open.pop(env)))
        self.begin(ended)

    def held(self):
        return sum(len(entries) - 1 for _, entries in self.finished) + sum(len(e) - 1 for e in self.open.values())

    def slices(self):
        found = []
        for env in range(self.num_envs):
            stream = [entry for e, entries in self.finished if e == env for entry in entries]
            if not self.spec.finished_episodes_only:
                stream += self.open.get(env, [])
            found += [tuple(stream[i : i + self.spec.length]) for i in range(len(stream) - self.spec.length + 1)]
        return found

    def draw(self):
        batch = self.replay.sample()
        assert batch.first.shape == (1, self.spec.length, self.spec.batch_size)
        assert batch.first.dtype == torch.bool
        went_on = ~batch.first[:, 1:]
        assert torch.equal(batch.action[..., 0], torch.where(went_on, batch.obs[:, 1:, :, 0] + 0.25, 0.0))
        assert torch.equal(batch.reward, torch.where(went_on, batch.obs[:, 1:, :, 0] + 0.5, 0.0))
        return [
            [
                (float(batch.obs[0, t, b, 0]), bool(batch.first[0, t, b]))
                + ((float(batch.reward[0, t - 1, b]), bool(batch.terminated[0, t - 1, b])) if t > 0 else ())
                for t in range(self.spec.length)
            ]
            for b in range(self.spec.batch_size)
        ]


def as_drawn(entries):
    return [entries[0][:2], *entries[1:]]


@pytest.mark.parametrize("finished_only", [True, False])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_slices_are_those_of_the_plain_lists_in_time_order(finished_only, num_envs):
    world = World(spec(finished_episodes_only=finished_only), num_envs)
    crossed = 0
    for _ in range(60):
        world.step()
        expected = [as_drawn(entries) for entries in world.slices()]
        assert world.replay.can_sample() == bool(expected)
        if expected:
            for drawn in world.draw():
                assert drawn in expected
                crossed += any(first for _, first, *_ in drawn[1:])
    assert crossed > 500  # episodes are shorter than a slice


def test_every_start_is_equally_likely():
    world = World(spec(batch_size=8000, length=4), num_envs=2, seed=3)
    for _ in range(60):
        world.step()
    expected = [entries[0][0] for entries in world.slices()]
    counts = Counter(int(drawn[0][0]) for drawn in world.draw())
    assert counts.keys() <= set(map(int, expected))
    mean = 8000 / len(expected)
    chi_square = sum((counts[int(start)] - mean) ** 2 / mean for start in expected)
    freedom = len(expected) - 1
    assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)


def test_other_draws_carry_no_first_mask():
    world = World(spec(draw="transition", length=2))
    world.step(chance_of_end=0.0)
    assert world.replay.sample().first is None


def test_too_few_entries_are_said():
    world = World(spec(length=4), num_envs=1)
    world.step(chance_of_end=0.0)
    with pytest.raises(UserError, match="no sequence of episodes has 3 transitions yet"):
        world.replay.sample()
