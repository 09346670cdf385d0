"""Encoders and decoders of observations: state vectors and pictures, in both generations.

Shapes: R runs, ... any batch, M the same flattened, O observation, E embedded.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.conv import Conv2d, ConvTranspose2d
from agents.distributions import symlog
from baselines.dreamerv3.hyperparameters import IMAGE_STRIDE, Hyperparameters
from baselines.dreamerv3.layers import (
    BlockLinear,
    ChannelNorm,
    Dense,
    Head,
    Output,
    OutputConvTranspose2d,
    Trunk,
)
from baselines.dreamerv3.rssm import State

NEGLIGIBLE_ERROR = 1e-8
"""Squared errors of vectors below this count as none in 2023."""
MULTIPLES = {2023: (1, 2, 4, 8), 2024: (2, 3, 4, 4)}
"""Channels of the four convolutions, in multiples of cnn_depth."""


class VectorEncoder(nn.Module):
    """symlog, then dense layers: (R, ..., O) -> (R, ..., E)."""

    def __init__(self, hp: Hyperparameters, runs: int, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size = hp.vector_units
        self.trunk = Trunk(hp.generation, runs, [obs_shape[0], *[hp.vector_units] * hp.vector_layers])

    def forward(self, obs: Tensor) -> Tensor:
        out: Tensor = self.trunk(symlog(obs))
        return out.unflatten(1, obs.shape[1:-1])


class VectorDecoder(nn.Module):
    """Dense layers from features to symlog observations."""

    def __init__(self, hp: Hyperparameters, runs: int, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.ignore_small = hp.generation == 2023
        features = hp.deter + hp.stoch * hp.classes
        self.head = Head(hp.generation, runs, features, [hp.vector_units] * hp.vector_layers, obs_shape[0])

    def loss(self, state: State, obs: Tensor) -> Tensor:
        """Squared error (R, ...) of symlog observations (R, ..., O), summed over O."""
        error = (self.head(state.features) - symlog(obs)).square()
        if self.ignore_small:
            error = torch.where(error < NEGLIGIBLE_ERROR, 0.0, error)
        return error.sum(-1)


class ImageEncoder(nn.Module):
    """Four convolutions that each halve the picture: uint8 (R, ..., channels, H, W) -> (R, ..., E).

    2023: kernels of 4, stride 2. 2024: kernels of 5, then the maximum of 2 x 2.
    """

    def __init__(self, hp: Hyperparameters, runs: int, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.pool = hp.generation == 2024
        channels = [obs_shape[0], *[hp.cnn_depth * multiple for multiple in MULTIPLES[hp.generation]]]
        convs = [
            Conv2d(runs, *pair, kernel=5, padding=2)
            if self.pool
            else Conv2d(runs, *pair, kernel=4, stride=2, padding=1, bias=False)
            for pair in pairwise(channels)
        ]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([ChannelNorm(hp.generation, runs, size) for size in channels[1:]])
        self.size = channels[-1] * (obs_shape[1] // IMAGE_STRIDE) * (obs_shape[2] // IMAGE_STRIDE)

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.flatten(1, -4).float() / 255 - 0.5
        for conv, normalise in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            if self.pool:
                x = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
            x = F.silu(normalise(x))
        return x.flatten(2).unflatten(1, obs.shape[1:-3])


class ImageDecoder(nn.Module):
    """From features to pictures in [0, 1], (R, M, channels, H, W); the mirror of the encoder.

    2023: transposed convolutions. 2024: nearest neighbours and convolutions; the smallest map is made from the
    deterministic state block by block and from the latents.
    """

    def __init__(self, hp: Hyperparameters, runs: int, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.generation = hp.generation
        channels = [*[hp.cnn_depth * multiple for multiple in MULTIPLES[hp.generation]][::-1], obs_shape[0]]
        self.map_shape = (channels[0], obs_shape[1] // IMAGE_STRIDE, obs_shape[2] // IMAGE_STRIDE)
        pixels = self.map_shape[1] * self.map_shape[2]
        stoch_size = hp.stoch * hp.classes
        *inner, last = pairwise(channels)
        if hp.generation == 2023:
            self.start = Output(runs, hp.deter + stoch_size, channels[0] * pixels)
            convs: list[nn.Module] = [
                ConvTranspose2d(runs, *pair, kernel=4, stride=2, padding=1, bias=False) for pair in inner
            ]
            convs.append(OutputConvTranspose2d(runs, *last, kernel=4, stride=2, padding=1))
        else:
            self.of_deter = BlockLinear(runs, hp.blocks, hp.deter // hp.blocks, channels[0] // hp.blocks * pixels)
            self.of_stoch = nn.Sequential(
                Dense(2024, runs, stoch_size, 2 * hp.units), Output(runs, 2 * hp.units, channels[0] * pixels)
            )
            self.map_norm = ChannelNorm(2024, runs, channels[0])
            convs = [Conv2d(runs, *pair, kernel=5, padding=2) for pair in pairwise(channels)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([ChannelNorm(hp.generation, runs, size) for size in channels[1:-1]])

    def forward(self, state: State) -> Tensor:
        state = state.flatten()
        if self.generation == 2023:
            x = self.start(state.features).unflatten(-1, self.map_shape)
        else:
            x = self.of_deter(state.deter.unflatten(-1, (self.of_deter.blocks, -1))).flatten(-2)
            x = (x + self.of_stoch(state.stoch)).unflatten(-1, self.map_shape)
            x = F.silu(self.map_norm(x))
        *inner, last = self.convs
        for conv, normalise in zip(inner, self.norms, strict=True):
            x = F.silu(normalise(conv(self._enlarge(x))))
        x = last(self._enlarge(x))
        return x + 0.5 if self.generation == 2023 else x.sigmoid()

    def _enlarge(self, x: Tensor) -> Tensor:
        """Twice the height and width where the convolution does not do it."""
        if self.generation == 2023:
            return x
        return x.repeat_interleave(2, -2).repeat_interleave(2, -1)

    def loss(self, state: State, obs: Tensor) -> Tensor:
        """Squared error (R, ...) of pictures (R, ..., channels, H, W) in [0, 1], summed over the picture."""
        target = obs.flatten(1, -4).float() / 255
        error = (self(state) - target).square().flatten(2).sum(-1)
        return error.unflatten(1, obs.shape[1:-3])
