"""Replay against a plain list of episodes."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from agents.protocol import ReplaySpec, Sizes
from bench.errors import UserError
from bench.replay import Replay

CPU = torch.device("cpu")


def spec(**changes):
    values = {"batch_size": 64, "length": 3, "capacity": 60, "draw": "transition", "finished_episodes_only": True}
    return ReplaySpec(**(values | changes))


def make(replay_spec, seeds=(1, 2), num_envs=2, obs_shape=(3,), dtype=np.float32):
    return Replay(replay_spec, seeds, num_envs, obs_shape, dtype, 2, CPU)


@dataclass
class SlowReplay:
    """One run, as a list of finished episodes and one episode in progress for each environment."""

    spec: ReplaySpec
    finished: deque = field(default_factory=deque)
    open: dict = field(default_factory=dict)

    def make_room(self, count):
        def held():
            return sum(len(e) - 1 for e in [*self.finished, *self.open.values()])

        while held() + count > self.spec.capacity:
            self.finished.popleft()

    def slices(self):
        """A list of slices for each episode that can be drawn from."""
        episodes = list(self.finished)
        if not self.spec.finished_episodes_only:
            episodes += [self.open[env] for env in sorted(self.open)]
        length = self.spec.length
        found = [[tuple(e[i : i + length]) for i in range(len(e) - length + 1)] for e in episodes]
        return [slices for slices in found if slices]

    def probabilities(self):
        slices = self.slices()
        total = sum(map(len, slices))
        if self.spec.draw == "episode":
            return {s: 1 / len(slices) / len(episode) for episode in slices for s in episode}
        return {s: 1 / total for episode in slices for s in episode}


class World:
    """Drives a replay and its slow twins: every observation is a number that occurs once."""

    def __init__(self, replay, seed=0):
        self.replay = replay
        self.slow = [SlowReplay(replay.spec) for _ in range(replay.runs)]
        self.rng = np.random.default_rng(seed)
        self.count = 0
        self.begin(np.ones((replay.runs, replay.num_envs), bool))

    def entries(self):
        shape = (self.replay.runs, self.replay.num_envs)
        ids = np.arange(self.count, self.count + np.prod(shape)).reshape(shape)
        self.count += ids.size
        return ids

    def observe(self, ids):
        return np.stack([ids] * 3, axis=-1).astype(np.float32)

    def begin(self, where):
        ids = self.entries()
        self.replay.begin(self.observe(ids), where)
        for run, env in np.argwhere(where):
            self.slow[run].open[env] = [int(ids[run, env])]

    def step(self, chance_of_end=0.15):
        ids = self.entries()
        terminated = self.rng.random(ids.shape) < chance_of_end
        truncated = ~terminated & (self.rng.random(ids.shape) < chance_of_end)
        action = np.stack([ids + 0.25, -ids], axis=-1)
        self.replay.add(self.observe(ids), action, ids + 0.5, terminated, truncated)
        for run, slow in enumerate(self.slow):
            slow.make_room(self.replay.num_envs)
            for env in range(self.replay.num_envs):
                slow.open[env].append((int(ids[run, env]), bool(terminated[run, env])))
        for run, env in np.argwhere(terminated | truncated):
            self.slow[run].finished.append(self.slow[run].open.pop(env))
        self.begin(terminated | truncated)


def drawn_slices(replay):
    """For each run a list of slices as the slow replay has them, after checking that all tensors agree."""
    batch = replay.sample()
    length = replay.spec.length
    assert batch.obs.shape == (replay.runs, length, replay.spec.batch_size, *replay.obs_shape)
    assert batch.action.shape == (replay.runs, length - 1, replay.spec.batch_size, 2)
    ids = batch.obs[..., 0]
    assert torch.equal(batch.obs, ids[..., None].expand_as(batch.obs))
    assert torch.equal(batch.action, torch.stack([ids[:, 1:] + 0.25, -ids[:, 1:]], -1))
    assert torch.equal(batch.reward, ids[:, 1:] + 0.5)
    found = []
    for run in range(replay.runs):
        first = ids[run, 0].int().tolist()
        rest = [
            list(zip(i.int().tolist(), t.bool().tolist(), strict=True))
            for i, t in zip(ids[run, 1:], batch.terminated[run], strict=True)
        ]
        found.append(list(zip(first, *rest, strict=True)))
    return found


def numbers(entries):
    """Slices by observation number alone: entry 0 of a slice carries no `terminated`."""
    return tuple(entry if isinstance(entry, int) else entry[0] for entry in entries)


def with_flags(entries):
    return (numbers(entries)[0], *entries[1:])


@pytest.mark.parametrize("draw", ["episode", "transition"])
@pytest.mark.parametrize("finished_only", [True, False])
@pytest.mark.parametrize("length", [2, 4])
def test_draws_are_the_slices_of_the_slow_replay(draw, finished_only, length):
    world = World(make(spec(draw=draw, finished_episodes_only=finished_only, length=length)))
    for _ in range(120):
        world.step()
        if world.replay.can_sample():
            for slow, slices in zip(world.slow, drawn_slices(world.replay), strict=True):
                assert set(slices) <= {with_flags(s) for s in slow.probabilities()}
        else:
            assert not all(slow.slices() for slow in world.slow)
        for run, slow in enumerate(world.slow):
            assert world.replay.transitions(run) == sum(len(e) - 1 for e in [*slow.finished, *slow.open.values()])


@pytest.mark.parametrize("draw", ["episode", "transition"])
@pytest.mark.parametrize("finished_only", [True, False])
def test_every_slice_is_drawn_as_often_as_it_should(draw, finished_only):
    world = World(make(spec(draw=draw, finished_episodes_only=finished_only, batch_size=20_000, length=2)), seed=3)
    for _ in range(60):
        world.step()
    for slow, slices in zip(world.slow, drawn_slices(world.replay), strict=True):
        counts = Counter(map(numbers, slices))
        expected = {numbers(s): 20_000 * p for s, p in slow.probabilities().items()}
        assert counts.keys() <= expected.keys()
        chi_square = sum((counts[s] - e) ** 2 / e for s, e in expected.items())
        freedom = len(expected) - 1
        assert abs(chi_square - freedom) < 4.5 * np.sqrt(2 * freedom)


def test_a_run_draws_the_same_alone_and_in_a_fleet():
    alone = make(spec(finished_episodes_only=False), seeds=(6,))
    alone.begin(np.full((1, 2, 3), 1.0))
    fleet = make(spec(finished_episodes_only=False), seeds=(5, 6, 7))
    fleet.begin(np.full((3, 2, 3), 1.0))
    rng = np.random.default_rng(0)
    for step in range(50):
        obs, action, reward = rng.normal(size=(3, 2, 3)), rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2))
        ended = np.full((3, 2), step % 7 == 6)
        ended[0] = step % 5 == 4  # run 0 ends at other times and must not matter to run 1
        for replay, part in ((fleet, slice(None)), (alone, slice(1, 2))):
            replay.add(obs[part], action[part], reward[part], np.zeros_like(ended[part]), ended[part])
            replay.begin(obs[part], ended[part])
        if step > 10:
            batch, single = fleet.sample(), alone.sample()
            for name in ("obs", "action", "reward", "terminated"):
                assert torch.equal(getattr(batch, name)[1:2], getattr(single, name))


def test_finished_episodes_are_handed_out_once():
    world = World(make(spec(capacity=1000)))
    for _ in range(40):
        world.step()
    handed = world.replay.pop_finished()
    assert world.replay.pop_finished() == []
    for run, slow in enumerate(world.slow):
        mine = [episode for r, episode in handed if r == run]
        assert [episode.transitions + 1 for episode in mine] == [len(e) for e in slow.finished]
        for episode, entries in zip(mine, slow.finished, strict=True):
            assert episode.obs[:, 0].tolist() == list(numbers(entries))
            assert episode.reward.tolist() == [i + 0.5 for i in numbers(entries)[1:]]
            assert episode.action[:, 1].tolist() == [-i for i in numbers(entries)[1:]]
            assert episode.terminated.tolist() == [float(flag) for _, flag in entries[1:]]


def test_memory_grows_with_what_is_stored_and_stays_at_the_capacity():
    replay = make(spec(capacity=100_000), seeds=(1,), num_envs=1)
    assert replay.bytes_per_entry == 4 * (3 + 2 + 2)
    world = World(replay)
    for _ in range(100):
        world.step(chance_of_end=0.01)
    assert replay.allocated_bytes <= 1024 * replay.bytes_per_entry

    replay = make(spec(capacity=500), seeds=(1, 2), num_envs=2)
    world = World(replay)
    for _ in range(1000):
        world.step(chance_of_end=0.02)
    # 4 % for the resets of episodes of about 25 steps, a little for the step by which memory grows.
    assert replay.allocated_bytes <= 1.15 * 2 * 500 * replay.bytes_per_entry

    # What a plan expects of a full replay is what a full one takes, where episodes are not very short.
    replay = make(spec(capacity=1000), seeds=(1, 2), num_envs=1)
    world = World(replay)
    for _ in range(1250):
        world.step(chance_of_end=0.005)
    assert replay.full_bytes(agent_steps=10**6) == replay.allocated_bytes
    assert replay.full_bytes(agent_steps=500) == 2 * 500 * 65 // 64 * replay.bytes_per_entry


@pytest.mark.parametrize(
    ("obs_shape", "dtype", "action_size", "frame_stack", "expected"),
    [
        ((223,), np.float32, 38, 1, 1_068_437_500),  # dog
        ((24,), np.float32, 6, 1, 130_000_000),  # walker
        ((9, 64, 64), np.uint8, 6, 3, 12_512_500_000),  # images: each frame once
    ],
)
def test_memory_of_a_million_transitions(obs_shape, dtype, action_size, frame_stack, expected):
    """The figures of docs/speed.md: an entry more for each episode of 64 steps, 4 bytes a number and 1 a pixel."""
    replay = Replay(spec(capacity=10**6), [1], 1, obs_shape, dtype, action_size, CPU, frame_stack)
    assert replay.full_bytes(agent_steps=10**6) == expected


def test_images_stay_bytes():
    replay = make(spec(length=2, finished_episodes_only=False), obs_shape=(9, 4, 4), dtype=np.uint8)
    replay.begin(np.full((2, 2, 9, 4, 4), 7, np.uint8))
    replay.add(np.full((2, 2, 9, 4, 4), 255, np.uint8), np.zeros((2, 2, 2)), *np.zeros((3, 2, 2)))
    batch = replay.sample()
    assert batch.obs.dtype == torch.uint8
    assert batch.obs[:, 0].unique().tolist() == [7]
    assert batch.obs[:, 1].unique().tolist() == [255]


def test_where_leaves_the_other_environments_alone():
    replay = make(spec(length=2, finished_episodes_only=False), seeds=(1,), num_envs=2)
    replay.begin(np.zeros((1, 2, 3)))
    only_second = np.array([[False, True]])
    replay.add(np.ones((1, 2, 3)), np.ones((1, 2, 2)), np.ones((1, 2)), *np.zeros((2, 1, 2)), where=only_second)
    assert replay.transitions(0) == 1
    assert replay.in_progress(0, 0).transitions == 0
    assert replay.in_progress(0, 1).reward.tolist() == [1.0]


def test_what_cannot_be_done_is_said():
    replay = make(spec(length=3, capacity=8), seeds=(1,), num_envs=1)
    step = (np.zeros((1, 1, 3)), np.zeros((1, 1, 2)), *np.zeros((3, 1, 1)))
    with pytest.raises(ValueError, match="no episode has begun"):
        replay.add(*step)
    replay.begin(np.zeros((1, 1, 3)))
    with pytest.raises(ValueError, match="in progress"):
        replay.begin(np.zeros((1, 1, 3)))
    assert not replay.can_sample()
    with pytest.raises(UserError, match="no finished episode has 2 transitions"):
        replay.sample()
    for _ in range(8):
        replay.add(*step)
    with pytest.raises(UserError, match="raise the agent's replay capacity"):
        replay.add(*step)


def test_padded_runs_are_given_out_and_taken_in_in_their_own_sizes():
    """In memory and in batches they are padded with zeros; a run's draws are those that it has alone."""
    sizes, rng = (Sizes(3, 1), Sizes(2, 2)), np.random.default_rng(0)
    replay_spec = spec(batch_size=16)
    fleet = Replay(replay_spec, (1, 2), 1, (3,), np.float32, 2, CPU, sizes=sizes)
    alone = [Replay(replay_spec, (1 + run,), 1, (o.obs,), np.float32, o.action, CPU) for run, o in enumerate(sizes)]
    obs, action = rng.normal(size=(9, 2, 1, 3)).astype(np.float32), rng.normal(size=(8, 2, 1, 2)).astype(np.float32)
    for run, own in enumerate(sizes):
        obs[:, run, :, own.obs :] = action[:, run, :, own.action :] = 0
    fleet.begin(obs[0])
    for run, own in enumerate(sizes):
        alone[run].begin(obs[0, run : run + 1, :, : own.obs])
    for t in range(8):
        reward, end = np.full((2, 1), t), np.full((2, 1), t == 7)
        fleet.add(obs[t + 1], action[t], reward, end, end)
        for run, own in enumerate(sizes):
            mine = slice(run, run + 1)
            taken = action[t, mine, :, : own.action]
            alone[run].add(obs[t + 1, mine, :, : own.obs], taken, reward[mine], end[mine], end[mine])
    resumed = Replay(replay_spec, (1, 2), 1, (3,), np.float32, 2, CPU, sizes=sizes)
    for run, episode in fleet.pop_finished():
        ((_, own_episode),) = alone[run].pop_finished()
        for name, value in vars(own_episode).items():
            assert np.array_equal(getattr(episode, name), value), name
        resumed.load(run, alone[run].state_dict(0), [own_episode])
    singles = [single.sample() for single in alone]
    for batch in (fleet.sample(), resumed.sample()):
        for run, own in enumerate(sizes):
            assert torch.equal(batch.obs[run, ..., : own.obs], singles[run].obs[0])
            assert torch.equal(batch.action[run, ..., : own.action], singles[run].action[0])
            assert (batch.obs[run, ..., own.obs :] == 0).all()
            assert (batch.action[run, ..., own.action :] == 0).all()
