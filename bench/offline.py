"""Runs that learn several tasks offline, from a converted data set: how they are described.

Light on purpose: planning a sweep of them loads no torch. `bench.offline_training` trains them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.datasets.layout import DESCRIPTION, Layout
from bench.errors import UserError
from bench.runspec import MULTITASK, OfflineSpec, RunSpec
from bench.tasks import Task, set_names, task_set

UPDATES = 10_000_000
"""The paper's budget."""
EVAL_EVERY_UPDATES = 50_000
"""The paper's interval between evaluations."""
MOST_NAMED = 3
"""A label names so many tasks in full."""


def label(tasks: Sequence[Task]) -> str:
    """What these tasks are called together: a set's name where they are one, else their names, or some and a digest.

    It is part of a run's path, and tells apart what is different; so does the order of the tasks.
    """
    names = [task.name for task in tasks]
    for name in set_names():
        if len(names) > 1 and names == [task.name for task in task_set(name)]:
            return name
    if len(names) <= MOST_NAMED:
        return "+".join(names)
    digest = hashlib.sha256(",".join(names).encode()).hexdigest()[:6]
    return f"{names[0]}+{len(names) - 1}-{digest}"


def domain_version(tasks: Sequence[Task]) -> str:
    """The simulators of all these tasks, each once."""
    return ", ".join(dict.fromkeys(task.domain_version for task in tasks))


def run_spec(
    agent: str,
    hyperparameters: Mapping[str, Any],
    tasks: Sequence[Task],
    data: Path,
    dataset: str,
    seed: int,
    variant: str = "default",
    updates: int = UPDATES,
    eval_every_updates: int = EVAL_EVERY_UPDATES,
    eval_episodes: int = 10,
) -> RunSpec:
    """The specification of a run on these tasks, in the order that gives them their numbers.

    Args:
        agent: in the registry.
        hyperparameters: all of them.
        tasks: rows of the task table.
        data: where the data set lies.
        dataset: its fingerprint, see `fingerprint`; empty in the plan of a sweep whose data set is not here.
        seed: of the run.
        variant: label of the hyperparameters.
        updates: the budget.
        eval_every_updates: updates between evaluations.
        eval_episodes: of each task.
    """
    return RunSpec(
        agent=agent,
        hyperparameters=dict(hyperparameters),
        variant=variant,
        task=label(tasks),
        domain=MULTITASK,
        domain_version=domain_version(tasks),
        seed=seed,
        action_repeat=1,
        budget_env_steps=0,
        eval_every_env_steps=0,
        eval_episodes=eval_episodes,
        offline=OfflineSpec(
            tasks=tuple(task.name for task in tasks),
            domain_versions={task.domain: task.domain_version for task in tasks},
            dataset=dataset,
            data=str(data.absolute()),
            updates=updates,
            eval_every_updates=eval_every_updates,
        ),
    )


def evaluation_spec(spec: RunSpec, task: Task) -> RunSpec:
    """An offline run as it is evaluated on one of its tasks: like a run of this task alone."""
    return spec.model_copy(
        update={
            "task": task.name,
            "domain": task.domain,
            "domain_version": task.domain_version,
            "action_repeat": task.action_repeat,
            "budget_env_steps": task.budget_env_steps,
            "eval_every_env_steps": task.eval_every_env_steps,
            "offline": None,
        }
    )


def is_here(data: Path) -> bool:
    """Whether there is a converted data set, whole or damaged, at a place."""
    return (data / DESCRIPTION).exists()


def lack(spec: OfflineSpec) -> str | None:
    """What a planned run's data set lacks: that it is not on this machine; None where it was found."""
    if spec.dataset:
        return None
    return (
        f"the data set {spec.data} is not here: `bench data convert CHUNK_FOLDER -o {spec.data}` makes it "
        "(docs/multitask.md)"
    )


def fingerprint(data: Path, tasks: Sequence[Task]) -> str:
    """The identity of a data set that has rows of these tasks.

    Raises:
        UserError: no whole data set is there, or it lacks a task.
    """
    layout = Layout.read(data)
    held = [part.task for part in layout.parts if part.rows]
    lacking = [task.name for task in tasks if task.name not in held]
    if lacking:
        raise UserError(f"{data} has no rows of {', '.join(lacking)}: it has {', '.join(held)}")
    return layout.fingerprint
