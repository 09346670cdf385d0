"""Every agent by name: those of the suite and those that users add by an entry point.

Light on purpose: listing agents or checking a sweep's hyperparameters loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.errors import UserError, unknown

ENTRY_POINT_GROUP = "tdmpc2_bench.agents"


@dataclass(frozen=True)
class AgentEntry:
    """Where an agent and its hyperparameters live, as `module:attribute`."""

    name: str
    agent: str
    hyperparameters: str
    obs_kinds: tuple[str, ...]
    max_fleet: int | None
    summary: str

    def load(self) -> Any:
        """The agent class; imports torch."""
        return _resolve(self.agent)

    def hyperparameters_model(self) -> type[BaseModel]:
        """The frozen pydantic model of its hyperparameters; imports no torch for the suite's own agents."""
        model: type[BaseModel] = _resolve(self.hyperparameters)
        return model


BUILT_IN = (
    AgentEntry(
        name="tdmpc2",
        agent="agents.tdmpc2.agent:TDMPC2",
        hyperparameters="agents.tdmpc2.hyperparameters:Hyperparameters",
        obs_kinds=("state",),
        max_fleet=None,
        summary="MPPI planning in the latent space of a decoder-free world model (Hansen, Su, Wang 2024)",
    ),
    AgentEntry(
        name="sac",
        agent="baselines.sac:SAC",
        hyperparameters="baselines.hyperparameters.sac:SAC",
        obs_kinds=("state",),
        max_fleet=None,
        summary="soft actor-critic with learned temperature (Haarnoja et al. 2018)",
    ),
)


def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return reduce(getattr, attribute.split("."), import_module(module))


def agents() -> dict[str, AgentEntry]:
    """Every known agent by name; one from an entry point may not take a built-in name."""
    found = {entry.name: entry for entry in BUILT_IN}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in found:
            raise UserError(
                f"agent '{point.name}' of {point.value} takes a name that is in use: rename its entry point"
            )
        agent_class = point.load()
        found[point.name] = AgentEntry(
            name=point.name,
            agent=point.value,
            hyperparameters=f"{point.value}.Hyperparameters",
            obs_kinds=agent_class.obs_kinds,
            max_fleet=agent_class.max_fleet,
            summary=(agent_class.__doc__ or "").strip().split("\n")[0],
        )
    return found


def get(name: str) -> AgentEntry:
    """One agent by name.

    Raises:
        UserError: no such agent; names the nearest.
    """
    known = agents()
    if name not in known:
        raise unknown("agent", name, known)
    return known[name]


def resolve_hyperparameters(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """All hyperparameters of an agent with `overrides` applied, as plain JSON values.

    Raises:
        UserError: an unknown agent or key, or a value of the wrong type or out of range.
    """
    model = get(name).hyperparameters_model()
    for key in overrides:
        if key not in model.model_fields:
            raise unknown(f"hyperparameter of {name}", key, model.model_fields)
    try:
        values: dict[str, Any] = model(**overrides).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "hyperparameters"
        raise UserError(f"{name}: {where} = {first.get('input')!r}: {first['msg']}") from error
    return values
