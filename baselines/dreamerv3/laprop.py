"""LaProp with adaptive gradient clipping for each run: the optimiser of DreamerV3's 2024 generation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

CLIP = 0.3
CLIP_MIN_NORM = 1e-3
BETA_MOMENTUM, BETA_SQUARE = 0.9, 0.999
EPS = 1e-20
WARMUP_UPDATES = 1000


class LaProp(torch.optim.Optimizer):
    """Momentum over gradients that are normalised first (Ziyin et al. 2020), after adaptive gradient clipping.

    Clipping: each tensor of each run is scaled so that its gradient's norm is at most 0.3 times the norm of the
    parameters (0.001 at least). The learning rate rises linearly from 0 over the first 1000 updates.

    Args:
        params: parameters, each (R, ...) or (R * K, ...), or groups of them.
        lr: learning rate after the warmup.
        runs: R.
    """

    def __init__(self, params: Iterable[Any], lr: float, runs: int) -> None:
        super().__init__(params, {"lr": lr})
        self.runs = runs

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; `closure` is not supported."""
        if closure is not None:
            raise ValueError("LaProp takes no closure")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(parameters, group["lr"])

    def _step(self, parameters: list[Tensor], lr: float) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        done = int(states[0]["step"])
        grads = self._clipped(parameters)
        squares, moments = [s["exp_avg_sq"] for s in states], [s["exp_avg"] for s in states]
        torch._foreach_mul_(squares, BETA_SQUARE)
        torch._foreach_addcmul_(squares, grads, grads, 1 - BETA_SQUARE)
        scales = torch._foreach_div(squares, 1 - BETA_SQUARE ** (done + 1))
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, EPS)
        torch._foreach_div_(grads, scales)
        torch._foreach_lerp_(moments, grads, 1 - BETA_MOMENTUM)
        rate = lr * min(1.0, done / WARMUP_UPDATES) / (1 - BETA_MOMENTUM ** (done + 1))
        torch._foreach_add_(parameters, moments, alpha=-rate)
        torch._foreach_add_([s["step"] for s in states], 1)

    def _clipped(self, parameters: list[Tensor]) -> list[Tensor]:
        """New gradients, each run's part of each tensor clipped by the norm of its own parameters."""
        clipped = []
        for p in parameters:
            assert p.grad is not None  # chosen by the caller
            grad = p.grad.reshape(self.runs, -1)
            limit = CLIP * p.reshape(self.runs, -1).norm(dim=1).clamp(min=CLIP_MIN_NORM)
            clipped.append((grad / (grad.norm(dim=1) / limit).clamp(min=1.0)[:, None]).view_as(p))
        return clipped
