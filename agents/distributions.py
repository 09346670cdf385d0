"""Distributions that agents predict: two-hot discrete regression in symlog space, and the tanh-squashed Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SQUASH_EPS = 1e-6


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`: sign(x) (exp |x| - 1)."""
    return x.sign() * x.abs().expm1()


class TwoHot:
    """Scalars as distributions over bins that are equally spaced in symlog space.

    Args:
        num_bins: V, number of bins.
        vmin: first bin, in symlog space.
        vmax: last bin, in symlog space.
        device: where the bins live.
    """

    def __init__(self, num_bins: int, vmin: float, vmax: float, device: torch.device) -> None:
        self.vmin, self.vmax, self.last = vmin, vmax, num_bins - 1
        self.bins = torch.linspace(vmin, vmax, num_bins, device=device)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest scalar that has a distribution of its own; others are clamped."""
        low, high = symexp(torch.tensor([self.vmin, self.vmax], dtype=torch.float64)).tolist()
        return low, high

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two-hot distribution of scalars: mass 1 - w on bin i and w on bin i + 1.

        Args:
            x: (...), clamped to the range of the bins.

        Returns:
            i (...) int64 in 0 .. V-2, and w (...) in [0, 1]; NaN gives w = NaN with a valid i.
        """
        position = (symlog(x).clamp(self.vmin, self.vmax) - self.vmin) * (self.last / (self.vmax - self.vmin))
        index = position.floor().long().clamp(0, self.last - 1)
        return index, position - index

    def cross_entropy(self, logits: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy between the two-hot distribution of `x` (...) and `logits` (..., V); gives (...)."""
        index, weight = self.encode(x)
        neighbours = torch.stack([index, index + 1], -1)  # (..., 2)
        neighbours = neighbours.expand(*logits.shape[:-1], 2)
        lower, upper = logits.log_softmax(-1).gather(-1, neighbours).unbind(-1)
        return -torch.lerp(lower, upper, weight.expand_as(lower))

    def decode(self, logits: Tensor) -> Tensor:
        """Scalars (...) from logits (..., V): the mean is taken in symlog space.

        Equal logits give equal scalars wherever they stand (a matrix product would round by place): candidates that the
        model does not tell apart stay tied, and a fleet breaks ties as a single run does.
        """
        return symexp((logits.softmax(-1) * self.bins).sum(-1))


class SymlogScalar:
    """Scalars as one number in symlog space: the continuous counterpart of `TwoHot`."""

    def squared_error(self, output: Tensor, x: Tensor) -> Tensor:
        """Squared error in symlog space between `output` (..., 1) and scalars `x` (...); gives (...)."""
        return (output.squeeze(-1) - symlog(x)).square()

    def decode(self, output: Tensor) -> Tensor:
        """Scalars (...) from outputs (..., 1)."""
        return symexp(output.squeeze(-1))


def gaussian_log_prob(eps: Tensor, log_std: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-density (...) of mean + eps * std under N(mean, std), summed over the last dimension of `eps` (..., A).

    Where there is a `mask` (..., A), dimensions where it is 0 do not count.
    """
    return _sum(-0.5 * eps.square() - log_std - 0.5 * math.log(2 * math.pi), mask)


def squash_log_det(action: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-determinant (...) of tanh at the squashed `action` (..., A): to be subtracted from the Gaussian's density.

    Where there is a `mask` (..., A), dimensions where it is 0 do not count.
    """
    return _sum(((1 - action.square()).relu() + SQUASH_EPS).log(), mask)


def _sum(terms: Tensor, mask: Tensor | None) -> Tensor:
    return terms.sum(-1) if mask is None else (terms * mask).sum(-1)
