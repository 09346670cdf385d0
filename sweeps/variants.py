"""The agents of a sweep file with all their hyperparameters: entries × combinations of the grid, on each task."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import registry
from bench.errors import UserError, unknown
from bench.runspec import Init
from bench.tasks import Task
from sweeps import spec
from sweeps.document import Document, KeyPath
from sweeps.selectors import select_tasks
from sweeps.spec import AgentChoice, SweepFile

ANY_AGENT = "agent"
"""First part of an override that holds for every agent with that hyperparameter."""

Resolver = Callable[[Mapping[str, Any], Task], tuple[dict[str, Any], Init | None]]
"""Settings of an agent entry and a task -> all hyperparameters, and the checkpoint that the run starts from."""

LABEL_CHARS = 32
"""A label made from overrides is cut at this length, with a hash behind it."""


@dataclass(frozen=True)
class Variant:
    """An agent with all its hyperparameters on each task; they differ by task where the agent sets some by the task."""

    agent: str
    label: str
    obs: str
    hyperparameters: dict[str, dict[str, Any]]
    """By the task's name."""
    init: dict[str, Init | None]
    """The checkpoint that runs start from, by the task's name."""


@dataclass(frozen=True)
class _Setting:
    """One hyperparameter of one agent, and the key it came from."""

    key: str
    value: Any
    where: KeyPath


def all_variants(doc: Document, sweep: SweepFile, tasks: Sequence[Task], folder: Path) -> list[Variant]:
    """Every agent entry × its combinations of the grid, resolved for each task; `folder` has the sweep's runs."""
    entries = []
    for index, choice in enumerate(sweep.agents):
        where = spec.agent_path(doc, index)
        try:
            registry.get(choice.agent)
            entries.append((where, choice))
        except UserError as error:
            raise doc.error(where, error) from error
    names = [choice.agent for choice in sweep.agents]
    overrides = {key: _targets(doc, ("overrides", key), key, names) for key in sweep.overrides}
    grid = {key: _targets(doc, ("grid", key), key, names) for key in sweep.grid}
    for key, values in sweep.grid.items():
        if len({json.dumps(value, default=str) for value in values}) < len(values):
            raise doc.error(("grid", key), "a value is given twice: keep one")

    variants: list[Variant] = []
    tasks_learnt = tasks
    if sweep.data is not None:
        tasks = tasks[:1]  # the settings are the same for all
    for where, choice in entries:
        try:
            obs = registry.choose_obs_kind(choice.agent, choice.obs)
        except UserError as error:
            raise doc.error((*where, "obs"), error) from error
        resolver = (
            _resolver(doc, where, choice, obs, folder)
            if sweep.data is None
            else _multitask_resolver(doc, where, choice, tasks_learnt)
        )
        own = _own_settings(doc, where, choice)
        fixed = own + [
            _Setting(key.rpartition(".")[2], sweep.overrides[key], ("overrides", key))
            for key, targets in overrides.items()
            if choice.agent in targets
        ]
        axes = [
            [
                _Setting(key.rpartition(".")[2], value, ("grid", key, index))
                for index, value in enumerate(sweep.grid[key])
            ]
            for key, targets in grid.items()
            if choice.agent in targets
        ]
        for combination in itertools.product(*axes):
            found = {task.name: _resolve(doc, where, [*fixed, *combination], task, resolver) for task in tasks}
            resolved = {name: hyperparameters for name, (hyperparameters, _) in found.items()}
            label = _label(choice, resolved, fixed, combination, tasks, resolver)
            variants.append(
                Variant(choice.agent, label, obs, resolved, {name: init for name, (_, init) in found.items()})
            )
    _check_distinct(doc, variants)
    return variants


def _own_settings(doc: Document, where: KeyPath, choice: AgentChoice) -> list[_Setting]:
    inside: KeyPath = () if isinstance(doc.data["agents"], dict) else ("hyperparameters",)
    return [_Setting(key, value, (*where, *inside, key)) for key, value in choice.hyperparameters.items()]


