"""The groups of tasks whose aggregates are shown apart: those of the TD-MPC2 paper's first figure, in its order."""

from __future__ import annotations

from collections.abc import Iterable

from bench import tasks
from bench.errors import UserError

ALL = "All"
DOMAIN_NAMES = {
    "dmcontrol": "DMControl",
    "metaworld": "Meta-World",
    "maniskill": "ManiSkill2",
    "myosuite": "MyoSuite",
}
LOCOMOTION, PICK_YCB = "Locomotion", "Pick YCB"
PAPER_ORDER = ("DMControl", "Meta-World", "ManiSkill2", LOCOMOTION, "MyoSuite", PICK_YCB)


def groups(names: Iterable[str], domains: dict[str, str] | None = None) -> dict[str, tuple[str, ...]]:
    """Group -> its tasks among `names`, in order of name; only groups that have any, `All` last.

    Locomotion and Pick YCB are parts of DMControl and ManiSkill2 that the paper shows once more.

    Args:
        domains: task -> domain, for tasks that the task table does not know.
    """
    names = sorted(names)
    found: dict[str, list[str]] = {}
    for name in names:
        domain, tags = _domain_and_tags(name, domains or {})
        found.setdefault(DOMAIN_NAMES.get(domain, domain), []).append(name)
        if "locomotion" in tags:
            found.setdefault(LOCOMOTION, []).append(name)
        if name == "pick-ycb":
            found.setdefault(PICK_YCB, []).append(name)
    order = [*PAPER_ORDER, *sorted(set(found) - set(PAPER_ORDER))]
    ordered = {group: tuple(found[group]) for group in order if group in found}
    return ordered | {ALL: tuple(names)} if names else {}


def _domain_and_tags(name: str, domains: dict[str, str]) -> tuple[str, frozenset[str]]:
    try:
        task = tasks.get(name)
    except UserError:
        return domains.get(name, "other"), frozenset()
    return task.domain, task.tags
