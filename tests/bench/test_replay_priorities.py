"""Prioritised draws against probabilities and weights worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.protocol import ReplaySpec
from bench.replay import Replay
from bench.replay_priorities import Priorities, SumTree

CPU = torch.device("cpu")


def test_the_tree_finds_where_the_running_sum_passes():
    rng = np.random.default_rng(0)
    weights = np.where(rng.random(37) < 0.3, 0.0, rng.random(37))
    tree = SumTree(37)
    assert tree.size == 64
    tree.set(np.arange(37), weights)
    assert tree.total == pytest.approx(weights.sum())
    mass = rng.random(500) * tree.total
    slow = [next(i for i in range(37) if weights[: i + 1].sum() > m) for m in mass]
    assert tree.find(mass).tolist() == slow


def test_the_tree_depends_on_its_weights_and_not_on_its_past():
    rng = np.random.default_rng(1)
    worn, fresh = SumTree(100), SumTree(100)
    for _ in range(200):
        places = rng.integers(100, size=7)
        worn.set(places, 10.0 ** rng.uniform(-6, 6, 7))
    fresh.set(np.arange(128), worn.weights.copy())
    assert np.array_equal(worn._nodes, fresh._nodes)


def test_of_a_place_that_occurs_twice_the_last_weight_counts():
    tree = SumTree(4)
    tree.set(np.array([1, 2, 1]), np.array([5.0, 1.0, 3.0]))
    assert tree.weights.tolist() == [0, 3, 1, 0]
    assert tree.total == 4


def test_rounding_never_leads_to_a_weight_of_zero():
    tree = SumTree(8)
    tree.set(np.array([0, 3, 5]), np.array([0.1, 0.2, 0.3]))
    beyond = np.array([tree.total, np.nextafter(tree.total, 9), 2 * tree.total])
    assert set(tree.find(beyond).tolist()) == {5}


def test_probabilities_and_weights_by_hand():
    """alpha 0.5: powers 1, 2, 3, 4 of priorities 1, 4, 9, 16; n = 4; beta 0.4."""
    priorities = Priorities(4, alpha=0.5, beta=0.4)
    priorities.add(0, 4)
    priorities.set(np.arange(4), np.array([1, 4, 9, 16], np.float32))
    number, weight = priorities.draw(np.random.default_rng(0), 100_000, first=0)
    assert (np.bincount(number) / 100_000).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.005)
    importance = [(4 * p) ** -0.4 for p in (0.1, 0.2, 0.3, 0.4)]
    expected = [w / max(importance) for w in importance]
    assert [float(weight[number == i][0]) for i in range(4)] == pytest.approx(expected)
    assert all(len(set(weight[number == i].tolist())) == 1 for i in range(4))


def test_the_largest_weight_of_the_batch_is_one_whatever_was_not_drawn():
    priorities = Priorities(4, alpha=1.0, beta=1.0)
    priorities.add(0, 3)
    priorities.set(np.arange(3), np.array([1e-9, 1.0, 3.0], np.float32))
    number, weight = priorities.draw(np.random.default_rng(0), 50, first=0)
    assert set(number.tolist()) == {1, 2}
    assert weight[number == 1].tolist() == pytest.approx([1.0] * int((number == 1).sum()))
    assert weight[number == 2].tolist() == pytest.approx([1 / 3] * int((number == 2).sum()))


def test_new_slices_have_the_largest_priority_of_those_that_are_kept():
    priorities = Priorities(100, alpha=1.0, beta=0.4)
    priorities.add(0, 3)
    assert priorities.powers(0, 3).tolist() == [1, 1, 1]
    priorities.set(np.array([0, 1]), np.array([9.0, 0.5], np.float32))
    priorities.add(3, 2)
    assert priorities.powers(0, 5).tolist() == [9, 0.5, 1, 9, 9]
    priorities.set(np.array([3, 4]), np.array([2.0, 3.0], np.float32))
    priorities.remove(0, 1)
    priorities.add(5, 1)
    assert priorities.powers(1, 5).tolist() == [0.5, 1, 2, 3, 3]


def test_a_priority_that_is_not_a_number_changes_nothing():
    priorities = Priorities(4, alpha=1.0, beta=0.4)
    priorities.add(0, 3)
    priorities.set(np.arange(3), np.array([2.0, np.nan, np.inf], np.float32))
    assert priorities.powers(0, 3).tolist() == [2, 1, 1]


class Filled:
    """A replay of one run with episodes of `length` transitions; every observation is a number that occurs once."""

    def __init__(self, capacity=40, length=8, batch_size=64, runs=1):
        spec = ReplaySpec(batch_size, 4, capacity, "prioritised", True, priority_alpha=1.0, priority_beta=0.5)
        self.replay = Replay(spec, list(range(1, runs + 1)), 1, (1,), np.float32, 1, CPU)
        self.length, self.runs, self.count = length, runs, 0

    def episode(self):
        shape = (self.runs, 1)
        for step in range(self.length + 1):
            obs = np.full((*shape, 1), self.count, np.float32)
            self.count += 1
            if step == 0:
                self.replay.begin(obs)
            else:
                self.replay.add(
                    obs, np.zeros((*shape, 1)), np.zeros(shape), np.zeros(shape), np.full(shape, step == self.length)
                )

    def sample(self, priority):
        batch = self.replay.sample()
        batch.priority = priority(batch.obs[:, 0, :, 0])
        self.replay.set_priorities(batch)
        return batch


def test_slices_come_by_their_priorities_through_evictions():
    """Priorities by first observation; the numbers of the slices wrap around the tree many times."""
    filled = Filled()

    def priority(first):
        return 1 + first % 9

    for _ in range(40):
        filled.episode()
        for _ in range(6):
            batch = filled.sample(priority)
            first, rest = batch.obs[0, :1, :, 0], batch.obs[0, :, :, 0] - batch.obs[0, :1, :, 0]
            assert (rest == torch.arange(4.0)[:, None]).all()
            assert set(first.flatten().int().tolist()) <= {
                9 * e + s for e in range(max(0, filled.count // 9 - 5), filled.count // 9) for s in range(6)
            }
    seen = torch.cat([filled.sample(priority).obs[0, 0, :, 0] for _ in range(400)]).int()
    values, counts = seen.unique(return_counts=True)
    expected = {9 * e + s: 1.0 + s for e in range(35, 40) for s in range(6)}
    assert set(values.tolist()) == expected.keys()
    frequencies = dict(zip(values.tolist(), (counts / len(seen)).tolist(), strict=True))
    assert frequencies == pytest.approx({k: v / sum(expected.values()) for k, v in expected.items()}, abs=0.006)


def test_weights_follow_the_priorities_of_the_batch():
    filled = Filled()
    filled.episode()
    while len(torch.unique(filled.sample(lambda first: 1 + first).obs[0, 0])) < 6:
        pass
    batch = filled.replay.sample()
    p = 1 + batch.obs[0, 0, :, 0]
    chance = p / torch.arange(1.0, 7.0).sum()
    expected = (6 * chance) ** -0.5
    torch.testing.assert_close(batch.weight[0], expected / expected.max())


def test_new_priorities_hold_from_the_next_draw_on_and_for_their_run_alone():
    filled = Filled(runs=2)
    filled.episode()
    batch = filled.replay.sample()
    batch.priority = torch.stack([torch.full((64,), 1e-6), torch.ones(64)])
    batch.priority[0, batch.start[0] == 5] = 1.0
    filled.replay.set_priorities(batch)
    drawn = filled.replay.sample().start
    assert drawn[0].unique().tolist() == [5]
    assert drawn[1].unique().tolist() == list(range(6))


def test_an_agent_that_sets_no_priorities_is_told():
    filled = Filled()
    filled.episode()
    batch = filled.replay.sample()
    with pytest.raises(ValueError, match=r"sets batch.priority in its update.*\(1, 64\).*it is None"):
        filled.replay.set_priorities(batch)
    batch.priority = torch.ones(1, 3)
    with pytest.raises(ValueError, match=r"it is \(1, 3\)"):
        filled.replay.set_priorities(batch)


def test_prioritised_draws_are_from_finished_episodes():
    with pytest.raises(ValueError, match="finished episodes only"):
        Replay(ReplaySpec(4, 2, 50, "prioritised", False), [1], 1, (1,), np.float32, 1, CPU)
