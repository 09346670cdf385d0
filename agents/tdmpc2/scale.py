"""Running scale of Q-values, by which the policy loss is normalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MINIMUM = 1.0


class RunningScale:
    """Moving average of the spread between the 5th and 95th percentile, for each run; starts at 1, never below it.

    Args:
        runs: R.
        tau: rate of the moving average.
        device: where it lives.
    """

    def __init__(self, runs: int, tau: float, device: torch.device) -> None:
        self.tau = tau
        self.value = torch.ones(runs, device=device)  # (R,)

    @torch.no_grad()
    def update(self, q: Tensor) -> None:
        """S <- S + tau (max(P95 - P5, 1) - S), in place; percentiles over the batch of `q` (R, B)."""
        ordered = q.sort(dim=1).values
        spread = _percentile(ordered, 0.95) - _percentile(ordered, 0.05)
        self.value.lerp_(spread.clamp(min=MINIMUM), self.tau)


def _percentile(ordered: Tensor, fraction: float) -> Tensor:
    """Linear interpolation between order statistics at fraction * (B - 1); (R, B) -> (R,)."""
    position = fraction * (ordered.shape[1] - 1)
    lower, upper = math.floor(position), math.ceil(position)
    return torch.lerp(ordered[:, lower], ordered[:, upper], position - lower)
