"""What tests of pixel agents share: small pictures, batches, and torch's own modules with the weights of one run."""

from __future__ import annotations

import torch
from torch import nn

from agents.conv import Conv2d
from agents.nn import LayerNorm, Linear
from agents.protocol import AgentSpec, Batch

CPU = torch.device("cpu")
A, B, SIZE = 2, 6, 20


def spec(size=SIZE, num_envs=1, episode=100):
    return AgentSpec((9, size, size), "rgb", A, episode, 10_000, num_envs=num_envs)


def batch(runs=2, length=2, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randint(0, 256, (runs, length, B, 9, size, size), generator=generator, dtype=torch.uint8),
        action=torch.randn(runs, length - 1, B, A, generator=generator).tanh(),
        reward=torch.randn(runs, length - 1, B, generator=generator),
        terminated=(torch.rand(runs, length - 1, B, generator=generator) < 0.3).float(),
    )


def of_run(whole, run):
    part = slice(run, run + 1)
    return Batch(whole.obs[part], whole.action[part], whole.reward[part], whole.terminated[part])


def assert_close(value, expected, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)


# One run's layers as torch has them


def plain_layer(layer, member):
    """A `Linear`, `LayerNorm` or `Conv2d` of ours, one member of its run axis, as torch's own."""
    if isinstance(layer, Conv2d):
        plain = nn.Conv2d(*layer.weight.shape[1:3][::-1], layer.weight.shape[-1], layer.stride)
        weight, bias = layer.weight[member], layer.bias[member]
    elif isinstance(layer, Linear):
        plain = nn.Linear(*layer.weight.shape[1:])
        weight, bias = layer.weight[member].T, layer.bias[member, 0]
    else:
        assert isinstance(layer, LayerNorm)
        plain = nn.LayerNorm(layer.size)
        weight, bias = layer.weight[member, 0], layer.bias[member, 0]
    plain.weight.data, plain.bias.data = weight.detach().clone(), bias.detach().clone()
    return plain


def plain_encoder(encoder, run):
    layers = []
    for conv in encoder.convs.layers:
        layers += [plain_layer(conv, run), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


def plain_trunk(trunk, run):
    return nn.Sequential(plain_layer(trunk.linear, run), plain_layer(trunk.norm, run))


def plain_mlp(net, member):
    return nn.Sequential(*[plain_layer(layer, member) if isinstance(layer, Linear) else nn.ReLU() for layer in net])


def ours_and_plain(module, plain, member):
    """Pairs of parameters, ours as torch lays them out."""
    layers = [layer for layer in module.modules() if isinstance(layer, (Conv2d, Linear, LayerNorm))]
    theirs = [layer for layer in plain.modules() if isinstance(layer, (nn.Conv2d, nn.Linear, nn.LayerNorm))]
    for one, other in zip(layers, theirs, strict=True):
        expected = plain_layer(one, member)
        yield from zip(expected.parameters(), other.parameters(), strict=True)
