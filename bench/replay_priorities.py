"""Prioritised draws (Schaul et al. 2016, arXiv 1511.05952, proportional variant): arithmetic on the host.

A draw of a few hundred among a million and the write-back of their priorities take half a millisecond together with a
sum tree; a cumulative sum over all of them would take several milliseconds a draw. Light on purpose: no torch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.replay_queue import Ints

Floats = NDArray[np.float64]


class SumTree:
    """Weights at places 0 .. size - 1 that are drawn in proportion; a draw and a change cost O(log size) each.

    Node i holds the sum of nodes 2 i and 2 i + 1 and is always computed from them, so equal weights make equal trees
    whatever came before.

    Args:
        places: how many places are needed; size is the next power of two.
    """

    def __init__(self, places: int) -> None:
        self.depth = max(places - 1, 1).bit_length()
        self.size = 1 << self.depth
        self._nodes: Floats = np.zeros(2 * self.size)

    @property
    def weights(self) -> Floats:
        """The weights by place (a view)."""
        return self._nodes[self.size :]

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._nodes[1])

    def set(self, places: Ints, weights: Floats | float) -> None:
        """Give places new weights; of a place that occurs twice the last one counts."""
        nodes = places + self.size
        self._nodes[nodes] = weights
        for _ in range(self.depth):
            nodes = nodes >> 1
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, mass: Floats) -> Ints:
        """Places at which the running sum of the weights passes `mass`, in [0, total); never one of weight 0."""
        nodes = np.ones(len(mass), np.int64)
        for _ in range(self.depth):
            left, right = self._nodes[2 * nodes], self._nodes[2 * nodes + 1]
            # Rounding may leave a little too much mass for the nodes on the right.
            go_right = (mass >= left) & (right > 0)
            mass = np.where(go_right, mass - left, mass)
            nodes = 2 * nodes + go_right
        return nodes - self.size


class Priorities:
    """Priorities of one run's slices. A slice is known by its number, counted since the run began.

    The chance of slice i is p_i^alpha / sum p^alpha. Its weight in the loss, (n p_i^alpha / sum p^alpha)^-beta over the
    largest of the batch, takes back the bias of drawing so (fully for beta = 1). A new slice has the largest priority
    there is, the very first ones 1.

    Args:
        capacity: the most slices kept at once.
        alpha: 0 draws uniformly.
        beta: 0 leaves the bias.
    """

    def __init__(self, capacity: int, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta
        self._tree = SumTree(capacity)

    def add(self, first: int, count: int) -> None:
        """Slices `first` to `first + count - 1` are new."""
        largest = float(self._tree.weights.max())
        self._tree.set(self._places(first, count), largest if largest > 0 else 1.0)

    def remove(self, first: int, count: int) -> None:
        """Slices `first` to `first + count - 1` are gone."""
        self._tree.set(self._places(first, count), 0.0)

    def set(self, numbers: Ints, priorities: NDArray[np.float32]) -> None:
        """Give slices priorities above 0; one that is not a number (a run that diverged) changes nothing."""
        known = np.isfinite(priorities)
        self._tree.set(numbers[known] % self._tree.size, priorities[known].astype(np.float64) ** self.alpha)

    def draw(self, generator: np.random.Generator, count: int, first: int) -> tuple[Ints, NDArray[np.float32]]:
        """Draw slices with replacement.

        Args:
            generator: makes `count` draws.
            count: B.
            first: number of the oldest slice that is kept.

        Returns:
            Numbers and weights in the loss, each (B,).
        """
        places = self._tree.find(generator.random(count) * self._tree.total)
        drawn = self._tree.weights[places]
        # n and the sum are the same for all, so that they cancel against the largest.
        weights = (drawn / drawn.min()) ** -self.beta
        return first + (places - first) % self._tree.size, weights.astype(np.float32)

    def powers(self, first: int, count: int) -> Floats:
        """p^alpha of slices `first` to `first + count - 1` (a copy): what a checkpoint keeps."""
        return self._tree.weights[self._places(first, count)]

    def load(self, first: int, powers: Floats) -> None:
        """Take over what `powers` gave; every other slice is forgotten."""
        self._tree = SumTree(self._tree.size)
        self._tree.set(self._places(first, len(powers)), powers)

    def _places(self, first: int, count: int) -> Ints:
        return np.arange(first, first + count) % self._tree.size
