"""Did a change make an agent worse? A one-sided test over seeds whose power is stated, for continuous integration.

Rule: for each agent that the baseline has, the mean over tasks of the difference in score (new - baseline) is tested
with Welch's t over seeds. It is a regression where the one-sided upper bound at `alpha` (divided by the number of
agents) lies below minus the margin, or where the new results lack a task that the baseline has. The drop that the test
finds with 80 % power is printed with every answer: without it, "no regression" says nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analysis.alignment import align, labels
from analysis.difference import difference
from analysis.sides import Side, named
from bench.errors import UserError

POWER = 0.8


@dataclass(frozen=True)
class Regression:
    """The answer for one agent."""

    agent: str
    tasks: int
    baseline_seeds: int
    """The fewest on any task."""
    new_seeds: int
    baseline_score: float
    new_score: float
    difference: float
    upper: float
    """One-sided upper bound of the difference."""
    detectable_drop: float
    """Points that the true mean would have to fall beyond the margin to be found with `POWER`."""
    missing_tasks: tuple[str, ...]
    notes: tuple[str, ...]
    """What the alignment left out or mended."""
    regressed: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def regress(baseline: Side, new: Side, alpha: float = 0.05, margin: float = 0.0) -> list[Regression]:
    """Test every agent of the baseline.

    Args:
        alpha: how often unchanged agents may be called worse, over all of them together.
        margin: points of mean score that may be lost.

    Raises:
        UserError: no evaluation or no score in the baseline, or a single seed, with which nothing can be tested.
    """
    old, now = _by_label(baseline), _by_label(new)
    if not old:
        raise UserError("the baseline holds no evaluation")
    return [_one(agent, old, now, alpha / len(old), margin) for agent in sorted(old)]


def _by_label(side: Side) -> dict[str, pd.DataFrame]:
    names = pd.Series(labels(side.evals, side.evals["obs"].nunique() > 1), index=side.evals.index, dtype="object")
    return {str(name): side.evals[names == name] for name in names.unique()}


def _one(
    agent: str, baseline: dict[str, pd.DataFrame], new: dict[str, pd.DataFrame], alpha: float, margin: float
) -> Regression:
    wanted = tuple(sorted(baseline[agent]["task"].unique()))
    nothing = float("nan")
    if agent not in new:
        return Regression(agent, 0, 0, 0, nothing, nothing, nothing, nothing, nothing, wanted, (), True)
    both = [named(baseline[agent], "baseline"), named(new[agent], "new")]
    comparison = align(pd.concat(both, ignore_index=True))
    if "baseline" not in comparison.agents:
        raise UserError(f"{agent}: the baseline holds no score that is a number")
    common = comparison.common_tasks if "new" in comparison.agents else ()
    missing = tuple(task for task in wanted if task not in common)
    notes = tuple(f"{note.text}: {', '.join(note.items)}" for note in comparison.notes)
    if not common:
        return Regression(agent, 0, 0, 0, nothing, nothing, nothing, nothing, nothing, missing, notes, True)
    rows = {side: of.groupby("task")["score"] for side, of in comparison.finals.groupby("agent")}
    old, now = ([rows[side].get_group(task).to_numpy("float64") for task in common] for side in ("baseline", "new"))
    seeds = min(map(len, old)), min(map(len, now))
    if min(seeds) < 2:
        raise UserError(f"{agent}: a side has one seed on a task; a test needs 2 or more seeds on every task")
    gap = difference(now, old)
    upper = gap.upper(alpha)
    return Regression(
        agent=agent,
        tasks=len(old),
        baseline_seeds=seeds[0],
        new_seeds=seeds[1],
        baseline_score=float(pd.Series([one.mean() for one in old]).mean()),
        new_score=float(pd.Series([one.mean() for one in now]).mean()),
        difference=gap.value,
        upper=upper,
        detectable_drop=gap.detectable(alpha, POWER),
        missing_tasks=missing,
        notes=notes,
        regressed=bool(missing) or upper < -margin,
    )
