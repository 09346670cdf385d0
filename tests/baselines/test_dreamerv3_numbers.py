"""DreamerV3's returns, distributions, optimiser and layers against slow, obvious versions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from dreamerv3_cases import CPU, GENERATIONS, agent, assert_close, hyperparameters
from torch import distributions as D
from torch import nn

from agents.distributions import TwoHot, symexp, symlog
from agents.protocol import AgentSpec
from baselines.dreamerv3 import latent
from baselines.dreamerv3.behaviour import Behaviour
from baselines.dreamerv3.codec import ImageDecoder, ImageEncoder
from baselines.dreamerv3.heads import Actor, SymexpTwoHot, gaussian_entropy
from baselines.dreamerv3.hyperparameters import Hyperparameters
from baselines.dreamerv3.laprop import LaProp
from baselines.dreamerv3.layers import BlockLinear, Dense, Head, Output, RMSNorm, initialise
from baselines.dreamerv3.returns import ReturnScale, lambda_returns
from baselines.dreamerv3.rssm import State, gated_update
from baselines.dreamerv3.world_model import WorldModel

# Returns


def test_lambda_returns_by_recursion():
    torch.manual_seed(0)
    runs, horizon, starts = 2, 5, 3
    reward, value = torch.randn(2, runs, horizon, starts).unbind()
    discount = torch.rand(runs, horizon, starts)
    mix = torch.rand(runs, horizon, starts)
    last = torch.randn(runs, starts)

    def of(run, k, start, mixes):
        if k == horizon:
            return float(last[run, start])
        m = float(mixes[run, k, start])
        after = (1 - m) * float(value[run, k, start]) + m * of(run, k + 1, start, mixes)
        return float(reward[run, k, start]) + float(discount[run, k, start]) * after

    for mixes, given in ((mix, mix), (torch.full_like(mix, 0.95), 0.95)):
        found = lambda_returns(reward, discount, value, last, given)
        for run, k, start in itertools.product(range(runs), range(horizon), range(starts)):
            assert float(found[run, k, start]) == pytest.approx(of(run, k, start, mixes), rel=1e-5, abs=1e-6)


def test_return_scale_follows_the_percentiles_of_each_run_from_zero():
    scale = ReturnScale(2, 0.01, CPU)
    rng = np.random.default_rng(0)
    ends = np.zeros((2, 2))
    for number in range(200):
        returns = rng.normal(size=(2, 15, 40)) * [[[1.0]], [[50.0]]] + number
        value = scale.update(torch.from_numpy(returns).float())
        ends = 0.99 * ends + 0.01 * np.percentile(returns.reshape(2, -1), [5, 95], axis=1).T
        assert value.numpy() == pytest.approx(np.maximum(1, ends[:, 1] - ends[:, 0]), rel=1e-4)
    assert float(value[0]) > 1
    assert float(ReturnScale(1, 0.01, CPU).update(torch.randn(1, 100) * 1e-3)) == 1.0  # small returns stay small


# Categorical latents


def test_divergence_by_enumeration_of_all_joint_states():
    torch.manual_seed(0)
    p, q = (latent.unimix(3 * torch.randn(4, 6), 2, 0.01).double() for _ in range(2))  # 3 variables of 2 classes
    for b in range(4):
        expected = 0.0
        for joint in itertools.product(range(2), repeat=3):
            of_p = math.prod(float(p[b, s, c]) for s, c in enumerate(joint))
            of_q = math.prod(float(q[b, s, c]) for s, c in enumerate(joint))
            expected += of_p * math.log(of_p / of_q)
        assert float(latent.kl_divergence(p, q)[b]) == pytest.approx(expected)


def test_uniform_share_is_mixed_into_the_softmax():
    logits = torch.randn(5, 12)
    expected = 0.99 * logits.view(5, 3, 4).softmax(-1) + 0.01 / 4
    assert_close(latent.unimix(logits, 4, 0.01), expected)
    assert latent.unimix(torch.tensor([[100.0, -100.0]]), 2, 0.01).min() == pytest.approx(0.005)


def test_samples_are_one_hot_as_likely_as_they_should_be_and_pass_the_gradient_on():
    torch.manual_seed(0)
    probs = torch.rand(3, 4).softmax(-1).requires_grad_()
    drawn = latent.sample(probs.expand(40_000, 3, 4), torch.rand(40_000, 3)).view(-1, 3, 4)
    assert torch.equal(drawn.sum(-1), torch.ones(40_000, 3))
    assert_close(drawn.mean(0), probs, rtol=0, atol=0.01)
    weight = torch.randn(12)
    latent.sample(probs, torch.rand(3)).mul(weight).sum().backward()
    assert_close(probs.grad, weight.view(3, 4))
    assert torch.equal(latent.sample(probs, torch.ones(3)).view(3, 4)[:, -1], torch.ones(3))  # rounding of the sum
    assert latent.mode(probs).view(3, 4).argmax(-1).tolist() == probs.argmax(-1).tolist()


# Two-hot


def slow_two_hot(bins, x):
    """Mass on the neighbouring bins of the scalar x, linear in its distance."""
    target = [0.0] * len(bins)
    x = min(max(x, bins[0]), bins[-1])
    low = max(i for i in range(len(bins) - 1) if bins[i] <= x)
    weight = (x - bins[low]) / (bins[low + 1] - bins[low])
    target[low], target[low + 1] = 1 - weight, weight
    return target


@pytest.mark.parametrize("generation", GENERATIONS)
def test_two_hot_cross_entropy_and_mean(generation):
    torch.manual_seed(0)
    x = torch.tensor([0.0, 1.0, -0.1, 0.17, 25.0, -3e3, 1e12, -1e12])
    logits = torch.randn(len(x), 255)
    if generation == 2023:
        two_hot, bins = TwoHot(255, -20, 20, CPU), torch.linspace(-20, 20, 255)
        targets = [slow_two_hot(bins.tolist(), float(symlog(value))) for value in x]
        means = symexp((logits.softmax(-1) * bins).sum(-1))
    else:
        two_hot = SymexpTwoHot(255, CPU)
        half = torch.linspace(-20, 0, 128)
        bins = torch.cat([symexp(half), -symexp(half[:-1]).flip(0)]).double()
        targets = [slow_two_hot(bins.tolist(), float(value)) for value in x]
        means = (logits.double().softmax(-1) * bins).sum(-1).float()
        assert float(bins[-1]) == pytest.approx(math.exp(20) - 1)
        assert float(bins[128]) == pytest.approx(0.1706, abs=1e-4)
    expected = -(torch.tensor(targets) * logits.log_softmax(-1)).sum(-1)
    assert_close(two_hot.cross_entropy(logits, x), expected, rtol=1e-4, atol=1e-4)
    assert_close(two_hot.decode(logits), means, rtol=1e-3, atol=1e-3)


def test_equal_logits_of_2024_are_exactly_zero():
    assert SymexpTwoHot(255, CPU).decode(torch.full((3, 255), 0.7)).tolist() == [0.0] * 3


@pytest.mark.parametrize("generation", GENERATIONS)
def test_fresh_heads_predict_nothing_and_the_policy_is_wide(generation):
    fleet = agent(generation, bins=255)
    features = torch.randn(3, 7, fleet.hp.deter + fleet.hp.stoch * fleet.hp.classes)
    assert fleet.model.reward(features).abs().max() < (1e-6 if generation == 2024 else 1e-4)
    assert fleet.behaviour.value(features).abs().max() < (1e-6 if generation == 2024 else 1e-4)
    cross_entropy = fleet.behaviour.critic_losses(features, torch.randn(3, 7))
    assert_close(cross_entropy, torch.full((3, 7), 2 * math.log(255)))
    _, std = fleet.behaviour.actor(torch.zeros_like(features))
    assert_close(std, torch.full_like(std, 0.8927), atol=1e-4)


# Policy


def test_policy_is_a_normal_around_a_tanh_mean():
    actor = Actor(hyperparameters(2023), 2, 3)
    nn.init.normal_(actor.mean.weight)
    nn.init.normal_(actor.std.weight)
    features = torch.randn(2, 4, 16 + 12)
    x = actor.trunk(features)
    mean, std = actor(features)
    assert_close(mean, torch.tanh(x @ actor.mean.weight))
    assert_close(std, 0.9 / (1 + torch.exp(-(x @ actor.std.weight) - 2)) + 0.1)
    assert_close(gaussian_entropy(std), D.Normal(mean, std).entropy().sum(-1))


# Layers


def test_recurrent_update_is_slow_at_first():
    zeros = torch.zeros(1, 1, 4)
    deter = torch.ones(1, 1, 4)
    assert_close(gated_update(zeros, zeros, zeros, deter), deter * (1 - 0.2689), atol=1e-4)
    reset, candidate, update = torch.randn(3, 1, 1, 4).unbind()
    share = torch.sigmoid(update - 1)
    expected = share * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - share) * deter
    assert_close(gated_update(reset, candidate, update, deter), expected)


def test_dense_layers_of_both_generations():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    old, new = Dense(2023, 2, 3, 8), Dense(2024, 2, 3, 8)
    for layer in (old, new):
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    assert old.linear.bias is None
    for run in range(2):
        y = x[run] @ old.linear.weight[run]
        normed = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()
        assert_close(old(x)[run], nn.functional.silu(normed * old.norm.weight[run] + old.norm.bias[run]))
        y = x[run] @ new.linear.weight[run] + new.linear.bias[run]
        normed = y / (y.square().mean(-1, keepdim=True) + 1e-4).sqrt()
        assert_close(new(x)[run], nn.functional.silu(normed * new.norm.weight[run]))


def test_blocks_do_not_see_each_other():
    layer = BlockLinear(2, 3, 4, 5)
    nn.init.normal_(layer.linear.weight)
    nn.init.normal_(layer.linear.bias)
    x = torch.randn(2, 6, 3, 4)
    out = layer(x)
    for run, block in itertools.product(range(2), range(3)):
        member = 3 * run + block
        expected = x[run, :, block] @ layer.linear.weight[member] + layer.linear.bias[member]
        assert_close(out[run, :, block], expected)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_initial_weights_have_the_variance_of_their_generation(generation):
    network = nn.ModuleDict(
        {"head": Head(generation, 2, 60, [90], 120, scale=0.5), "blocks": BlockLinear(2, 4, 30, 100)}
    )
    initialise(network, generation, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    hidden, output = network["head"].trunk.layers[0].linear.weight, network["head"].output.weight
    blocks = network["blocks"].linear.weight
    if generation == 2023:
        assert hidden.var(correction=0).item() == pytest.approx(2 / (60 + 90), rel=0.05)
        assert output.var().item() == pytest.approx(0.5 * 2 / (90 + 120), rel=0.05)
        assert output.abs().max() <= math.sqrt(3 * 0.5 * 2 / (90 + 120))
    else:
        assert hidden.std().item() == pytest.approx(1 / math.sqrt(60), rel=0.03)
        assert output.std().item() == pytest.approx(0.5 / math.sqrt(90), rel=0.03)
        assert blocks.std().item() == pytest.approx(1 / math.sqrt(4 * 30), rel=0.03)
        assert hidden.abs().max() <= 2 / 0.87963 / math.sqrt(60) + 1e-6
    assert not torch.equal(hidden[0], hidden[1])


@pytest.mark.parametrize(
    ("generation", "size", "of_states", "of_pictures"),
    [
        (2023, "small", 18_708_003, 17_926_030),
        (2023, "medium", 28.5e6, 36.9e6),
        (2023, "large", 52.2e6, 76.8e6),
        (2023, "xlarge", 127.6e6, 200.7e6),
        (2024, "1M", 640_867, 686_846),
        (2024, "12M", 9_738_019, 10_494_158),
        (2024, "25M", 21.8e6, 23.5e6),
        (2024, "50M", 38.6e6, 41.7e6),
        (2024, "100M", 86.6e6, 93.5e6),
        (2024, "200M", 153.8e6, 165.9e6),
        (2024, "400M", 345.5e6, 372.9e6),
    ],
)
def test_sizes_are_those_of_the_authors(generation, size, of_states, of_pictures):
    """Trainable parameters of walker (24 observations, 6 actions), without the slow critic."""
    hp = Hyperparameters(generation=generation, size=size)
    for kind, shape, expected in (("state", (24,), of_states), ("rgb", (3, 64, 64), of_pictures)):
        meta = torch.device("meta")
        with meta:
            model = WorldModel(AgentSpec(shape, kind, 6, 500, 500_000), hp, 1, meta)
            behaviour = Behaviour(hp, 1, 6, meta)
        parts = (model, behaviour.actor, behaviour.critic)
        count = sum(parameter.numel() for part in parts for parameter in part.parameters())
        assert count == pytest.approx(expected, rel=0 if isinstance(expected, int) else 0.002)


# Optimiser


def test_laprop_with_adaptive_clipping_by_hand():
    torch.manual_seed(0)
    runs, lr = 2, 0.5
    parameter = nn.Parameter(torch.randn(runs * 2, 3))  # two members a run
    start = parameter.detach().clone().view(runs, -1)
    optimizer = LaProp([{"params": [parameter], "lr": lr}], lr, runs)
    expected = [row.double() for row in start]
    square = [torch.zeros(6, dtype=torch.double) for _ in range(runs)]
    moment = [torch.zeros(6, dtype=torch.double) for _ in range(runs)]
    for t in range(1, 6):
        grad = torch.randn(runs * 2, 3) * torch.tensor([[0.01], [0.01], [10.0], [10.0]])
        parameter.grad = grad.clone()
        optimizer.step()
        for run in range(runs):
            g, p = grad.view(runs, -1)[run].double(), expected[run]
            g = g / max(1.0, float(g.norm()) / (0.3 * max(1e-3, float(p.norm()))))
            square[run] = 0.999 * square[run] + 0.001 * g**2
            q = g / ((square[run] / (1 - 0.999**t)).sqrt() + 1e-20)
            moment[run] = 0.9 * moment[run] + 0.1 * q
            expected[run] = p - lr * (t - 1) / 1000 * moment[run] / (1 - 0.9**t)
            assert_close(parameter.view(runs, -1)[run], expected[run].float())
    assert not torch.equal(parameter.detach().view(runs, -1), start)


def test_laprop_takes_no_closure():
    with pytest.raises(ValueError, match="no closure"):
        LaProp([nn.Parameter(torch.zeros(1, 1))], 0.1, 1).step(lambda: 0.0)


def test_rms_norm_has_no_shift():
    assert [name for name, _ in RMSNorm(1, 4).named_parameters()] == ["weight"]
    assert Output(1, 2, 3).scale == 1.0


# Pictures


def plain_norm(x, norm, run, generation):
    """Over the channels of (M, C, H, W)."""
    scale = norm.norm.weight[run, 0][:, None, None]
    if generation == 2023:
        shift = norm.norm.bias[run, 0][:, None, None]
        return (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-3).sqrt() * scale + shift
    return x / (x.square().mean(1, keepdim=True) + 1e-4).sqrt() * scale


@pytest.mark.parametrize("generation", GENERATIONS)
def test_pictures_are_encoded_and_decoded_as_by_torchs_own_layers(generation):
    torch.manual_seed(0)
    hp = hyperparameters(generation, image_size=32, cnn_depth=2)
    encoder, decoder = ImageEncoder(hp, 2, (3, 32, 32)), ImageDecoder(hp, 2, (3, 32, 32))
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        nn.init.normal_(parameter, std=0.5)
    obs = torch.randint(0, 256, (2, 2, 3, 3, 32, 32), dtype=torch.uint8)  # (R, T, B, C, H, W)
    embed = encoder(obs)
    deter, stoch = torch.randn(2, 2, 3, hp.deter), torch.randn(2, 2, 3, hp.stoch * hp.classes)
    loss = decoder.loss(State(deter, stoch), obs)
    assert (embed.shape, loss.shape) == ((2, 2, 3, encoder.size), (2, 2, 3))
    for run in range(2):
        x = picture = obs[run].flatten(0, 1) / 255
        x = x - 0.5
        for conv, norm in zip(encoder.convs, encoder.norms, strict=True):
            if generation == 2023:
                x = nn.functional.conv2d(x, conv.weight[run], stride=2, padding=1)
            else:
                x = nn.functional.max_pool2d(
                    nn.functional.conv2d(x, conv.weight[run], conv.bias[run], padding=2), kernel_size=2
                )
            x = nn.functional.silu(plain_norm(x, norm, run, generation))
        assert_close(embed[run].flatten(0, 1), x.flatten(1))

        d, s = deter[run].flatten(0, 1), stoch[run].flatten(0, 1)
        if generation == 2023:
            x = torch.cat([d, s], -1) @ decoder.start.weight[run] + decoder.start.bias[run]
            x = x.view(6, 16, 2, 2)
        else:
            blocks = [
                part @ decoder.of_deter.linear.weight[4 * run + j] + decoder.of_deter.linear.bias[4 * run + j]
                for j, part in enumerate(d.chunk(4, -1))
            ]
            dense, out = decoder.of_stoch
            hidden = s @ dense.linear.weight[run] + dense.linear.bias[run]
            hidden = hidden / (hidden.square().mean(-1, keepdim=True) + 1e-4).sqrt() * dense.norm.weight[run]
            x = torch.cat(blocks, -1) + nn.functional.silu(hidden) @ out.weight[run] + out.bias[run]
            x = nn.functional.silu(plain_norm(x.view(6, 8, 2, 2), decoder.map_norm, run, generation))
        for number, conv in enumerate(decoder.convs):
            if generation == 2023:
                bias = None if conv.bias is None else conv.bias[run]
                x = nn.functional.conv_transpose2d(x, conv.weight[run], bias, stride=2, padding=1)
            else:
                x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
                x = nn.functional.conv2d(x, conv.weight[run], conv.bias[run], padding=2)
            if number < 3:
                x = nn.functional.silu(plain_norm(x, decoder.norms[number], run, generation))
        x = x + 0.5 if generation == 2023 else x.sigmoid()
        assert_close(loss[run].flatten(), (x - picture).square().sum((1, 2, 3)), rtol=1e-3)
