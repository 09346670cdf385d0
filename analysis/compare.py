"""An agent against others on the tasks and at the env steps that all have, with a verdict that the seeds support."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.alignment import Comparison, align
from analysis.difference import MIN_SD, Difference, difference
from analysis.groups import ALL, groups
from analysis.problems import to_json
from analysis.score_rule import AT_TIME, TOLERANCE
from analysis.tables import Problem
from analysis.text_tables import number_range
from bench.errors import UserError

MIN_SEEDS = 3
"""Below this on either side no difference is claimed."""


@dataclass(frozen=True)
class Compared:
    """Everything that a comparison says; `analysis.compare_text` writes it."""

    mine: str
    others: tuple[str, ...]
    tasks: pd.DataFrame
    """A row for each common task and other agent: task, domain, env_steps (where compared), other, mine, mine_low,
    mine_high, mine_seeds, mine_env_steps (of the evaluations), theirs, theirs_low, theirs_high, their_seeds,
    their_env_steps, difference, low, high, result (higher, lower, not told apart)."""
    groups: pd.DataFrame
    """A row for each group and other agent: group, other, tasks, seeds, mean and IQM of both sides with intervals,
    difference of the means, probability of improvement; all of them of the same seeds."""
    scores: pd.DataFrame
    """A row for each run: agent, task, domain, seed, env_steps (of the evaluation), score, run_id."""
    clocks: pd.DataFrame
    """Mean scores at equal wall-clock and GPU time where both sides know it: clock, unit, agent, value, low, high,
    seeds, tasks."""
    verdicts: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    assumptions: tuple[str, ...] = ()
    """What had to be assumed to read the sides."""
    problems: tuple[Problem, ...] = ()
    """What of the sides could not be used."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; NaN becomes null."""

        def plain(value: Any) -> Any:
            if isinstance(value, pd.DataFrame):
                return json.loads(value.to_json(orient="records", double_precision=10))
            return list(value) if isinstance(value, tuple) else value

        names = (
            "mine",
            "others",
            "verdicts",
            "warnings",
            "tasks",
            "groups",
            "scores",
            "clocks",
            "notes",
            "assumptions",
        )
        return {name: plain(getattr(self, name)) for name in names} | to_json(self.problems)


def compare(
    mine: str,
    evals: pd.DataFrame,
    clocks: Mapping[str, pd.DataFrame],
    reps: int = statistics.REPS,
    notes: Sequence[str] = (),
    assumptions: Sequence[str] = (),
    problems: Sequence[Problem] = (),
) -> Compared:
    """Compare the agent `mine` with every other one of a table.

    Args:
        mine: its name in column `agent`.
        evals: columns of `bench.schema.EVALS`; the sides are told apart by `agent`.
        clocks: unit -> `evals` with that clock in place of env steps.
        reps: bootstrap resamples.
        notes: what is to be said besides.
        assumptions, problems: of the sides (see `analysis.sides.Gathered`).

    Raises:
        UserError: no task that all sides have evaluated at common env steps.
    """
    comparison = align(evals)
    others = tuple(agent for agent in comparison.agents if agent != mine)
    silent = sorted(set(evals["agent"]) - set(comparison.agents))
    if mine in silent or not others or not comparison.common_tasks:
        reasons = "; ".join(
            f"{note.text}: {', '.join(note.items[:2])}{', …' * (len(note.items) > 2)}" for note in comparison.notes
        )
        raise UserError(
            f"no task that {mine} and {', '.join(others) or 'another agent'} all have at equal env steps "
            f"({reasons or 'no task is common'}); continue the shorter runs to a step at which the others were "
            "evaluated (`bench published import` brings whole published curves)"
        )
    by_task = _task_rows(comparison, mine, others, reps)
    by_group, verdicts = _group_rows(comparison, mine, others, reps)
    return Compared(
        mine,
        others,
        by_task,
        by_group,
        comparison.finals.drop(columns="in_aggregates"),
        _clock_rows(clocks, reps),
        tuple(verdicts),
        (*_warnings(evals, comparison, mine), *(f"{name}: no score that is a number, not compared" for name in silent)),
        (*notes, *(f"{note.text}: {', '.join(note.items)}" for note in comparison.notes)),
        tuple(assumptions),
        tuple(problems),
    )