def _targets(doc: Document, where: KeyPath, key: str, names: Sequence[str]) -> set[str]:
    """The agents of the sweep that `agent.x` or `<name>.x` sets x for."""
    scope, dot, field = key.rpartition(".")
    if not dot or (scope != ANY_AGENT and scope not in names):
        scopes = [f"{scope}.<hyperparameter>" for scope in (ANY_AGENT, *dict.fromkeys(names))]
        raise doc.error(where, f"must be one of {', '.join(scopes)}")
    fields = {name: registry.settable(name) for name in names}
    if scope != ANY_AGENT:
        if field not in fields[scope]:
            raise doc.error(where, unknown(f"hyperparameter of {scope}", field, fields[scope]))
        return {scope}
    targets = {name for name in names if field in fields[name]}
    if not targets:
        known = {field for of_agent in fields.values() for field in of_agent}
        raise doc.error(where, unknown(f"hyperparameter of {', '.join(dict.fromkeys(names))}", field, known))
    return targets


def _multitask_resolver(doc: Document, where: KeyPath, choice: AgentChoice, tasks: Sequence[Task]) -> Resolver:
    """The same for a run that learns all the tasks offline."""
    if not registry.get(choice.agent).multitask:
        try:
            registry.multitask_defaults(choice.agent, tasks, {})
        except UserError as error:
            raise doc.error(where, error) from error
    return lambda values, task: (registry.resolve_hyperparameters(choice.agent, values, tasks=tasks), None)


def _resolver(doc: Document, where: KeyPath, choice: AgentChoice, obs: str, folder: Path) -> Resolver:
    """What turns an entry's settings into all hyperparameters of a run on a task, and names the checkpoint it starts
    from."""
    init_task = choice.init_task or {}
    if choice.init is None:
        if init_task:
            raise doc.error((*where, "init_task"), "there is no checkpoint that it could be a task of: give init")
        return lambda values, task: (registry.resolve_hyperparameters(choice.agent, values, task, obs), None)
    from bench import pretrained

    for name in init_task:
        if name != spec.EVERY:
            select_tasks(doc, (*where, "init_task", name), [name])
    try:
        pretrained.check_agent(choice.agent)
        source = pretrained.Source(Path(choice.init), begun=folder / choice.agent)
    except UserError as error:
        raise doc.error((*where, "init"), error) from error
    return lambda values, task: source.resolve(values, task, obs, init_task.get(task.name, init_task.get(spec.EVERY)))


def _resolve(
    doc: Document, where: KeyPath, settings: Sequence[_Setting], task: Task, resolver: Resolver
) -> tuple[dict[str, Any], Init | None]:
    """All hyperparameters of an agent on a task; a mistake is named at the key it came from. A later setting wins."""
    try:
        return resolver({setting.key: setting.value for setting in settings}, task)
    except UserError as error:
        for setting in settings:
            try:
                resolver({setting.key: setting.value}, task)
            except UserError as cause:
                raise doc.error(setting.where, cause) from cause
        raise doc.error(where, error) from error


def _label(
    choice: AgentChoice,
    resolved: dict[str, dict[str, Any]],
    fixed: Sequence[_Setting],
    combination: Sequence[_Setting],
    tasks: Sequence[Task],
    resolver: Resolver,
) -> str:
    """The variant's name: as given, with its place in the grid; else its checkpoint, and what was set to other values
    than the defaults.

    A value that is the default on some tasks alone is no default.
    """
    given = {setting.key: setting.value for setting in (*fixed, *combination)}
    values = given | resolved[tasks[0].name]  # a preset is no hyperparameter, but what it stands for
    if choice.variant is not None:
        return ",".join([choice.variant, *(f"{s.key}={values[s.key]}" for s in combination)])
    defaults = {task.name: resolver({}, task)[0] for task in tasks}
    in_grid = {setting.key for setting in combination}
    plain = {"preset": next(iter(registry.presets(choice.agent)), None)}
    changed = {
        key for key in given if any((given | resolved[task])[key] != (plain | defaults[task])[key] for task in resolved)
    }
    parts = [] if choice.init is None else [f"init={Path(choice.init).stem}"]
    parts += [f"{key}={values[key]}" for key in given if key in in_grid or key in changed]
    label = ",".join(parts) or "default"
    if len(label) <= LABEL_CHARS:
        return label
    digest = hashlib.sha256(label.encode()).hexdigest()[:6]
    return f"{label[:LABEL_CHARS]}…{digest}"


def _check_distinct(doc: Document, variants: Sequence[Variant]) -> None:
    labels = Counter((variant.agent, variant.obs, variant.label) for variant in variants)
    for (agent, _, label), count in labels.items():
        if count > 1:
            raise doc.error(("agents",), f"{count} entries of {agent} are named '{label}': give each its own `variant`")
