"""What the agent remembers of the environments it acts in, from one agent step to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """The recurrent states of N environments of each of R runs, and the actions taken in them."""

    deter: Tensor  # (R, N, D)
    stoch: Tensor  # (R, N, S C)
    action: Tensor  # (R, N, A)
    fresh: Tensor  # (R, N) bool: nothing has been seen yet

    @classmethod
    def blank(cls, runs: int, num_envs: int, sizes: Sequence[int], device: torch.device) -> Memory:
        """Of environments that were never acted in; `sizes` are D, S C and A."""
        deter, stoch, action = (torch.zeros(runs, num_envs, size, device=device) for size in sizes)
        return cls(deter, stoch, action, torch.ones(runs, num_envs, dtype=torch.bool, device=device))

    def blank_for(self, num_envs: int) -> Memory:
        """The same for another number of environments, none of which was acted in."""
        sizes = [part.shape[2] for part in (self.deter, self.stoch, self.action)]
        return Memory.blank(len(self.fresh), num_envs, sizes, self.fresh.device)

    def state(self, run: int) -> dict[str, Tensor]:
        """Of one run, on the host."""
        return {name: part[run].cpu().clone() for name, part in self._asdict().items()}

    @classmethod
    def of_states(cls, states: Sequence[Mapping[str, Tensor]], device: torch.device) -> Memory:
        """The memories of single runs put together; blank where they saw different numbers of environments."""
        counts = {len(state["fresh"]) for state in states}
        if len(counts) == 1:
            return cls(*(torch.stack([state[name] for state in states]).to(device) for name in cls._fields))
        sizes = [states[0][name].shape[1] for name in ("deter", "stoch", "action")]
        return cls.blank(len(states), max(counts), sizes, device)
