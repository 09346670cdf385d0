"""What the loop holds an agent to. A breach of the protocol is one line that names the agent, the member and the rule.

See `agents.protocol`; `bench agents check NAME` runs the whole set of checks (`bench.agent_checks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from agents.protocol import ReplaySpec
from bench.errors import UserError

METHODS = ("act", "updates_due", "update", "state_dict", "load_state_dict")
OBS_KINDS = ("state", "rgb")


class ProtocolError(UserError):
    """An agent does not do what `agents.protocol` asks of it."""


def check_class(agent_class: Any) -> None:
    """What an agent's class says of itself.

    Raises:
        ProtocolError: something is missing or of the wrong kind.
    """
    name = getattr(agent_class, "__qualname__", repr(agent_class))
    for member in ("Hyperparameters", "obs_kinds", "max_fleet", *METHODS):
        if not hasattr(agent_class, member):
            raise ProtocolError(f"{name} lacks {member}, which agents.protocol.Agent asks for")
    for method in METHODS:
        if not callable(getattr(agent_class, method)):
            raise ProtocolError(f"{name}.{method} must be a method")
    model = agent_class.Hyperparameters
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ProtocolError(f"{name}.Hyperparameters must be a pydantic model, not {model!r}")
    if not (model.model_config.get("frozen") and model.model_config.get("extra") == "forbid"):
        raise ProtocolError(
            f"{name}.Hyperparameters must be frozen and forbid unknown keys: "
            'model_config = ConfigDict(frozen=True, extra="forbid")'
        )
    kinds = agent_class.obs_kinds
    if not (isinstance(kinds, tuple) and kinds and set(kinds) <= set(OBS_KINDS)):
        raise ProtocolError(f"{name}.obs_kinds must be a tuple of some of {', '.join(OBS_KINDS)}, not {kinds!r}")
    pads = getattr(agent_class, "pads", False)
    if not isinstance(pads, bool):
        raise ProtocolError(
            f"{name}.pads must be True or False (whether runs of a fleet may differ in size), not {pads!r}"
        )
    most = agent_class.max_fleet
    if not (most is None or (isinstance(most, int) and most >= 1)):
        raise ProtocolError(f"{name}.max_fleet must be None (any number of runs) or at least 1, not {most!r}")


def check_instance(agent: Any) -> None:
    """What an agent says when it has been made.

    Raises:
        ProtocolError: something is missing or of the wrong kind.
    """
    name = type(agent).__qualname__
    for member in ("replay", "seed_agent_steps"):
        if not hasattr(agent, member):
            raise ProtocolError(f"{name}.__init__ must set self.{member}, which agents.protocol.Agent asks for")
    if not isinstance(agent.replay, ReplaySpec):
        raise ProtocolError(f"{name}.replay must be an agents.protocol.ReplaySpec, not {agent.replay!r}")
    steps = agent.seed_agent_steps
    if not isinstance(steps, int) or steps < 0:
        raise ProtocolError(f"{name}.seed_agent_steps must be a whole number of at least 0, not {steps!r}")


def check_action(agent: Any, action: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """An action is a float32 tensor (R, N, A) on the agent's device, within [-1, 1]; NaN passes, the loop looks for it.

    Raises:
        ProtocolError: it is not.
    """
    what = f"{type(agent).__qualname__}.act must return a float32 tensor (R, N, A) = {shape} in [-1, 1]"
    if not isinstance(action, Tensor):
        raise ProtocolError(f"{what}, not a {type(action).__name__}")
    if tuple(action.shape) != shape or action.dtype != torch.float32:
        raise ProtocolError(f"{what}, not {str(action.dtype).removeprefix('torch.')} {tuple(action.shape)}")
    if action.device.type != device.type:
        raise ProtocolError(f"{what} on {device}, not on {action.device}")
    if action.requires_grad:
        raise ProtocolError(f"{what} without a gradient: decorate act with @torch.no_grad()")


def check_range(agent: Any, largest: float) -> None:
    """The largest absolute value of an action is at most 1.

    Raises:
        ProtocolError: it is larger.
    """
    if largest > 1:
        raise ProtocolError(f"{type(agent).__qualname__}.act must return actions in [-1, 1], not {largest:.6g}")


def check_updates_due(agent: Any, due: Any) -> None:
    """Updates owed are a whole number.

    Raises:
        ProtocolError: they are not.
    """
    if not isinstance(due, int) or due < 0:
        raise ProtocolError(
            f"{type(agent).__qualname__}.updates_due must return a whole number of at least 0, not {due!r}"
        )


def check_metrics(agent: Any, metrics: Any, runs: int) -> None:
    """Metrics are named tensors with one number for each run.

    Raises:
        ProtocolError: they are not.
    """
    what = f"{type(agent).__qualname__}.update must return a dict of tensors (R,) = ({runs},) without gradients"
    if not isinstance(metrics, Mapping):
        raise ProtocolError(f"{what}, not {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(value, Tensor):
            raise ProtocolError(f"{what}; '{name}' is a {type(value).__name__}")
        if tuple(value.shape) != (runs,):
            raise ProtocolError(f"{what}; '{name}' has shape {tuple(value.shape)}")
        if value.requires_grad:
            raise ProtocolError(f"{what}; '{name}' carries one: detach it")
