"""Every agent by name, and its hyperparameters: those of the suite, and what users add (see `agents.entries`).

Light on purpose: listing agents or checking a sweep's hyperparameters loads no torch, unless a user's agent does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError

from agents import entries
from agents.entries import AgentEntry
from agents.presets import Preset
from bench.errors import UserError, unknown
from bench.tasks import Task

BUILT_IN = (
    AgentEntry(
        name="tdmpc2",
        agent="agents.tdmpc2.agent:TDMPC2",
        hyperparameters="agents.tdmpc2.hyperparameters:Hyperparameters",
        obs_kinds=("state", "rgb"),
        max_fleet=None,
        summary="MPPI planning in the latent space of a decoder-free world model (Hansen, Su, Wang 2024)",
        multitask=True,
        capturable=True,
        pads=True,
    ),
    AgentEntry(
        name="sac",
        agent="baselines.sac:SAC",
        hyperparameters="baselines.hyperparameters.sac:SAC",
        obs_kinds=("state", "rgb"),
        max_fleet=None,
        summary="soft actor-critic with learned temperature (Haarnoja et al. 2018)",
    ),
    AgentEntry(
        name="tdmpc",
        agent="baselines.tdmpc.agent:TDMPC",
        hyperparameters="baselines.tdmpc.hyperparameters:Hyperparameters",
        obs_kinds=("state", "rgb"),
        max_fleet=None,
        summary="MPPI planning with a learned latent model and prioritised replay (Hansen, Wang, Su 2022)",
    ),
    AgentEntry(
        name="drqv2",
        agent="baselines.drqv2:DrQv2",
        hyperparameters="baselines.hyperparameters.drqv2:DrQv2",
        obs_kinds=("rgb",),
        max_fleet=None,
        summary="actor-critic on randomly shifted pixels with n-step returns (Yarats et al. 2021)",
    ),
    AgentEntry(
        name="curl",
        agent="baselines.curl:CURL",
        hyperparameters="baselines.hyperparameters.curl:CURL",
        obs_kinds=("rgb",),
        max_fleet=None,
        summary="soft actor-critic from pixels with a contrastive loss (Laskin, Srinivas, Abbeel 2020)",
    ),
    AgentEntry(
        name="dreamerv3",
        agent="baselines.dreamerv3.agent:DreamerV3",
        hyperparameters="baselines.dreamerv3.hyperparameters:Hyperparameters",
        obs_kinds=("state", "rgb"),
        max_fleet=None,
        summary="a policy learned in the imagination of a recurrent world model (Hafner et al. 2023)",
    ),
    AgentEntry(
        name="simbav2",
        agent="baselines.simbav2:SimbaV2",
        hyperparameters="baselines.hyperparameters.simbav2:SimbaV2",
        obs_kinds=("state",),
        max_fleet=None,
        summary="soft actor-critic on the unit sphere with a distributional critic (Lee et al. 2025)",
    ),
)


def agents() -> dict[str, AgentEntry]:
    """Every known agent by name; one from an entry point may not take a built-in name."""
    built_in = {entry.name: entry for entry in BUILT_IN}
    return built_in | {entry.name: entry for entry in entries.installed(frozenset(built_in))}


def get(name: str) -> AgentEntry:
    """One agent by name, or by `module:Class`.

    Raises:
        UserError: no such agent; names the nearest, or what is missing.
    """
    if ":" in name:
        return entries.of_path(name)
    known = agents()
    if name not in known:
        raise unknown("agent", name, known)
    return known[name]


def choose_obs_kind(name: str, wanted: str | None) -> str:
    """The kind of observation that an agent trains on: the one wanted, else its first.

    Raises:
        UserError: an unknown agent, or a kind that it does not take.
    """
    kinds = get(name).obs_kinds
    if wanted is not None and wanted not in kinds:
        raise unknown(f"observation kind of {name}", wanted, kinds)
    return wanted or kinds[0]


def task_defaults(name: str, task: Task | None, obs: str) -> dict[str, Any]:
    """What an agent sets by the task unless the user says otherwise (settings by domain, classes of difficulty).

    A hyperparameters model says so by `@classmethod task_defaults(cls, task: Task, obs: str) -> dict[str, Any]`; most
    have none.

    Args:
        name: the agent.
        task: a row of the task table; None gives no defaults.
        obs: observation kind, "state" or "rgb".

    Raises:
        UserError: no such agent, or it sets a hyperparameter that it lacks.
    """
    model = get(name).hyperparameters_model()
    rule = getattr(model, "task_defaults", None)
    defaults: dict[str, Any] = {} if rule is None or task is None else rule(task, obs)
    for key in defaults:
        if key not in model.model_fields:
            raise unknown(f"hyperparameter of {name} (set by its task_defaults)", key, model.model_fields)
    return defaults


def presets(name: str) -> Mapping[str, Preset]:
    """An agent's named sets of hyperparameters; the first is its defaults. A user's agent need not have any."""
    found: Mapping[str, Preset] = getattr(get(name).hyperparameters_model(), "presets", {})
    return found


def settable(name: str) -> list[str]:
    """What a user may set of an agent: its hyperparameters, and `preset` where it has any."""
    return [*get(name).hyperparameters_model().model_fields, *(["preset"] if presets(name) else [])]


@cache
def free_hyperparameters(name: str) -> frozenset[str]:
    """Hyperparameters of an agent that change neither its speed nor its memory, as its model says by `free`; none of an
    agent that is not here."""
    try:
        found: frozenset[str] = getattr(get(name).hyperparameters_model(), "free", frozenset())
    except UserError:
        return frozenset()
    return found


def _with_preset(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What the user set, with the values of a preset in place of its name."""
    given, known = dict(overrides), presets(name)
    if "preset" not in given or not known:
        return given
    if given["preset"] not in known:
        raise unknown(f"preset of {name}", str(given["preset"]), known)
    if "preset" in get(name).hyperparameters_model().model_fields:
        return given  # the model has it as a hyperparameter, and fills in the values itself
    return {**known[given.pop("preset")].values, **given}


