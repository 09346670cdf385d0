"""The task table: one typed row for each task, and the named sets of them.

Everything that needs to know something about a task reads it here. Light on purpose: no simulator, no torch. Users add
rows by the entry-point group `tdmpc2_bench.tasks`: an entry point names a `Task`, or a list of them, in their package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from bench.errors import UserError, unknown
from bench.tasks.rows import benchmark_rows
from bench.tasks.sets import BY_TAG
from bench.tasks.task import DOMAIN_VERSIONS, Task

__all__ = ["BUILT_IN_SETS", "Task", "built_in", "expand", "get", "set_names", "task_set", "tasks"]

ENTRY_POINT_GROUP = "tdmpc2_bench.tasks"

BUILT_IN_SETS = ("all", *DOMAIN_VERSIONS, "original", *BY_TAG)
"""The sets that ship with the suite; users' tags and domains make more."""


def _registered() -> Iterable[tuple[str, Task]]:
    """The rows that other packages add, each with the entry point that it comes from."""
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            value = point.load()
        except Exception as error:
            raise UserError(
                f"the tasks of entry point '{point.name}' cannot be loaded from {point.value}: {error!r}; "
                "mend or uninstall that package"
            ) from error
        for row in [value] if isinstance(value, Task) else value:
            if not isinstance(row, Task):
                raise UserError(
                    f"entry point '{point.name}' ({point.value}) holds {row!r}, which is no bench.tasks.Task"
                )
            yield point.name, row


@cache
def _built_in() -> Mapping[str, Task]:
    return MappingProxyType({task.name: task for task in benchmark_rows()})


@cache
def _table() -> Mapping[str, Task]:
    table = dict(_built_in())
    taken = {*table, *(task.published_name for task in table.values()), *BUILT_IN_SETS}
    for origin, task in _registered():
        if task.name in taken:
            raise UserError(f"task '{task.name}' of entry point '{origin}' takes a name that is in use: rename it")
        taken.add(task.name)
        table[task.name] = task
    return MappingProxyType(table)


@cache
def _sets() -> Mapping[str, tuple[Task, ...]]:
    table = _table()
    sets = {"all": tuple(table.values())}
    for task in table.values():
        for name in (task.domain, *sorted(task.tags)):
            sets[name] = (*sets.get(name, ()), task)
    for name, ordered in BY_TAG.items():  # their order is part of them; a user's rows with the tag come after
        added = [task.name for task in sets[name] if task.name not in ordered]
        sets[name] = tuple(table[task] for task in (*ordered, *added))
    return MappingProxyType(sets)


def tasks() -> tuple[Task, ...]:
    """Every task: DMControl (28 standard, 11 new), Meta-World, ManiSkill2, MyoSuite, then rows that users added."""
    return _sets()["all"]


def built_in() -> tuple[Task, ...]:
    """The 104 tasks of the benchmark, without rows that users added."""
    return tuple(_built_in().values())


def set_names() -> tuple[str, ...]:
    """The names that `task_set` and `expand` take."""
    return tuple(_sets())


def get(name: str) -> Task:
    """One task by its name, or by the name that the published files use (`myo-hand-reach`).

    Raises:
        UserError: no such task; names the nearest.
    """
    # The suite's own rows first, so that users can derive theirs from them while their package is being loaded.
    for table in (_built_in, _table):
        for task in table().values():
            if name in (task.name, task.published_name):
                return task
    raise unknown("task", name, _table())


def task_set(name: str) -> tuple[Task, ...]:
    """The tasks of a set. In `mt30` and `mt80` the index is the task id of the multi-task data.

    Raises:
        UserError: no such set; names the nearest.
    """
    sets = _sets()
    if name not in sets:
        raise unknown("task set", name, sets)
    return sets[name]


def expand(selectors: Sequence[str]) -> list[Task]:
    """Tasks for a mixture of task names and set names, in the order given, each once.

    Raises:
        UserError: a selector that is neither; names the nearest of both.
    """
    chosen: dict[str, Task] = {}
    for selector in selectors:
        if selector in _sets():
            found = task_set(selector)
        else:
            try:
                found = (get(selector),)
            except UserError as error:
                raise unknown("task or set", selector, (*_table(), *_sets())) from error
        chosen |= {task.name: task for task in found}
    return list(chosen.values())
