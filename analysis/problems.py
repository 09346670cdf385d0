"""What a reader could not use, for the output of every command that reads results."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from analysis.tables import Problem
from bench.errors import UserError

KINDS = ("not read", "left out", "note")


def lines(problems: Iterable[Problem]) -> list[str]:
    """One for each file, run or row that was not used; notes, of which nothing was left out, are for pages alone."""
    return [str(problem) for problem in dict.fromkeys(problems) if problem.kind != "note"]


def to_json(problems: Iterable[Problem]) -> dict[str, Any]:
    """How many there are of each kind, and all of them."""
    found = list(dict.fromkeys(problems))
    counts = {kind: sum(problem.kind == kind for problem in found) for kind in KINDS}
    return {"problem_counts": counts, "problems": [str(problem) for problem in found]}


def refuse_lost(problems: Iterable[Problem], agents: Collection[str], allow_missing: bool) -> None:
    """Refuse to compare agents of which results could not be read: the others may say something else.

    Args:
        agents: names of the agents under comparison, without variants.
        allow_missing: the user has been told, and wants what can be read.

    Raises:
        UserError: names every file.
    """
    lost = [problem for problem in dict.fromkeys(problems) if problem.kind == "not read" and problem.agent in agents]
    if lost and not allow_missing:
        named = "; ".join(f"{problem.path}: {problem.message}" for problem in lost)
        raise UserError(f"{named}. Repair or remove what cannot be read, or leave it out with --allow-missing")