def _task_rows(comparison: Comparison, mine: str, others: Sequence[str], reps: int) -> pd.DataFrame:
    rows = []
    finals = dict(tuple(comparison.finals.groupby(["task", "agent"])))
    for task in comparison.common_tasks:
        own = finals[task, mine]["score"].to_numpy("float64")
        own_interval = [float(part[0]) for part in statistics.mean_interval(own[:, None], reps)]
        for other in others:
            theirs = finals[task, other]["score"].to_numpy("float64")
            their_interval = [float(part[0]) for part in statistics.mean_interval(theirs[:, None], reps)]
            gap = difference([own], [theirs])
            low, high = gap.interval()
            enough = min(len(own), len(theirs)) >= MIN_SEEDS
            result = "higher" if enough and low > 0 else "lower" if enough and high < 0 else "not told apart"
            place = (task, comparison.domains[task], comparison.final_env_steps[task], other)
            both = (
                *(*own_interval, len(own), span(finals[task, mine]["env_steps"])),
                *(*their_interval, len(theirs), span(finals[task, other]["env_steps"])),
            )
            rows.append((*place, *both, gap.value, low, high, result))
    columns = (
        "task domain env_steps other mine mine_low mine_high mine_seeds mine_env_steps "
        "theirs theirs_low theirs_high their_seeds their_env_steps"
    )
    return pd.DataFrame(rows, columns=[*columns.split(), "difference", "low", "high", "result"])


def span(env_steps: pd.Series) -> str:
    """The env steps of some evaluations: one number, or the first and the last."""
    first, last = int(env_steps.min()), int(env_steps.max())
    return f"{first}" if first == last else f"{first}-{last}"


def _group_rows(comparison: Comparison, mine: str, others: Sequence[str], reps: int) -> tuple[pd.DataFrame, list[str]]:
    finals = {place: rows["score"].to_numpy("float64") for place, rows in comparison.finals.groupby(["task", "agent"])}
    rows, verdicts = [], []
    for group, names in groups(comparison.common_tasks, comparison.domains).items():
        where = [comparison.final_env_steps[name] for name in names]
        scores = {agent: [finals[name, agent] for name in names] for agent in (mine, *others)}
        aggregates = {agent: statistics.task_aggregates(tasks, reps) for agent, tasks in scores.items()}
        for other in others:
            gap = difference(scores[mine], scores[other])
            seeds = (list(map(len, scores[mine])), list(map(len, scores[other])))
            row: dict[str, Any] = {"group": group, "other": other, "tasks": len(names)}
            row |= {"mine_seeds": min(seeds[0]), "their_seeds": min(seeds[1])}
            for who, agent in (("mine", mine), ("theirs", other)):
                for metric, values in aggregates[agent].items():
                    row |= dict(zip((f"{who}_{metric}{end}" for end in ("", "_low", "_high")), values, strict=True))
            row["difference"], (row["low"], row["high"]) = gap.value, gap.interval()
            chance = statistics.task_improvement(scores[mine], scores[other], reps)
            row |= dict(zip(("probability", "probability_low", "probability_high"), chance, strict=True))
            rows.append(row)
            if group == ALL:
                verdicts.append(verdict(mine, other, gap, where, seeds))
    return pd.DataFrame(rows), verdicts


def verdict(
    mine: str, other: str, gap: Difference, env_steps: Sequence[int], seeds: tuple[Sequence[int], Sequence[int]]
) -> str:
    """One sentence on the mean over all common tasks, which claims a difference only where seeds allow it.

    Args:
        env_steps: where each task is compared.
        seeds: of both sides, on each task.
    """
    tasks = len(env_steps)
    where = (
        f"on the mean over {tasks} task{'s' * (tasks != 1)} at {number_range(env_steps)} env steps "
        f"({number_range(seeds[0])} against {number_range(seeds[1])} seeds)"
    )
    said = f"{mine} and {other} differ by {gap.value:+.1f} points {where}"
    if min(map(min, seeds)) < 2:
        return f"{said}; one seed cannot tell a difference from chance."
    low, high = gap.interval()
    said = f"{mine} against {other}: {gap.value:+.1f} points [{low:+.1f}, {high:+.1f}] {where}"
    if min(map(np.median, seeds)) < MIN_SEEDS:
        return f"{said}; with fewer than {MIN_SEEDS} seeds a side no difference is claimed."
    if low > 0:
        return f"{said}: {mine} scores higher on these tasks."
    if high < 0:
        return f"{said}: {mine} scores lower on these tasks."
    return f"{said}: these seeds do not tell them apart."


