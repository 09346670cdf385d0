"""What can go wrong while an environment runs."""

from __future__ import annotations

from collections.abc import Sequence


class ActionError(ValueError):
    """An agent gave an action that no environment takes: wrong shape, NaN, or outside [-1, 1]."""


class SimulatorError(RuntimeError):
    """The simulator broke down: it diverged, or gave NaN. Names the task and the seed of the episode."""


class WorkerError(RuntimeError):
    """A worker process of a pool raised, died or did not answer in time; the pool is closed.

    Attributes:
        indices: the environments concerned: the one that raised, or all that the worker held.
        tasks: their task names.
    """

    def __init__(self, message: str, indices: Sequence[int], tasks: Sequence[str]) -> None:
        super().__init__(message)
        self.indices = tuple(indices)
        self.tasks = tuple(tasks)
