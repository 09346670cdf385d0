"""What steps many environments at once, as the training loop sees it. Light on purpose: loads no simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepResult:
    """What one agent step gave, a row for each index that was asked for, in that order."""

    obs: NDArray[Any]  # (n, *obs_shape) float32 or uint8
    reward: NDArray[np.float32]  # (n,) summed over the action repeat
    terminated: NDArray[np.bool_]  # (n,) the simulator ended the episode
    truncated: NDArray[np.bool_]  # (n,) its time is up
    success: NDArray[np.float32]  # (n,) 0.0 or 1.0 at this agent step


class Pool(Protocol):
    """M environments of equal shapes; `bench.envs.pool.EnvPool` is one."""

    def reset(self, indices: Sequence[int] | NDArray[np.integer[Any]], seeds: Sequence[int]) -> NDArray[Any]:
        """Start an episode in each of `indices`. Returns observations (n, *obs_shape)."""
        ...

    def step_send(self, actions: Any, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None) -> None:
        """Begin an agent step with actions (n, A); all M environments by default."""
        ...

    def step_recv(self) -> StepResult:
        """Wait for the agent step that `step_send` began."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...
