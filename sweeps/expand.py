"""From a sweep file to its runs: variants of agents × tasks × seeds, less the exclusions."""

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
from bench import offline
from bench import tasks as task_table
from bench.envs import check_supported
from bench.errors import UserError, unknown
from bench.runspec import Init, RunSpec
from bench.tasks import Task
from sweeps import spec
from sweeps.document import Document, KeyPath
from sweeps.spec import AgentChoice, Exclusion, Resources, SweepFile

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
class Sweep:
    """A checked sweep file and the runs it stands for, in a fixed order (variant, task, seed)."""

    path: Path
    name: str
    runs: tuple[RunSpec, ...]
    tasks: dict[str, Task]
    resources: Resources
    assignments: tuple[str, ...] = ()
    """`key=value` from the command line, put over the file."""


@dataclass(frozen=True)
class _Setting:
    """One hyperparameter of one agent, and the key it came from."""

    key: str
    value: Any
    where: KeyPath


def load(path: Path, assignments: Sequence[str] = (), results: Path = Path("results")) -> Sweep:
    """Read a sweep file and expand it.

    Args:
        path: the YAML file.
        assignments: `key=value` put over the file.
        results: where its runs lie, in `results/<name>/`: those that started from a checkpoint remember which it was.

    Raises:
        UserError: one line that names the file, the key and the valid choices.
    """
    doc, sweep = spec.read(path, assignments)
    tasks = _tasks(doc, ("tasks",), sweep.tasks)
    if sweep.data is None:
        _refuse(doc, sweep, ("updates", "eval_every_updates"), "learning offline: give data")
        variants = _variants(doc, sweep, tasks, results / sweep.name)
        budgets = _budgets(doc, sweep, tasks)
        runs = [
            _run(sweep, variant, task, budgets[task.name], seed)
            for variant in variants
            for task in tasks
            for seed in sweep.seeds
        ]
    else:
        runs = _offline_runs(doc, sweep, Path(sweep.data), tasks, results / sweep.name)
    for index, exclusion in enumerate(sweep.exclude):
        runs = _without(doc, index, exclusion, runs)
    if not runs:
        raise doc.error(("exclude",), "the matrix is empty: every run is excluded")
    _check_runs_distinct(doc, runs)
    _check_resources(doc, sweep)
    by_name = {task.name: task for task in tasks}
    for task_name, obs in sorted({(name, run.obs) for run in runs for name in run.tasks}):
        try:
            check_supported(by_name[task_name], obs)
        except UserError as error:
            raise doc.error(("tasks",), error) from error
    return Sweep(path, sweep.name, tuple(runs), by_name, sweep.resources, tuple(assignments))


def _refuse(doc: Document, sweep: SweepFile, keys: Sequence[str], belongs_to: str) -> None:
    """Keys of the other kind of learning are mistakes."""
    for key in keys:
        if key in sweep.model_fields_set:
            raise doc.error((key,), f"belongs to {belongs_to}")


def _offline_runs(doc: Document, sweep: SweepFile, data: Path, tasks: Sequence[Task], folder: Path) -> list[RunSpec]:
    """One run on all the tasks for each variant and seed; without a fingerprint where the data set is not here."""
    _refuse(doc, sweep, ("env_steps", "eval_every_env_steps", "num_envs"), "learning online: leave it out with data")
    for index, exclusion in enumerate(sweep.exclude):
        if exclusion.task is not None:
            raise doc.error(("exclude", index, "task"), "every run learns all the tasks: leave tasks out of `tasks`")
    for index, choice in enumerate(sweep.agents):
        for key in ("init", "init_task"):
            if getattr(choice, key) is not None:
                raise doc.error((*spec.agent_path(doc, index), key), "belongs to learning online: leave it out")
        if choice.obs == "rgb":
            raise doc.error((*spec.agent_path(doc, index), "obs"), "data sets hold states")
    try:
        dataset = offline.fingerprint(data, tasks) if offline.is_here(data) else ""
    except UserError as error:
        raise doc.error(("data",), error) from error
    given = {
        key: value
        for key in ("updates", "eval_every_updates", "eval_episodes")
        if (value := getattr(sweep, key)) is not None
    }
    return [
        offline.run_spec(variant.agent, values, tasks, data, dataset, seed=seed, variant=variant.label, **given)
        for variant in _variants(doc, sweep, tasks, folder)
        for values in variant.hyperparameters.values()
        for seed in sweep.seeds
    ]


