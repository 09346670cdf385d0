"""Random draws with a run axis, one stream for each run.

An agent draws all its randomness here, so that run r of a fleet sees the same numbers as the same run trained alone.
On a CPU each run has a generator of its own. On a GPU one generator serves the fleet (R small launches for each draw
would cost more than the draw), so there a regrouped fleet keeps everything but the noise to come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.seeding import derive_seed


class Noise:
    """Draws of shape (R, ...) on one device.

    Args:
        seeds: the seed of each run.
        stream: a name that keeps this stream apart from the run's others ("explore", "evaluate", "learn").
        device: where the draws live.
        sizes: of a padded fleet, for each run: how long the last axis of its normal draws (an action) is.
    """

    def __init__(self, seeds: Sequence[int], stream: str, device: torch.device, sizes: Sequence[int] = ()) -> None:
        self.runs = len(seeds)
        self.device = device
        self.sizes = tuple(sizes)
        per_run = device.type == "cpu"
        keys: list[object] = list(seeds) if per_run else [tuple(seeds)]
        self.generators = [torch.Generator(device=device).manual_seed(derive_seed(stream, key)) for key in keys]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal (R, *shape).

        In a padded fleet on a CPU each run draws as it does alone, and what it lacks to the end of the last axis is 0.
        On a GPU those numbers are drawn too: whoever uses them masks them.
        """
        if self.sizes and self.device.type == "cpu":
            drawn = torch.zeros(self.runs, *shape)
            for part, size, generator in zip(drawn, self.sizes, self.generators, strict=True):
                part[..., :size] = torch.randn(*shape[:-1], size, generator=generator)
            return drawn
        if len(self.generators) == 1:
            return torch.randn(self.runs, *shape, generator=self.generators[0], device=self.device)
        return torch.stack([torch.randn(*shape, generator=g, device=self.device) for g in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), (R, *shape)."""
        if len(self.generators) == 1:
            return torch.rand(self.runs, *shape, generator=self.generators[0], device=self.device)
        return torch.stack([torch.rand(*shape, generator=g, device=self.device) for g in self.generators])

    def integers(self, count: int, *shape: int) -> Tensor:
        """Uniform in 0 .. count - 1, (R, *shape) int64."""
        if len(self.generators) == 1:
            return torch.randint(count, (self.runs, *shape), generator=self.generators[0], device=self.device)
        return torch.stack([torch.randint(count, shape, generator=g, device=self.device) for g in self.generators])

    def gumbel(self, *shape: int) -> Tensor:
        """Standard Gumbel (R, *shape): the argmax of log-weights plus these is a draw with those weights."""
        tiny = torch.finfo(torch.float32).tiny
        return -(-self.uniform(*shape).clamp_min(tiny).log()).log()

    def choose(self, count: int, members: int) -> Tensor:
        """`count` distinct numbers below `members`, every choice equally likely; (R, count) int64."""
        return self.uniform(members).topk(count, dim=1).indices

    def dropout_mask(self, p: float, *shape: int) -> Tensor:
        """(R, *shape): 0 with probability p, else 1 / (1 - p).

        On a CPU the distances between zeros are drawn, which are geometric, so that a small p costs few draws.
        """
        mask = torch.full((self.runs, *shape), 1 / (1 - p), device=self.device)
        if self.device.type != "cpu":
            return mask.mul_(torch.empty_like(mask).bernoulli_(1 - p, generator=self.generators[0]))
        size = math.prod(shape)
        # As many as reach beyond the end, but for a chance of 1e-15.
        count = math.ceil(size * p + 8 * math.sqrt(size * p) + 8)
        for part, generator in zip(mask.view(self.runs, size), self.generators, strict=True):
            uniform = torch.rand(count, generator=generator, dtype=torch.float64)
            places = ((1 - uniform).log_().div_(math.log1p(-p)).floor_() + 1).cumsum(0) - 1
            part[places[places < size].long()] = 0
        return mask

    def state(self, run: int) -> dict[str, Any]:
        """What run `run` needs to continue its stream; `shared` marks a generator that the whole fleet drew from."""
        shared = len(self.generators) < self.runs
        return {"shared": shared, "runs": self.runs, "generator": self.generators[0 if shared else run].get_state()}

    def load(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continue the streams of `states`; a GPU fleet grouped otherwise than when saved keeps its fresh seed."""
        for index, generator in enumerate(self.generators):
            state = states[index]
            same_device = state["shared"] == (len(self.generators) < self.runs)
            if same_device and (not state["shared"] or state["runs"] == self.runs):
                generator.set_state(state["generator"].cpu())
