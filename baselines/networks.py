"""Networks that SAC, CURL and DrQ-v2 share, with a leading run axis as in `agents.nn`.

Shapes: R runs, M any flattened batch, O observation, F features of the convolutions, A action, Q = 2 critics a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from agents.conv import Conv2d, ConvLayer, ConvStack
from agents.nn import LayerNorm, Linear

CRITICS = 2
RELU_GAIN = math.sqrt(2)


def mlp(runs: int, inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """R networks of linear layers with ReLU in between, `(R, M, inputs) -> (R, M, outputs)`."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [Linear(runs, before, after), nn.ReLU()]
    return nn.Sequential(*layers, Linear(runs, sizes[-1], outputs))


class PixelEncoder(nn.Module):
    """The convolutions of SAC-AE, CURL and DrQ-v2: four of 3x3 with ReLU, the first with stride 2, the others 1.

    Args:
        runs: R.
        image_shape: (C, H, W) of one observation.
        channels: of every layer.
        centre: subtracted after the pixels are scaled to [0, 1].
    """

    def __init__(self, runs: int, image_shape: Sequence[int], channels: int, centre: float) -> None:
        super().__init__()
        strides = (2, 1, 1, 1)
        self.convs = ConvStack(runs, image_shape, [ConvLayer(channels, 3, stride) for stride in strides])
        self.features = self.convs.features
        self.centre = centre

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (R, M, C, H, W) -> features (R, M, F)."""
        features: Tensor = self.convs(images.float().div_(255).sub_(self.centre))
        return features


class Trunk(nn.Module):
    """From the features of the convolutions to a short vector: linear, LayerNorm, and tanh where asked for.

    Args:
        runs: R.
        inputs: F.
        outputs: size of the short vector.
        tanh: whether a tanh follows.
    """

    def __init__(self, runs: int, inputs: int, outputs: int, tanh: bool) -> None:
        super().__init__()
        self.linear = Linear(runs, inputs, outputs)
        self.norm = LayerNorm(runs, outputs)
        self.tanh = tanh

    def forward(self, features: Tensor) -> Tensor:
        """(R, M, F) -> (R, M, outputs)."""
        x: Tensor = self.norm(self.linear(features))
        return x.tanh() if self.tanh else x


class TwinCritic(nn.Module):
    """Two independent Q-functions a run; members of a run are neighbours on the first axis, (R * Q, ...).

    Args:
        runs: R.
        obs_size: O, or the outputs of the trunk.
        action_size: A.
        hidden: widths of the hidden layers.
        trunk: what both Q-functions of a run see the observation through.
    """

    def __init__(
        self, runs: int, obs_size: int, action_size: int, hidden: Sequence[int], trunk: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.trunk = nn.Identity() if trunk is None else trunk
        self.net = mlp(runs * CRITICS, obs_size + action_size, hidden, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(R, B, O), (R, B, A) -> (R, Q, B)."""
        x = torch.cat([self.trunk(obs), action], dim=-1).repeat_interleave(CRITICS, dim=0)  # (R * Q, B, O + A)
        return self.net(x).view(obs.shape[0], CRITICS, obs.shape[1])


def orthogonal_kernel(weight: Tensor, generator: torch.Generator) -> None:
    """A kernel (out, in, k, k) that is orthogonal as a matrix (out, in k k), with the gain for ReLU."""
    nn.init.orthogonal_(weight, gain=RELU_GAIN, generator=generator)


def delta_orthogonal_kernel(weight: Tensor, generator: torch.Generator) -> None:
    """A kernel (out, in, k, k) of zeros but for the centre, which is orthogonal with the gain for ReLU."""
    middle = weight.shape[-1] // 2
    nn.init.zeros_(weight)
    nn.init.orthogonal_(weight[:, :, middle, middle], gain=RELU_GAIN, generator=generator)


@torch.no_grad()
def orthogonal_init(
    network: nn.Module,
    members: slice,
    generator: torch.Generator,
    kernel: Callable[[Tensor, torch.Generator], None] = orthogonal_kernel,
) -> None:
    """Draw the weights of some members of the run axis, one member after the other; biases stay zero.

    Linear layers are orthogonal with gain 1, convolutions as `kernel` draws them. A `trunk` within the network has one
    member a run where the heads have several, so it is drawn on its own.
    """
    for member in range(members.start, members.stop):
        for layer in network.modules():
            if isinstance(layer, Linear):
                # (out, in), as a single network would be drawn, turned to our (in, out).
                weight = torch.empty(layer.weight.shape[2], layer.weight.shape[1])
                layer.weight[member] = nn.init.orthogonal_(weight, generator=generator).T
            elif isinstance(layer, Conv2d):
                kernel(layer.weight[member], generator)
