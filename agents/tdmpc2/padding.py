"""Padded fleets: runs whose observations and actions differ in size, stored as those of the largest.

A run sees zeros where its observation ends, and the dimensions beyond its action are masked as in a model of several
tasks. Weights of what a run lacks start at zero and get no gradient, so that they stay zero, as do Adam's moments: each
run is what it would be alone, and its state is written without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from agents.protocol import AgentSpec
from agents.tdmpc2.hyperparameters import Hyperparameters
from agents.tdmpc2.parameter_sizes import ParameterSizes, copy_common
from agents.tdmpc2.tasks import TaskContext
from bench.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")


class Padding:
    """What a fleet of R runs of different sizes needs to know of them.

    Args:
        spec: `sizes` has those of each run.
        hp: its rules for the discount and the planner's iterations.
        device: of the fleet.

    Attributes:
        context: (R, 1), which holds for every sample of a run: its action and no embedding.

    Raises:
        UserError: several tasks in one model, images, or actions whose plans take different numbers of iterations.
    """

    def __init__(self, spec: AgentSpec, hp: Hyperparameters, device: torch.device) -> None:
        if spec.tasks or spec.obs_kind != "state":
            raise UserError("tdmpc2 pads runs of one task with state observations only")
        if len({hp.padding_class(own.action) for own in spec.sizes}) > 1:
            raise UserError("actions of below and of at least 20 dimensions are planned differently: use two fleets")
        self.spec = spec
        self._own = [ParameterSizes(own.obs, 0, hp.latent_dim, own.action) for own in spec.sizes]
        self._whole = ParameterSizes(spec.obs_shape[0], 0, hp.latent_dim, spec.action_size)
        sizes = torch.tensor([[own.action] for own in spec.sizes], device=device)  # (R, 1)
        mask = (torch.arange(spec.action_size, device=device) < sizes[..., None]).to(torch.get_default_dtype())
        self.context = TaskContext(
            embedding=torch.zeros(*sizes.shape, 0, device=device),
            action_mask=mask,
            action_size=mask.sum(-1),
            discount=torch.full(sizes.shape, hp.discount(spec.episode_agent_steps), device=device),
        )

    def alone(self, run: int) -> AgentSpec:
        """What run `run` would be told alone."""
        own = self.spec.sizes[run]
        return replace(self.spec, obs_shape=(own.obs,), action_size=own.action, sizes=())

    def pad(self, name: str, own: Tensor, run: int) -> Tensor:
        """A parameter of run `run`, or something of its shape, as the fleet holds it."""
        return _resize(name, own, self._own[run], self._whole)

    def cut(self, name: str, padded: Tensor, run: int) -> Tensor:
        """The reverse of `pad`."""
        return _resize(name, padded, self._whole, self._own[run])

    def pad_state(self, state: Mapping[str, Any], run: int, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The state of run `run`, as it is alone, with the fleet's sizes.

        Args:
            state: of the agent.
            run: which.
            names: for each optimiser in the state, the names of its parameters in order.
        """
        return _resize_state(state, names, self._own[run], self._whole)

    def cut_state(self, state: Mapping[str, Any], run: int, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The reverse of `pad_state`."""
        return _resize_state(state, names, self._whole, self._own[run])


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimiser's parameters, in order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _resize(name: str, tensor: Tensor, source: ParameterSizes, target: ParameterSizes) -> Tensor:
    axis, theirs = source.blocks(name)
    if axis < 0:
        return tensor
    _, ours = target.blocks(name)
    shape = list(tensor.shape)
    shape[axis] = sum(ours)
    resized = tensor.new_zeros(shape)
    copy_common(resized, ours, tensor, theirs, axis)
    return resized


def _resize_state(
    state: Mapping[str, Any], names: Mapping[str, Sequence[str]], source: ParameterSizes, target: ParameterSizes
) -> dict[str, Any]:
    resized = dict(state)
    resized["model"] = {name: _resize(name, part, source, target) for name, part in state["model"].items()}
    for optimizer, parameters in names.items():
        resized[optimizer] = [
            {key: _resize(name, part, source, target) if key in MOMENTS else part for key, part in one.items()}
            for name, one in zip(parameters, state[optimizer], strict=True)
        ]
    resized["plan_means"] = {
        stream: nn.functional.pad(mean, (0, target.action - source.action)).clone()  # (H, N, A); a negative pad cuts
        for stream, mean in state["plan_means"].items()
    }
    return resized