def _check_resources(doc: Document, sweep: SweepFile) -> None:
    """The agents that `resources` names are agents of the sweep."""
    known = {choice.agent for choice in sweep.agents}
    for key in ("fleet", "pack", "run_gpu_gb"):
        for name in getattr(sweep.resources, key):
            if name != spec.EVERY and name not in known:
                raise doc.error(("resources", key, name), unknown("agent of this sweep", name, known))


def _tasks(doc: Document, where: KeyPath, selectors: Sequence[str]) -> list[Task]:
    """Tasks by name or set, each once, in the order of the file."""
    found: dict[str, Task] = {}
    for index, selector in enumerate(selectors):
        try:
            found |= {task.name: task for task in task_table.expand([selector]) if task.name not in found}
        except UserError as error:
            place = (*where, index)  # a single name need not be a list
            raise doc.error(place if place in doc.lines else where, error) from error
    if not found:
        raise doc.error(where, "the matrix is empty: no task is selected")
    return list(found.values())


def _budgets(doc: Document, sweep: SweepFile, tasks: Sequence[Task]) -> dict[str, int]:
    """Budget of each task in env steps: by its name, else by the last set that holds it, else for all, else its own.

    Rounded down to whole agent steps.
    """
    by_name: dict[str, int] = {}
    by_set: dict[str, int] = {}
    given = sweep.env_steps or {}
    for key, budget in given.items():
        if key == spec.EVERY:
            continue
        members = _tasks(doc, ("env_steps", key), [key])
        target = by_name if [task.name for task in members] == [key] else by_set
        target |= {task.name: budget for task in members}
        if not {task.name for task in members} & {task.name for task in tasks}:
            raise doc.error(("env_steps", key), "names no task of this sweep")
    budgets = {}
    for task in tasks:
        own = given.get(spec.EVERY, task.budget_env_steps)
        budget = by_name.get(task.name, by_set.get(task.name, own))
        budgets[task.name] = budget - budget % task.action_repeat
        if not budgets[task.name]:
            message = f"{budget} is less than one agent step of {task.name} ({task.action_repeat} env steps)"
            raise doc.error(("env_steps",), message)
        if (sweep.eval_every_env_steps or task.action_repeat) < task.action_repeat:
            message = f"is less than one agent step of {task.name} ({task.action_repeat} env steps)"
            raise doc.error(("eval_every_env_steps",), f"{sweep.eval_every_env_steps} {message}")
    return budgets


def _run(sweep: SweepFile, variant: Variant, task: Task, budget_env_steps: int, seed: int) -> RunSpec:
    return RunSpec(
        agent=variant.agent,
        hyperparameters=variant.hyperparameters[task.name],
        init=variant.init[task.name],
        variant=variant.label,
        task=task.name,
        domain=task.domain,
        domain_version=task.domain_version,
        obs=variant.obs,  # type: ignore[arg-type]  # checked against the agent's kinds
        seed=seed,
        num_envs=sweep.num_envs,
        action_repeat=task.action_repeat,
        budget_env_steps=budget_env_steps,
        eval_every_env_steps=sweep.eval_every_env_steps or task.eval_every_env_steps,
        eval_episodes=sweep.eval_episodes,
    )


def _without(doc: Document, index: int, exclusion: Exclusion, runs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs that an exclusion leaves; one that matches nothing is a mistake."""
    where: KeyPath = ("exclude", index)
    if not exclusion.model_fields_set:
        raise doc.error(where, f"excludes everything: give one of {', '.join(Exclusion.model_fields)}")
    names: dict[str, set[Any]] = {
        key: set(value) for key in exclusion.model_fields_set if (value := getattr(exclusion, key)) is not None
    }
    if exclusion.task is not None:
        names["task"] = {task.name for task in _tasks(doc, (*where, "task"), exclusion.task)}
    for key in ("agent", "variant"):
        for name in names.get(key, ()):
            known = {getattr(run, key) for run in runs}
            if name not in known:
                raise doc.error((*where, key), unknown(f"{key} of this sweep", name, known))
    kept = [run for run in runs if not all(getattr(run, key) in values for key, values in names.items())]
    if len(kept) == len(runs):
        raise doc.error(where, "matches no run of this sweep")
    return kept


def _variants(doc: Document, sweep: SweepFile, tasks: Sequence[Task], folder: Path) -> list[Variant]:
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
            _tasks(doc, (*where, "init_task", name), [name])
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


def _check_runs_distinct(doc: Document, runs: Sequence[RunSpec]) -> None:
    counts = Counter(run.run_id for run in runs)
    for run in runs:
        if (count := counts[run.run_id]) > 1:
            same = f"{count} variants of {run.agent} have the same hyperparameters on {run.task}"
            raise doc.error(("agents",), f"{same}: keep or exclude all but one")
