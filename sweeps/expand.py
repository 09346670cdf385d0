"""From a sweep file to its runs: variants of agents × tasks × seeds, less the exclusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import offline
from bench.envs import check_supported
from bench.errors import UserError, unknown
from bench.runspec import RunSpec
from bench.tasks import Task
from sweeps import spec
from sweeps.document import Document, KeyPath
from sweeps.selectors import select_tasks
from sweeps.spec import Exclusion, Resources, SweepFile
from sweeps.variants import Variant, all_variants


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
    tasks = select_tasks(doc, ("tasks",), sweep.tasks)
    if sweep.data is None:
        _refuse(doc, sweep, ("updates", "eval_every_updates"), "learning offline: give data")
        variants = all_variants(doc, sweep, tasks, results / sweep.name)
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
        for variant in all_variants(doc, sweep, tasks, folder)
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
        members = select_tasks(doc, ("env_steps", key), [key])
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
        names["task"] = {task.name for task in select_tasks(doc, (*where, "task"), exclusion.task)}
    for key in ("agent", "variant"):
        for name in names.get(key, ()):
            known = {getattr(run, key) for run in runs}
            if name not in known:
                raise doc.error((*where, key), unknown(f"{key} of this sweep", name, known))
    kept = [run for run in runs if not all(getattr(run, key) in values for key, values in names.items())]
    if len(kept) == len(runs):
        raise doc.error(where, "matches no run of this sweep")
    return kept


def _check_runs_distinct(doc: Document, runs: Sequence[RunSpec]) -> None:
    counts = Counter(run.run_id for run in runs)
    for run in runs:
        if (count := counts[run.run_id]) > 1:
            same = f"{count} variants of {run.agent} have the same hyperparameters on {run.task}"
            raise doc.error(("agents",), f"{same}: keep or exclude all but one")
