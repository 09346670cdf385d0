"""Did a change make an agent worse? A one-sided test over seeds whose power is stated, for continuous integration.

Rule: for each agent that the baseline has, the mean over tasks of the difference in score (new - baseline) is tested
with Welch's t over seeds, at the env steps that `analysis.alignment` compares. It is a regression where the one-sided
upper bound at `alpha` (divided by the number of agents) lies below minus the margin, or where the new results lack a
task of the baseline or a run's score at the compared env steps. The drop that the test finds with 80 % power is printed
with every answer: without it, "no regression" says nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.alignment import align, labels
from analysis.difference import difference
from analysis.sides import Side, named
from analysis.text_tables import number_range
from bench.errors import UserError

POWER = 0.8


@dataclass(frozen=True)
class Regression:
    """The answer for one agent."""

    agent: str
    tasks: int
    """Compared; with 0 all numbers are NaN."""
    missing_tasks: tuple[str, ...] = ()
    """Tasks of the baseline without new scores at common env steps."""
    missing_runs: tuple[str, ...] = ()
    """New runs without a score at the compared env steps."""
    notes: tuple[str, ...] = ()
    """What the alignment left out or mended."""
    regressed: bool = True
    baseline_seeds: int = 0
    """The fewest on any task."""
    new_seeds: int = 0
    env_steps: dict[str, int] = field(default_factory=dict)
    """Task -> env steps at which it is compared."""
    baseline_score: float = math.nan
    new_score: float = math.nan
    difference: float = math.nan
    upper: float = math.nan
    """One-sided upper bound of the difference."""
    detectable_drop: float = math.nan
    """Points that the true mean would have to fall beyond the margin to be found with `POWER`."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def regress(baseline: Side, new: Side, alpha: float = 0.05, margin: float = 0.0) -> list[Regression]:
    """Test every agent of the baseline.

    Args:
        alpha: how often unchanged agents may be called worse, over all of them together.
        margin: points of mean score that may be lost.

    Raises:
        UserError: no evaluation or no score in the baseline, no agent or task in common, or a single seed, with which
            nothing can be tested.
    """
    old, now = _by_label(baseline), _by_label(new)
    if not old:
        raise UserError("the baseline holds no evaluation")
    if not set(old) & set(now):
        raise UserError(
            f"no agent in common: the baseline holds {', '.join(old)}, the new results {', '.join(now) or 'none'}; "
            "give both the same agent name (of CSV curves it is the name of their folder)"
        )
    answers = [_one(agent, old, now, alpha / len(old), margin) for agent in sorted(old)]
    if not any(answer.tasks for answer in answers):
        notes = "; ".join(dict.fromkeys(note for answer in answers for note in answer.notes))
        raise UserError(f"no task of the baseline can be compared with the new results: {notes}")
    return answers


def _by_label(side: Side) -> dict[str, pd.DataFrame]:
    names = pd.Series(labels(side.evals, side.evals["obs"].nunique() > 1), index=side.evals.index, dtype="object")
    return {str(name): side.evals[names == name] for name in names.unique()}


def _one(
    agent: str, baseline: dict[str, pd.DataFrame], new: dict[str, pd.DataFrame], alpha: float, margin: float
) -> Regression:
    wanted = tuple(sorted(baseline[agent]["task"].unique()))
    if agent not in new:
        return Regression(agent, 0, wanted)
    both = [named(baseline[agent], "baseline"), named(new[agent], "new")]
    comparison = align(pd.concat(both, ignore_index=True))
    if "baseline" not in comparison.agents:
        raise UserError(f"{agent}: the baseline holds no score that is a number")
    common = comparison.common_tasks if "new" in comparison.agents else ()
    missing = tuple(task for task in wanted if task not in common)
    notes = tuple(f"{note.text}: {', '.join(note.items)}" for note in comparison.notes)
    if not common:
        return Regression(agent, 0, missing, notes=notes)
    rows = {side: of.groupby("task")["score"] for side, of in comparison.finals.groupby("agent")}
    old, now = ([rows[side].get_group(task).to_numpy("float64") for task in common] for side in ("baseline", "new"))
    seeds = min(map(len, old)), min(map(len, now))
    if min(seeds) < 2:
        raise UserError(f"{agent}: a side has one seed on a task; a test needs 2 or more seeds on every task")
    gap = difference(now, old)
    upper = gap.upper(alpha)
    lost = _runs(both[1][both[1]["task"].isin(common)]) - _runs(comparison.finals)
    return Regression(
        agent=agent,
        tasks=len(old),
        missing_tasks=missing,
        missing_runs=tuple(f"{task} · seed {seed}" for task, seed in sorted(lost)),
        notes=notes,
        regressed=bool(missing or lost) or upper < -margin,
        baseline_seeds=seeds[0],
        new_seeds=seeds[1],
        env_steps={task: comparison.final_env_steps[task] for task in common},
        baseline_score=float(np.mean([one.mean() for one in old])),
        new_score=float(np.mean([one.mean() for one in now])),
        difference=gap.value,
        upper=upper,
        detectable_drop=gap.detectable(alpha, POWER),
    )


def _runs(rows: pd.DataFrame) -> set[tuple[str, int]]:
    """(task, seed) of the new runs in some rows."""
    new = rows[rows["agent"] == "new"]
    return set(zip(new["task"], new["seed"].astype(int), strict=True))


def regression_lines(one: Regression, margin: float) -> list[str]:
    """An answer to read: the verdict, what is missing, and the notes."""
    word = "REGRESSED" if one.regressed else "no regression found"
    if one.tasks:
        at = number_range(one.env_steps.values())
        said = (
            f"{one.baseline_score:.1f} -> {one.new_score:.1f} ({one.difference:+.1f}, at most {one.upper:+.1f}) on "
            f"{one.tasks} task{'s' * (one.tasks != 1)} at {at} env steps, {one.baseline_seeds} and {one.new_seeds} "
            f"seeds; a drop of {one.detectable_drop + margin:.1f} is found with {POWER:.0%} power"
        )
    else:
        said = "no task can be compared"
    lines = [f"{one.agent}: {word}: {said}"]
    for what, names in (("tasks", one.missing_tasks), ("runs", one.missing_runs)):
        lines += [f"  {what} without new scores at the compared env steps: {', '.join(names)}"] if names else []
    return lines + [f"  {note}" for note in one.notes]
