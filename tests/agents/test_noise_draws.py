import pytest
import torch

from agents.noise import Noise

CPU = torch.device("cpu")
DRAWS = {
    "gumbel": lambda n: n.gumbel(4, 5),
    "integers": lambda n: n.integers(9, 4, 5),
    "choose": lambda n: n.choose(2, 5),
    "dropout_mask": lambda n: n.dropout_mask(0.3, 2, 700),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_a_run_draws_the_same_in_any_fleet(kind):
    fleet = Noise([4, 5, 6], "learn", CPU)
    first, second = DRAWS[kind](fleet), DRAWS[kind](fleet)
    assert not torch.equal(first, second)
    for run, seed in enumerate((4, 5, 6)):
        alone = Noise([seed], "learn", CPU)
        assert torch.equal(DRAWS[kind](alone)[0], first[run])
        assert torch.equal(DRAWS[kind](alone)[0], second[run])


def test_pairs_are_distinct_and_equally_likely():
    noise = Noise([0], "learn", CPU)
    counts: dict[frozenset[int], int] = {}
    for _ in range(3000):
        pair = frozenset(noise.choose(2, 4)[0].tolist())
        assert len(pair) == 2
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 6
    assert all(400 < count < 600 for count in counts.values())  # 500 expected, standard deviation 20


def test_gumbel_max_draws_by_weight():
    weight = torch.tensor([0.5, 0.3, 0.2, 0.0])
    picks = (weight.log() + Noise([1], "explore", CPU).gumbel(20_000, 4)[0]).argmax(-1)
    frequency = torch.bincount(picks, minlength=4) / 20_000
    torch.testing.assert_close(frequency, weight, atol=0.02, rtol=0)
    assert frequency[3] == 0


def test_dropout_mask_keeps_the_mean():
    mask = Noise([1, 2], "learn", CPU).dropout_mask(0.2, 50_000)
    assert set(mask.unique().tolist()) == {0.0, 1.25}
    torch.testing.assert_close(mask.mean(1), torch.ones(2), atol=0.02, rtol=0)


@pytest.mark.parametrize("p", [0.01, 0.3])
def test_every_unit_is_dropped_as_often_and_by_itself(p):
    """Frequencies at the ends and over the middle, and that a neighbour's fate says nothing."""
    draws = torch.stack([Noise([seed], "learn", CPU).dropout_mask(p, 50)[0] == 0 for seed in range(4000)]).double()
    spread = (p * (1 - p) / 4000) ** 0.5
    assert (draws.mean(0) - p).abs().max() < 4.5 * spread
    together = (draws[:, 1:] * draws[:, :-1]).mean()
    assert abs(float(together) - p * p) < 5 * (p * p / (4000 * 49)) ** 0.5
    assert abs(float(draws.sum(1).var()) / (50 * p * (1 - p)) - 1) < 0.15  # binomial


def test_integers_take_every_value_equally_often():
    counts = Noise([0], "learn", CPU).integers(9, 9000)[0].bincount()
    assert len(counts) == 9
    assert counts.min() > 880  # 1000 expected, standard deviation 30
    assert counts.max() < 1120
