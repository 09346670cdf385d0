"""Layers of both generations with a run axis, and how their parameters are drawn.

2023: linear without bias, LayerNorm, SiLU. 2024: linear with bias, RMSNorm, SiLU.
Shapes: R runs, M any flattened batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.conv import Conv2d, ConvTranspose2d
from agents.nn import LayerNorm, Linear

LAYER_NORM_EPS = 1e-3
RMS_NORM_EPS = 1e-4
CUT_NORMAL_STD = 0.87963
"""Standard deviation of a standard normal that is cut at +-2."""


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) over the last dimension, times a scale for each run; `(R, M, size)`."""

    def __init__(self, runs: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.ones(runs, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.size,), eps=RMS_NORM_EPS) * self.weight


def norm(generation: int, runs: int, size: int) -> nn.Module:
    """The normalisation of a generation over the last dimension, `(R, M, size)`."""
    return LayerNorm(runs, size, eps=LAYER_NORM_EPS) if generation == 2023 else RMSNorm(runs, size)


class ChannelNorm(nn.Module):
    """The normalisation of a generation over the channels of images, `(R, M, C, H, W)`."""

    def __init__(self, generation: int, runs: int, channels: int) -> None:
        super().__init__()
        self.norm = norm(generation, runs, channels)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.movedim(2, -1)  # (R, M, H, W, C)
        normed: Tensor = self.norm(pixels.flatten(1, -2))
        return normed.view(pixels.shape).movedim(-1, 2)


class Dense(nn.Module):
    """Linear, normalisation, SiLU: `(R, M, in) -> (R, M, out)`."""

    def __init__(self, generation: int, runs: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = Linear(runs, inputs, outputs, bias=generation == 2024)
        self.norm = norm(generation, runs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(x)))


class Output(Linear):
    """A last linear layer, drawn as such.

    Args:
        scale: of the draw; the variance is proportional to it in 2023, the standard deviation in 2024. 0: all zero.
    """

    def __init__(self, runs: int, inputs: int, outputs: int, scale: float = 1.0) -> None:
        super().__init__(runs, inputs, outputs)
        self.scale = scale


class OutputConvTranspose2d(ConvTranspose2d):
    """A last transposed convolution, drawn as such."""


class BlockLinear(nn.Module):
    """A linear layer of g blocks that do not see each other: `(R, M, g, in) -> (R, M, g, out)`."""

    def __init__(self, runs: int, blocks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.runs, self.blocks = runs, blocks
        self.linear = Linear(runs * blocks, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        members = x.transpose(1, 2).flatten(0, 1)  # (R g, M, in)
        out: Tensor = self.linear(members)
        return out.unflatten(0, (self.runs, self.blocks)).transpose(1, 2)


class Trunk(nn.Module):
    """Dense layers in a row, `(R, ..., in) -> (R, M, out)` with M the flattened batch."""

    def __init__(self, generation: int, runs: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[Dense(generation, runs, *size) for size in pairwise(sizes)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.flatten(1, -2))
        return out


class Head(nn.Module):
    """Dense layers and an output layer, `(R, ..., in) -> (R, ..., out)`.

    Args:
        inputs: size of the input.
        hidden: widths of the dense layers.
        outputs: size of the output.
        scale: of the output layer's draw.
    """

    def __init__(
        self, generation: int, runs: int, inputs: int, hidden: Sequence[int], outputs: int, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.trunk = Trunk(generation, runs, [inputs, *hidden])
        self.output = Output(runs, hidden[-1], outputs, scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.trunk(x))
        return out.unflatten(1, x.shape[1:-1])


@torch.no_grad()
def initialise(network: nn.Module, generation: int, generators: Sequence[torch.Generator]) -> None:
    """Draw the weights of every layer, each run with its own generator; biases stay 0 and scales 1.

    2023: hidden layers from a normal that is cut at two standard deviations, of variance 1 / fan_avg; output layers
    uniform, of variance scale / fan_avg. 2024: every layer from the cut normal, of standard deviation
    scale / sqrt(fan_in). fan_avg is the mean of inputs and outputs, times the area of a kernel; the inputs of a
    block-linear layer are those of all blocks together.
    """
    blocks: dict[nn.Module, int] = {
        module.linear: module.blocks for module in network.modules() if isinstance(module, BlockLinear)
    }
    for layer in network.modules():
        if not isinstance(layer, Linear | Conv2d | ConvTranspose2d):
            continue
        inputs, outputs = layer.weight.shape[1:3] if not isinstance(layer, Conv2d) else layer.weight.shape[2:0:-1]
        area = math.prod(layer.weight.shape[3:])
        scale = layer.scale if isinstance(layer, Output) else 1.0
        is_output = isinstance(layer, Output | OutputConvTranspose2d)
        for weight, generator in zip(layer.weight.chunk(len(generators)), generators, strict=True):
            if generation == 2024:
                std = scale / math.sqrt(inputs * area * blocks.get(layer, 1))
                weight.copy_(_cut_normal(weight.shape, generator) * std)
            elif is_output:
                limit = math.sqrt(3 * scale / ((inputs + outputs) / 2 * area))
                weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * limit)
            else:
                weight.copy_(_cut_normal(weight.shape, generator) / math.sqrt((inputs + outputs) / 2 * area))


def _cut_normal(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draws of variance 1 from a normal that is cut at two standard deviations."""
    draws = torch.empty(shape)
    nn.init.trunc_normal_(draws, 0.0, 1.0, -2.0, 2.0, generator=generator)
    return draws / CUT_NORMAL_STD
