"""How a worker ends: its exit codes, and errors that stop some runs of a fleet and leave the others whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_LOST = 0, 1, 75, 76
"""Every run done; some run failed (failed.json says why); stopped at a checkpoint, the same command goes on; another
process has taken a run over, and nothing more was written to it."""


class RunsFailed(Exception):
    """Some runs of a fleet cannot go on; the others can, from their newest checkpoint.

    Attributes:
        errors: why, by the run's place in the fleet.
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        super().__init__(f"{len(errors)} of the fleet's runs failed")
        self.errors = dict(errors)

    @classmethod
    def of_environments(cls, error: BaseException, indices: Sequence[int], per_run: int) -> RunsFailed:
        """From the environments that failed, which lie run by run with `per_run` for each."""
        return cls({index // per_run: error for index in indices})


class NaNError(RuntimeError):
    """A run's agent chose an action, or reported a loss, that is not a number."""