def multitask_defaults(name: str, tasks: Sequence[Task], given: Mapping[str, Any]) -> dict[str, Any]:
    """What an agent that learns several tasks offline sets for them unless the user says otherwise.

    A hyperparameters model says so by `@classmethod multitask_defaults(cls, tasks, given) -> dict[str, Any]`, which
    also sees what the user set.

    Raises:
        UserError: no such agent, or it cannot learn several tasks.
    """
    if not get(name).multitask:
        able = ", ".join(entry.name for entry in agents().values() if entry.multitask)
        raise UserError(f"{name} cannot learn several tasks offline: valid are {able}")
    rule = getattr(get(name).hyperparameters_model(), "multitask_defaults", None)
    return {} if rule is None else dict(rule(tasks, given))


def resolve_hyperparameters(
    name: str,
    overrides: Mapping[str, Any],
    task: Task | None = None,
    obs: str = "state",
    tasks: Sequence[Task] = (),
) -> dict[str, Any]:
    """All hyperparameters of an agent as plain JSON values: `overrides`, else what it sets by the task, else its own.

    Args:
        name: the agent.
        overrides: values that the user set; `preset` stands for those of one of its presets.
        task: the task that it will learn; None leaves out what the agent sets by the task.
        obs: observation kind, "state" or "rgb".
        tasks: those that it will learn offline, in place of `task`.

    Raises:
        UserError: an unknown agent or key, or a value of the wrong type or out of range.
    """
    model = get(name).hyperparameters_model()
    given = _with_preset(name, overrides)
    for key in given:
        if key not in model.model_fields:
            raise unknown(f"hyperparameter of {name}", key, settable(name))
    defaults = multitask_defaults(name, tasks, given) if tasks else task_defaults(name, task, obs)
    try:
        values: dict[str, Any] = model(**(defaults | given)).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "hyperparameters"
        raise UserError(f"{name}: {where} = {first.get('input')!r}: {first['msg']}") from error
    return values
