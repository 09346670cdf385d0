"""Which parameters of a world model depend on the sizes of a task, and along which axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TRANSITION_NETWORKS = ("dynamics", "reward_head", "online_q", "target_q")
"""Networks whose input ends with the action."""
EMBEDDING = "tasks.embedding"


@dataclass(frozen=True)
class ParameterSizes:
    """Sizes that parameters depend on, of a state model: `context` is that of latent state and embedding."""

    obs: int
    embedding: int
    context: int
    action: int

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> ParameterSizes:
        """Those of a model with these parameters."""
        embedding = parameters[EMBEDDING].shape[2] if EMBEDDING in parameters else 0
        first = parameters.get("encoder.hidden.0.linear.weight")  # an encoder of images has none
        return cls(
            obs=0 if first is None else first.shape[1] - embedding,
            embedding=embedding,
            context=parameters["policy_head.hidden.0.linear.weight"].shape[1],
            action=parameters["policy_head.last.bias"].shape[2] // 2,
        )

    def blocks(self, name: str) -> tuple[int, list[int]]:
        """The axis of a parameter that depends on the task's sizes, and what lies along it; axis -1 where none does."""
        network, _, part = name.partition(".")
        if part == "hidden.0.linear.weight" and network in TRANSITION_NETWORKS:
            return 1, [self.context, self.action]
        if name == "encoder.hidden.0.linear.weight":
            return 1, [self.obs, self.embedding]
        if network == "policy_head" and part.startswith("last."):
            return 2, [self.action, self.action]  # mean, log standard deviation
        return -1, []


@torch.no_grad()
def copy_common(to: Tensor, ours: Sequence[int], source: Tensor, theirs: Sequence[int], axis: int) -> None:
    """Copy what each of `ours`, the blocks of `to` along an axis, has in common with that of `theirs` in `source`."""
    for part, taken in zip(to.split(list(ours), axis), source.split(list(theirs), axis), strict=True):
        common = min(part.shape[axis], taken.shape[axis])
        part.narrow(axis, 0, common).copy_(taken.narrow(axis, 0, common))
