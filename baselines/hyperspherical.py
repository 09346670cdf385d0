"""Networks on the unit sphere, and the running statistics that scale their inputs (SimbaV2, Lee et al. 2025).

Shapes: R runs, M a flattened batch, N environments, O observation. Every parameter has the run axis first; an ensemble
of K members a run passes R * K as its runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NORM_EPS = 1e-8


def to_sphere(x: Tensor, dim: int = -1) -> Tensor:
    """x / max(|x|, 1e-8), along one dimension."""
    return x / x.norm(dim=dim, keepdim=True).clamp_min(NORM_EPS)


class HyperDense(nn.Module):
    """R linear maps without bias, `(R, M, in) -> (R, M, out)`; the weights into each output have norm 1.

    `project` restores that after an optimiser's step: it is no part of the forward pass.
    """

    def __init__(self, runs: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(runs, inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight)

    @torch.no_grad()
    def project(self) -> None:
        """Bring the weights back to norm 1."""
        self.weight.copy_(to_sphere(self.weight, dim=1))


class Scaler(nn.Module):
    """A learned factor for each feature, `(R, M, size) -> (R, M, size)`.

    The parameter starts at `scale` and the factor at `init`: a smaller `scale` makes it learn faster.
    """

    def __init__(self, runs: int, size: int, init: float, scale: float) -> None:
        super().__init__()
        self.factor = init / scale
        self.scaler = nn.Parameter(torch.full((runs, 1, size), scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scaler * self.factor * x


class Embedder(nn.Module):
    """An input to the sphere, its magnitude kept by a constant appended to it: `(R, M, in) -> (R, M, size)`."""

    def __init__(self, runs: int, inputs: int, size: int, shift: float) -> None:
        super().__init__()
        self.shift = shift
        self.dense = HyperDense(runs, inputs + 1, size)
        self.scaler = Scaler(runs, size, math.sqrt(2 / size), math.sqrt(2 / size))

    def forward(self, x: Tensor) -> Tensor:
        x = to_sphere(nn.functional.pad(x, (0, 1), value=self.shift))
        return to_sphere(self.scaler(self.dense(x)))


class Block(nn.Module):
    """A step on the sphere towards what a bottleneck of four times the width says, `(R, M, size) -> (R, M, size)`."""

    def __init__(self, runs: int, size: int, blocks: int) -> None:
        super().__init__()
        inner = math.sqrt(2 / size) / 2
        self.expand = HyperDense(runs, size, 4 * size)
        self.scaler = Scaler(runs, 4 * size, inner, inner)
        self.shrink = HyperDense(runs, 4 * size, size)
        self.alpha = Scaler(runs, size, 1 / (blocks + 1), 1 / math.sqrt(size))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.scaler(self.expand(x)).relu() + NORM_EPS
        return to_sphere(x + self.alpha(to_sphere(self.shrink(hidden)) - x))


class Head(nn.Module):
    """A linear read-out of a feature on the sphere, `(R, M, size) -> (R, M, outputs)`."""

    def __init__(self, runs: int, size: int, outputs: int) -> None:
        super().__init__()
        self.hidden = HyperDense(runs, size, size)
        self.scaler = Scaler(runs, size, 1.0, 1.0)
        self.dense = HyperDense(runs, size, outputs)
        self.bias = nn.Parameter(torch.zeros(runs, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.scaler(self.hidden(x))) + self.bias


def body(runs: int, inputs: int, size: int, blocks: int, shift: float) -> nn.Sequential:
    """An embedder and blocks, `(R, M, inputs) -> (R, M, size)`."""
    return nn.Sequential(Embedder(runs, inputs, size, shift), *(Block(runs, size, blocks) for _ in range(blocks)))


@torch.no_grad()
def initialise(network: nn.Module, members: Iterable[int], generator: torch.Generator) -> None:
    """Draw the weights of some members of the run axis: orthogonal with gain 1, then projected."""
    for member in members:
        for layer in network.modules():
            if isinstance(layer, HyperDense):
                weight = torch.empty(layer.weight.shape[2], layer.weight.shape[1])  # (out, in)
                layer.weight[member] = nn.init.orthogonal_(weight, generator=generator).T
    project(network)


def project(network: nn.Module) -> None:
    """Bring the weights of all `HyperDense` layers back to norm 1."""
    for layer in network.modules():
        if isinstance(layer, HyperDense):
            layer.project()


class RunningMoments:
    """Mean and variance of all that a run has seen, by the parallel formula; starts as 1e-4 values of N(0, 1).

    Args:
        runs: R.
        size: numbers in one value.
        device: where to keep them.
    """

    def __init__(self, runs: int, size: int, device: torch.device) -> None:
        self.mean = torch.zeros(runs, size, dtype=torch.float64, device=device)
        self.var = torch.ones(runs, size, dtype=torch.float64, device=device)
        self.count = torch.full((runs, 1), 1e-4, dtype=torch.float64, device=device)

    def add(self, values: Tensor) -> None:
        """Take in (R, N, size)."""
        values = values.double()
        number = values.shape[1]
        var, mean = torch.var_mean(values, dim=1, correction=0)
        delta, total = mean - self.mean, self.count + number
        self.mean = self.mean + delta * number / total
        squares = self.var * self.count + var * number + delta.square() * self.count * number / total
        self.var, self.count = squares / total, total

    def state(self, run: int) -> dict[str, Tensor]:
        """The moments of one run."""
        return {name: getattr(self, name)[run].cpu().clone() for name in ("mean", "var", "count")}

    def load(self, states: list[dict[str, Tensor]]) -> None:
        """Take over the moments of single runs."""
        for name in ("mean", "var", "count"):
            setattr(self, name, torch.stack([state[name] for state in states]).to(self.mean.device))
