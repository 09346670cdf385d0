import math

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from agents.distributions import TwoHot, gaussian_log_prob, squash_log_det, symexp, symlog

CPU = torch.device("cpu")
LARGEST = math.expm1(10)
SCALARS = [0.0, 1e-6, -1e-6, 0.1, -0.7, 1.0, 2.5, -37.0, 999.0, LARGEST, -LARGEST, 1e6, -1e6, math.expm1(0.2)]


@pytest.fixture
def two_hot():
    return TwoHot(101, -10.0, 10.0, CPU)


def mass(two_hot, x):
    index, weight = two_hot.encode(x)
    out = torch.zeros(101)
    out[index] += 1 - weight
    out[index + 1] += weight
    return out


@pytest.mark.parametrize("x", SCALARS)
def test_symlog_and_its_inverse(x):
    y = float(symlog(torch.tensor(x)))
    assert y == pytest.approx(math.copysign(math.log(1 + abs(x)), x), rel=1e-5)
    assert float(symexp(torch.tensor(y))) == pytest.approx(x, rel=1e-4)


@pytest.mark.parametrize("x", SCALARS)
def test_two_hot_is_mass_on_the_two_nearest_bins(two_hot, x):
    got = mass(two_hot, torch.tensor(x))
    y = min(max(math.copysign(math.log1p(abs(x)), x), -10), 10)
    expected = torch.tensor([max(0.0, 1 - abs(y - (-10 + 0.2 * i)) / 0.2) for i in range(101)])
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)
    assert float(got.sum()) == pytest.approx(1)


def test_two_hot_edges(two_hot):
    assert mass(two_hot, torch.tensor(1e9))[100] == 1
    assert mass(two_hot, torch.tensor(-1e9))[0] == 1
    assert mass(two_hot, torch.tensor(0.0))[50] == pytest.approx(1, abs=1e-4)
    index, weight = two_hot.encode(torch.tensor([float("nan"), 1.0]))
    assert 0 <= int(index[0]) <= 99  # a valid index, so that another run's loss can be computed
    assert weight.isnan().tolist() == [True, False]


@pytest.mark.parametrize("x", [x for x in SCALARS if abs(x) <= LARGEST])
def test_decode_inverts_encode(two_hot, x):
    logits = mass(two_hot, torch.tensor(x)).clamp_min(1e-30).log()
    assert float(two_hot.decode(logits)) == pytest.approx(x, rel=2e-4, abs=1e-5)


def test_decode_takes_the_mean_in_symlog_space(two_hot):
    logits = torch.full((101,), -1e9)
    logits[50] = logits[60] = 0.0  # symlog values 0 and 2
    assert float(two_hot.decode(logits)) == pytest.approx(math.expm1(1.0), rel=1e-5)


def test_cross_entropy_against_the_whole_distribution(two_hot):
    logits = torch.randn(3, len(SCALARS), 101)
    loss = two_hot.cross_entropy(logits, torch.tensor(SCALARS))  # the scalars serve every row of logits
    assert loss.shape == (3, len(SCALARS))
    for i, x in enumerate(SCALARS):
        for row in range(3):
            expected = -(mass(two_hot, torch.tensor(x)) * logits[row, i].log_softmax(-1)).sum()
            assert float(loss[row, i]) == pytest.approx(float(expected), rel=1e-5)


def test_densities_against_torch_distributions():
    mean, log_std, eps = torch.randn(4, 3), torch.randn(4, 3) * 0.3 - 1, torch.randn(4, 3)
    u = mean + eps * log_std.exp()
    normal = Normal(mean, log_std.exp())
    torch.testing.assert_close(gaussian_log_prob(eps, log_std), normal.log_prob(u).sum(-1), rtol=1e-4, atol=1e-4)
    squashed = TransformedDistribution(normal, TanhTransform()).log_prob(u.tanh()).sum(-1)
    ours = gaussian_log_prob(eps, log_std) - squash_log_det(u.tanh())
    torch.testing.assert_close(ours, squashed, rtol=1e-2, atol=1e-2)  # 1e-6 inside the logarithm
