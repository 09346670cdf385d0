"""What the planners of TD-MPC and TD-MPC2 share: model predictive path integral control (MPPI) over action sequences.

Shapes: R runs, N environments, H horizon, S action sequences, E elites, A action.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from agents.noise import Noise


class Refit(NamedTuple):
    """The elites of some action sequences and the Gaussian that is fitted to them."""

    elites: Tensor
    """(R, H, N, E, A)."""
    weight: Tensor
    """(R, N, E), of each elite; they sum to 1."""
    mean: Tensor
    """(R, H, N, A)."""
    std: Tensor
    """(R, H, N, A), without bounds."""


def refit(actions: Tensor, value: Tensor, num_elites: int, temperature: float) -> Refit:
    """Fit mean and standard deviation to the best action sequences.

    Args:
        actions: (R, H, N, S, A).
        value: (R, N, S), the predicted return of each.
        num_elites: E.
        temperature: elites are weighted by exp(temperature * value).
    """
    elite_value, index = value.topk(num_elites, dim=2)  # (R, N, E)
    index = index[:, None, :, :, None].expand(-1, actions.shape[1], -1, -1, actions.shape[-1])
    elites = actions.gather(3, index)  # (R, H, N, E, A)
    weight = (temperature * elite_value).softmax(2)  # (R, N, E)
    w = weight[:, None, :, :, None]
    mean = (w * elites).sum(3)  # (R, H, N, A)
    std = (w * (elites - mean[:, :, :, None]).square()).sum(3).sqrt()
    return Refit(elites, weight, mean, std)


def draw_first_action(elites: Tensor, weight: Tensor, noise: Noise) -> Tensor:
    """The first action (R, N, A) of an elite that is drawn by its weight (Gumbel-max)."""
    pick = (weight.log() + noise.gumbel(*weight.shape[1:])).argmax(2)  # (R, N)
    index = pick[:, :, None, None].expand(-1, -1, 1, elites.shape[-1])
    return elites[:, 0].gather(2, index).squeeze(2)


def warm_start(previous: Tensor, first: Tensor, horizon: int) -> Tensor:
    """The previous plan's mean moved on by one agent step, zero where an episode starts.

    Args:
        previous: (R, H, N, A), the mean of the last plan.
        first: (R, N) bool.
        horizon: H of the new plan.

    Returns:
        (R, H, N, A).
    """
    shape = (previous.shape[0], horizon, first.shape[1], previous.shape[3])
    if previous.shape != shape:
        # Other environments than last time, or another horizon: there is nothing to go on from.
        previous = previous.new_zeros(shape)
    shifted = torch.cat([previous[:, 1:], torch.zeros_like(previous[:, :1])], 1)
    return torch.where(first[:, None, :, None], 0.0, shifted)
