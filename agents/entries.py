"""Entries of the registry: where an agent lives, and how those that users add are found.

A user adds one by an entry point of an installed package, or names any class as `module:Class`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache, reduce
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel

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
    multitask: bool = False
    """Whether it can learn several tasks offline."""
    capturable: bool = False
    """Whether acting and updating can be recorded as CUDA graphs: see `agents.protocol.Capturable`."""
    pads: bool = False
    """Whether the runs of a fleet may differ in the sizes of observations and actions: see `agents.protocol`."""

    def load(self) -> Any:
        """The agent class; imports torch."""
        return _resolve(self.agent)

    def hyperparameters_model(self) -> type[BaseModel]:
        """The frozen pydantic model of its hyperparameters; imports no torch for the suite's own agents."""
        model: type[BaseModel] = _resolve(self.hyperparameters)
        return model


def _resolve(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return reduce(getattr, attribute.split("."), import_module(module))


@cache
def installed(taken: frozenset[str]) -> tuple[AgentEntry, ...]:
    """The agents that other packages add; read once, since a scan of the installed packages takes milliseconds.

    Args:
        taken: names that none of them may have.

    Raises:
        UserError: one has such a name, cannot be loaded, or lacks what the protocol asks for.
    """
    found = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in taken:
            raise UserError(
                f"agent '{point.name}' of {point.value} takes a name that is in use: rename its entry point"
            )
        try:
            agent_class = point.load()
        except Exception as error:
            raise UserError(
                f"the agent of entry point '{point.name}' cannot be loaded from {point.value}: {error!r}; "
                "mend or uninstall that package"
            ) from error
        found.append(of_class(point.name, point.value, agent_class))
    return tuple(found)


@cache
def of_path(path: str) -> AgentEntry:
    """The agent that `module:Class` names; the module may also lie in the current folder.

    Raises:
        UserError: there is no such module or class, or it lacks what the protocol asks for.
    """
    module, _, name = path.partition(":")
    if _find_module(module) is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
    if _find_module(module) is None:
        raise UserError(
            f"agent '{path}': there is no module {module}: run in its folder, install its package or set PYTHONPATH"
        )
    try:
        loaded = import_module(module)
    except Exception as error:
        raise UserError(f"agent '{path}': module {module} cannot be imported: {error!r}") from error
    classes = [key for key, value in vars(loaded).items() if isinstance(value, type) and value.__module__ == module]
    if name not in classes:
        raise unknown(f"class of {module}", name, classes)
    return of_class(path, path, getattr(loaded, name))


def _find_module(name: str) -> Any:
    """Where a module would be imported from; None if nowhere."""
    try:
        return importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        return None


def of_class(name: str, path: str, agent_class: Any) -> AgentEntry:
    """The row of a user's agent, from its class.

    Raises:
        UserError: the class does not have what `agents.protocol.Agent` asks for.
    """
    from agents.protocol import Capturable  # loads torch, as the user's agent has done
    from bench.contract import check_class

    check_class(agent_class)
    return AgentEntry(
        name=name,
        agent=path,
        hyperparameters=f"{path}.Hyperparameters",
        obs_kinds=agent_class.obs_kinds,
        max_fleet=agent_class.max_fleet,
        summary=(agent_class.__doc__ or "").strip().split("\n")[0],
        multitask=getattr(agent_class, "multitask", False),
        capturable=issubclass(agent_class, Capturable),
        pads=getattr(agent_class, "pads", False),
    )
