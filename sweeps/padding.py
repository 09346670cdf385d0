"""Which tasks of different sizes may share a fleet, padded to the largest: where the sweep asks for it, those of runs
of an agent that can do it, from states, of one domain, and alike but for seed, task and sizes.

A padded fleet keeps every transition in the size of its largest. So tasks are taken in the order of their sizes and put
together as long as no run's transition grows by more than `MOST_PADDING` numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from agents import registry
from bench.runspec import RunSpec
from bench.tasks import Task
from sweeps.spec import Resources

MOST_PADDING = 32
"""Numbers (float32) that padding may add to a transition: 128 MB of device memory for a replay of one million."""


def is_asked(resources: Resources, spec: RunSpec) -> bool:
    """Whether a run may be padded."""
    starts_anew = spec.init is None and spec.offline is None
    return resources.pad and starts_anew and spec.obs == "state" and registry.get(spec.agent).pads


def padding_class(spec: RunSpec, task: Task) -> object:
    """What the agent wants to be equal in a padded fleet; see `agents.protocol`."""
    hyperparameters = registry.get(spec.agent).hyperparameters_model()(**spec.hyperparameters)
    rule = getattr(hyperparameters, "padding_class", None)
    return None if rule is None else rule(task.action_size)


def shape(tasks: Sequence[Task]) -> tuple[int, int]:
    """Sizes of observations and actions that hold all the tasks."""
    return max(task.obs_size for task in tasks), max(task.action_size for task in tasks)


def by_size(task: Task) -> tuple[int, int, int]:
    """The order in which tasks are put together."""
    return task.obs_size + task.action_size, task.obs_size, task.action_size


def split(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks, each once, by size and in groups that may share a fleet."""
    groups: list[list[Task]] = []
    for task in sorted(dict.fromkeys(tasks), key=by_size):
        if groups and sum(shape([*groups[-1], task])) - sum(shape(groups[-1][:1])) <= MOST_PADDING:
            groups[-1].append(task)
        else:
            groups.append([task])
    return groups
