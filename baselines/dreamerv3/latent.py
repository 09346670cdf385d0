"""The categorical latents of the recurrent state-space model.

Shapes: ... any batch, S variables, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.activations import simnorm


def unimix(logits: Tensor, classes: int, share: float) -> Tensor:
    """Probabilities (..., S, C) from logits (..., S C): a softmax with a share of the uniform distribution mixed in."""
    probs = simnorm(logits, classes).unflatten(-1, (-1, classes))
    return probs * (1 - share) + share / classes if share > 0 else probs


class _StraightThrough(torch.autograd.Function):
    """The one-hot sample forwards, the gradient of the probabilities backwards."""

    @staticmethod
    def forward(ctx: Any, probs: Tensor, one_hot: Tensor) -> Tensor:
        return one_hot

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def sample(probs: Tensor, uniform: Tensor) -> Tensor:
    """One-hot draws (..., S C) with the straight-through gradient of `probs` (..., S, C).

    Args:
        probs: (..., S, C).
        uniform: (..., S) in [0, 1): the class is the first whose cumulative probability exceeds it.
    """
    with torch.no_grad():
        index = (probs.cumsum(-1) <= uniform[..., None]).sum(-1, keepdim=True).clamp_(max=probs.shape[-1] - 1)
        one_hot = torch.zeros_like(probs).scatter_(-1, index, 1.0)
    drawn: Tensor = _StraightThrough.apply(probs, one_hot)
    return drawn.flatten(-2)


def mode(probs: Tensor) -> Tensor:
    """The likeliest class of each variable as one-hot (..., S C), without gradient."""
    return torch.zeros_like(probs).scatter_(-1, probs.argmax(-1, keepdim=True), 1.0).flatten(-2)


def kl_divergence(probs: Tensor, other: Tensor) -> Tensor:
    """KL(probs || other) in nats, summed over the S variables; (..., S, C), (..., S, C) -> (...)."""
    return (probs * (probs.log() - other.log())).sum((-2, -1))
