"""Predicted scalars and the policy's distribution.

Shapes: R runs, ... any batch, F features, V bins, A action.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from agents.distributions import TwoHot, symexp
from baselines.dreamerv3.hyperparameters import Hyperparameters
from baselines.dreamerv3.layers import Head, Output, Trunk

LOG_BIN_LIMIT = 20.0
"""The outermost bins are at symexp(+-20)."""
MIN_STD, MAX_STD = 0.1, 1.0
"""Range of the policy's standard deviation."""
STD_BIAS = 2.0
"""Added to the raw standard deviation, so that the policy begins near the upper end of the range."""
ACTOR_OUTPUT_SCALE = {2023: 1.0, 2024: 0.01}


class SymexpTwoHot:
    """Scalars as distributions over bins at symexp positions, two-hot and mean in raw space: the regression of 2024.

    Args:
        num_bins: V, odd; the middle bin is at zero.
        device: where the bins live.
    """

    def __init__(self, num_bins: int, device: torch.device) -> None:
        half = symexp(torch.linspace(-LOG_BIN_LIMIT, 0, num_bins // 2 + 1, device=device))
        self.bins = torch.cat([half, -half[:-1].flip(0)])

    def cross_entropy(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy (...) between the two-hot distribution of `x` (...) and `logits` (..., V)."""
        x = x.clamp(self.bins[0], self.bins[-1])
        upper = torch.searchsorted(self.bins, x.contiguous(), right=True).clamp(1, len(self.bins) - 1)
        low, high = self.bins[upper - 1], self.bins[upper]
        weight = (x - low) / (high - low)
        neighbours = torch.stack([upper - 1, upper], -1).expand(*logits.shape[:-1], 2)
        of_low, of_high = logits.log_softmax(-1).gather(-1, neighbours).unbind(-1)
        return -torch.lerp(of_low, of_high, weight.expand_as(of_low))

    def decode(self, logits: Tensor) -> Tensor:
        """Mean (...) under logits (..., V); mirrored bins are added first, so that equal logits give exactly zero."""
        probs = logits.softmax(-1)
        half = len(self.bins) // 2
        difference = probs[..., half + 1 :] - probs[..., :half].flip(-1)
        return difference @ self.bins[half + 1 :]


def two_hot(hp: Hyperparameters, device: torch.device) -> TwoHot | SymexpTwoHot:
    """The discrete regression of rewards and values of a generation."""
    if hp.generation == 2023:
        return TwoHot(hp.bins, -LOG_BIN_LIMIT, LOG_BIN_LIMIT, device)
    return SymexpTwoHot(hp.bins, device)


def scalar_head(hp: Hyperparameters, runs: int, layers: int) -> Head:
    """Logits (R, ..., V) of a reward or value from features (R, ..., F); all equal at first."""
    features = hp.deter + hp.stoch * hp.classes
    return Head(hp.generation, runs, features, [hp.units] * layers, hp.bins, scale=0.0)


class Actor(nn.Module):
    """A Gaussian policy around a tanh mean, neither squashed nor cut: draws may lie beyond 1."""

    def __init__(self, hp: Hyperparameters, runs: int, action_size: int) -> None:
        super().__init__()
        features = hp.deter + hp.stoch * hp.classes
        self.trunk = Trunk(hp.generation, runs, [features, *[hp.units] * hp.actor_layers])
        scale = ACTOR_OUTPUT_SCALE[hp.generation]
        self.mean = Output(runs, hp.units, action_size, scale)
        self.std = Output(runs, hp.units, action_size, scale)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each (R, ..., A), from features (R, ..., F)."""
        x = self.trunk(features)
        mean = self.mean(x).tanh()
        std = (MAX_STD - MIN_STD) * (self.std(x) + STD_BIAS).sigmoid() + MIN_STD
        batch = features.shape[1:-1]
        return mean.unflatten(1, batch), std.unflatten(1, batch)


def gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy (...) in nats of independent normals with these standard deviations (..., A)."""
    return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
