"""Convolutions with a run axis against torch's own, one run at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agents import conv
from agents.conv import Conv2d, ConvLayer, ConvStack, ConvTranspose2d, smallest_image
from bench.errors import UserError

LAYERS = [ConvLayer(6, 3, 2), ConvLayer(5, 3, 1), ConvLayer(4, 2, 1)]


def drawn(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def plain(layer, run):
    """One run's layer as torch has it."""
    kind = nn.Conv2d if isinstance(layer, Conv2d) else nn.ConvTranspose2d
    first, second, kernel = layer.weight.shape[1:4]
    inputs, outputs = (second, first) if isinstance(layer, Conv2d) else (first, second)
    one = kind(inputs, outputs, kernel, layer.stride, layer.padding)
    one.load_state_dict({"weight": layer.weight[run].detach(), "bias": layer.bias[run].detach()})
    return one


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 0), (4, 2, 1), (5, 2, 0)])
def test_each_run_is_a_convolution_of_its_own(kind, kernel, stride, padding, runs):
    layer = drawn(kind(runs, 2, 5, kernel, stride, padding))
    images = torch.randn(runs, 4, 2, 9, 9, requires_grad=True)
    out = layer(images)
    out.square().sum().backward()
    for run in range(runs):
        one, own = plain(layer, run), images.detach()[run].requires_grad_()
        expected = one(own)
        expected.square().sum().backward()
        torch.testing.assert_close(out[run], expected)
        torch.testing.assert_close(images.grad[run], own.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.weight.grad[run], one.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.bias.grad[run], one.bias.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_the_grouped_way_of_a_gpu_is_the_same(kind, monkeypatch):
    layer = drawn(kind(3, 2, 5, 4, 2, 1))
    images = torch.randn(3, 4, 2, 8, 8)
    one_by_one = layer(images)
    monkeypatch.setattr(conv, "_for_each_run", conv._grouped)
    torch.testing.assert_close(layer(images), one_by_one)


@pytest.mark.parametrize("activate_last", [True, False])
def test_a_stack_is_the_layers_with_relu_in_between(activate_last):
    stack = drawn(ConvStack(2, (9, 20, 24), LAYERS, activate_last))
    images = torch.randn(2, 3, 4, 9, 20, 24)  # two batch axes
    out = stack(images)
    assert out.shape == (2, 3, 4, stack.features)
    for run in range(2):
        layers = []
        for layer in stack.layers:
            layers += [plain(layer, run), nn.ReLU()]
        network = nn.Sequential(*(layers if activate_last else layers[:-1]))
        expected = network(images[run].flatten(0, 1))
        assert expected.shape[1:] == stack.output_shape
        torch.testing.assert_close(out[run].flatten(0, 1), expected.flatten(1))


def test_sizes_of_the_published_encoders():
    drq = [ConvLayer(32, 3, 2)] + [ConvLayer(32, 3, 1)] * 3
    tdmpc = [ConvLayer(32, 7, 2), ConvLayer(32, 5, 2), ConvLayer(32, 3, 2), ConvLayer(32, 3, 2)]
    assert ConvStack(1, (9, 84, 84), drq).output_shape == (32, 35, 35)
    assert sum(p.numel() for p in ConvStack(1, (9, 84, 84), drq).parameters()) == 30_368
    assert ConvStack(1, (9, 84, 84), tdmpc).features == 288


def test_pictures_too_small_are_refused():
    assert smallest_image(LAYERS) == 9
    assert ConvStack(1, (3, 9, 9), LAYERS).output_shape == (4, 1, 1)
    with pytest.raises(UserError, match="image_size must be at least 9"):
        ConvStack(1, (3, 8, 8), LAYERS)
