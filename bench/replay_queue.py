"""The array that replay keeps its indices in. Light on purpose: no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Queue:
    """A first-in, first-out array of int64 that is read as one contiguous array; appending is O(1) amortised."""

    def __init__(self) -> None:
        self._data: Ints = np.empty(64, np.int64)
        self._head = 0
        self._tail = 0

    def __len__(self) -> int:
        return self._tail - self._head

    @property
    def live(self) -> Ints:
        """What is in the queue, oldest first (a view)."""
        return self._data[self._head : self._tail]

    def append(self, values: Ints | Sequence[int]) -> None:
        """Put values at the end."""
        count = len(values)
        if self._tail + count > len(self._data):
            live = self.live
            # Moving costs as much as what lives, so leave at least as much room free as that.
            data = np.empty(max(64, 2 * (len(live) + count)), np.int64)
            data[: len(live)] = live
            self._data, self._head, self._tail = data, 0, len(live)
        self._data[self._tail : self._tail + count] = values
        self._tail += count

    def pop(self, count: int) -> Ints:
        """Take values off the front (a copy)."""
        values = self.live[:count].copy()
        self._head += len(values)
        return values