def _clock_rows(clocks: Mapping[str, pd.DataFrame], reps: int) -> pd.DataFrame:
    parts = []
    for unit, evals in clocks.items():
        comparison = align(evals, AT_TIME)
        if len(comparison.agents) < 2 or not comparison.common_tasks:
            continue
        table = statistics.aggregates(comparison.matrices, reps)
        hours = [comparison.final_env_steps[task] / 3600 for task in comparison.common_tasks]
        span = f"{min(hours):.2g}-{max(hours):.2g} h" if len(hours) > 1 else f"{hours[0]:.2g} h"
        parts.append(table[table["metric"] == "Mean"].drop(columns="metric").assign(clock=unit, per_task=span))
    columns = ["clock", "per_task", "agent", "value", "low", "high", "seeds", "tasks"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _warnings(evals: pd.DataFrame, comparison: Comparison, mine: str) -> list[str]:
    """What the sides do not have in common although scores are set side by side."""
    found = []
    table = evals[evals["task"].isin(comparison.common_tasks)]
    for domain, rows in table.groupby("domain"):
        versions = rows.groupby("domain_version")["agent"].unique()
        if len(versions) > 1:
            said = "; ".join(f"{version} ({', '.join(sorted(agents))})" for version, agents in versions.items())
            found.append(f"{domain}: different simulator versions, scores need not agree: {said}")
    started = table[table["agent_steps"] > 0]
    repeat = (
        (started["env_steps"] / started["agent_steps"]).round().groupby([started["task"], started["agent"]]).median()
    )
    uneven = [task for task, values in repeat.groupby(level=0) if values.nunique() > 1]
    if uneven:
        found.append(f"different action repeat on {len(uneven)} tasks: {', '.join(uneven)}")
    budget = table.groupby(["task", "agent"])["env_steps"].max().unstack()
    longer = budget.max(axis=1) > 1.05 * budget.min(axis=1)
    if longer.any():
        names = [str(task) for task in budget.index[longer]]
        found.append(
            f"different budgets on {len(names)} tasks, compared where both were evaluated: {', '.join(names[:5])}"
            + ("…" if len(names) > 5 else "")
        )
    seeds = comparison.finals.groupby(["agent", "task"]).size().groupby(level="agent").min()
    few = [agent for agent in comparison.agents if seeds[agent] < MIN_SEEDS]
    if few:
        found.append(f"fewer than {MIN_SEEDS} seeds on a task: {', '.join(few)}")
    return found


def rules(reps: int) -> tuple[str, ...]:
    """How the numbers came about, for the output."""
    return (
        "A task is compared at the largest env steps at which at least half of the seeds of every side were evaluated "
        f"(within {TOLERANCE:.0%}); no score is carried forward from an earlier evaluation. Runs without an evaluation "
        "there, and tasks without such a step, are left out and named.",
        "Every number of a row is of the same seeds: all that have a score where their task is compared.",
        "At equal time, the score of a run is on the straight line between its evaluations; a task is compared at the "
        "longest time that at least half of the seeds of every side reached.",
        f"Intervals of a side's mean and IQM, and of the probability of improvement, are 95 % percentile intervals of "
        f"{reps:,} bootstrap resamples stratified by task; with three seeds they are too narrow.",
        f"Differences have Welch t intervals over seeds (95 %), with a standard deviation of at least {MIN_SD:g} point "
        "for each task and side. Higher or lower is said where the interval excludes 0 and both sides have "
        f"{MIN_SEEDS} seeds on at least half of the tasks and 2 on all; of "
        "many tasks, one in twenty would be told apart by chance alone.",
    )
