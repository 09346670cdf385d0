"""Tasks by name or set, as sweep files select them; runs by pattern, as commands do."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from bench import tasks as task_table
from bench.errors import UserError
from bench.tasks import Task
from sweeps.document import Document, KeyPath


def select_tasks(doc: Document, where: KeyPath, selectors: Sequence[str]) -> list[Task]:
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


def matches(run_id: str, patterns: Sequence[str]) -> bool:
    """Whether a run is meant: each pattern is a glob over `agent`, `task`, `seed<k>`, or these joined by `/`."""
    agent, task, leaf = run_id.split("/")
    seed = leaf.split("-")[0]
    names = (agent, task, seed, f"{agent}/{task}", f"{task}/{seed}", f"{agent}/{task}/{seed}", leaf, run_id)
    return any(globs(name, pattern) for name in names for pattern in patterns)


def globs(name: str, pattern: str) -> bool:
    """Whether a glob means a name; the brackets of a variant, `agent[variant]`, also stand for themselves."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.replace("[", "[[]"))
