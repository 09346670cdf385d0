"""Lambda-returns, their scale, and the weights of imagined steps. Shapes: R runs, H horizon, N starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LOW_QUANTILE, HIGH_QUANTILE = 0.05, 0.95


def lambda_returns(reward: Tensor, discount: Tensor, value: Tensor, last: Tensor, mix: Tensor | float) -> Tensor:
    """R_k = r_{k+1} + discount_{k+1} ((1 - mix_{k+1}) v_{k+1} + mix_{k+1} R_{k+1}), from R_H = last backwards.

    Args:
        reward: (R, H, N), r_1 .. r_H.
        discount: (R, H, N), of the same states; zero where they are terminal.
        value: (R, H, N), of the same states.
        last: (R, N), R_H.
        mix: lambda, a number or (R, H, N).

    Returns:
        (R, H, N), R_0 .. R_{H-1}.
    """
    steps = reward + discount * (1 - mix) * value
    carried = discount * mix
    returns = [last]
    for k in reversed(range(reward.shape[1])):
        returns.append(torch.addcmul(steps[:, k], carried[:, k], returns[-1]))
    return torch.stack(returns[:0:-1], 1)


class ReturnScale:
    """The range between the 5 and 95 percentiles of returns for each run, followed slowly, and 1 at least.

    Both ends start at zero and are not corrected for it, as the authors do.

    Args:
        runs: R.
        rate: share of the new percentiles.
        device: where the ends live.
    """

    def __init__(self, runs: int, rate: float, device: torch.device) -> None:
        self.rate = rate
        self.ends = torch.zeros(runs, 2, device=device)
        self._quantiles = torch.tensor([LOW_QUANTILE, HIGH_QUANTILE], device=device)

    def update(self, returns: Tensor) -> Tensor:
        """Follow the percentiles of `returns` (R, ...); gives the scale (R,) to divide advantages by."""
        found = torch.quantile(returns.detach().flatten(1), self._quantiles, dim=1).T  # (R, 2)
        self.ends = torch.lerp(self.ends, found, self.rate)
        return self.value

    @property
    def value(self) -> Tensor:
        """max(1, high - low), (R,)."""
        return (self.ends[:, 1] - self.ends[:, 0]).clamp(min=1.0)

    def state(self, run: int) -> dict[str, Tensor]:
        """The ends of one run."""
        return {"ends": self.ends[run].cpu().clone()}

    def load(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over the ends of single runs, in order."""
        self.ends = torch.stack([state["ends"] for state in states]).to(self.ends.device)
