"""The numbers behind the paper's figures: published curves and final scores, in tables ready to draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.alignment import Comparison, align
from analysis.groups import groups
from analysis.published import read_sidecar
from analysis.published_finals import CURVES, PUBLISHED, load_finals
from analysis.score_rule import Floats, Ints, RunCurve, learning_curve
from analysis.tables import load_tables
from bench import tasks
from bench.errors import UserError

AGENTS = ("sac", "dreamerv3", "tdmpc", "tdmpc2")
"""In the paper's order."""
VISUAL_AGENTS = ("curl", "drqv2", "dreamerv3 (2024)", "tdmpc2")
VISUAL_END_ENV_STEPS = 1_000_000
"""Where the curves of all visual agents end."""
POINTS = 41
"""On an aggregate curve, at most."""


@dataclass(frozen=True)
class PaperData:
    """What there is to draw from."""

    finals: pd.DataFrame
    """Final scores; columns of `analysis.published_finals.FINALS`."""
    curves: Mapping[tuple[str, str], tuple[RunCurve, ...]] | None
    """(agent, task) -> runs from state observations; None where curves were not imported."""
    visual: Comparison | None
    """Agents from pixels on the ten visual tasks."""

    def matrices(self) -> dict[str, dict[str, Floats]]:
        """Group -> agent -> final scores (runs, tasks)."""
        wanted = self.finals[(self.finals["obs"] == "state") & (self.finals["variant"] == "default")]
        by_agent = {agent: rows for agent, rows in wanted.groupby("agent") if agent in AGENTS}
        found: dict[str, dict[str, Floats]] = {}
        for group, names in groups(wanted["task"].unique()).items():
            found[group] = {}
            for agent in AGENTS:
                table = by_agent[agent].pivot(index="seed", columns="task", values="score")[list(names)]
                if table.isna().to_numpy().any():
                    raise UserError(f"{agent} lacks a seed on a task of {group}: import the published curves again")
                found[group][agent] = table.to_numpy("float64")
        return found


def load(curves: Path = CURVES, finals: Path = PUBLISHED / "final_scores.csv") -> PaperData:
    """Everything that is there: final scores always, curves where they were imported.

    Raises:
        UserError: no final scores, or curves that are not those of the paper.
    """
    if not curves.is_dir():
        return PaperData(load_finals(finals), None, None)
    parts, _, _ = read_sidecar(curves)
    missing = [agent for agent in AGENTS if not any((one.agent, one.obs) == (agent, "state") for one in parts)]
    if missing:
        raise UserError(f"{curves} has no curves of {', '.join(missing)}: import the authors' whole results folder")
    evals = load_tables(curves).evals
    state = evals[(evals["obs"] == "state") & (evals["variant"] == "default") & evals["agent"].isin(AGENTS)]
    visual_tasks = [task.name for task in tasks.task_set("visual")]
    visual = evals[(evals["obs"] == "rgb") & evals["task"].isin(visual_tasks) & (evals["agent"] != "sac")]
    visual = visual[visual["env_steps"] <= VISUAL_END_ENV_STEPS]
    path = curves / "final_scores.csv"
    return PaperData(
        load_finals(path if path.exists() else finals),
        align(state).curves,
        align(visual) if len(visual) else None,
    )


def bars(matrices: Mapping[str, Mapping[str, Floats]], reps: int) -> pd.DataFrame:
    """Aggregates of every group: columns group, agent, metric, value, low, high, seeds, tasks."""
    parts = [statistics.aggregates(agents, reps).assign(group=group) for group, agents in matrices.items()]
    table = pd.concat(parts, ignore_index=True)
    return table[["group", *[column for column in table.columns if column != "group"]]]


def task_curves(
    curves: Mapping[tuple[str, str], Sequence[RunCurve]],
    agents: Iterable[str],
    names: Iterable[str],
    reps: int,
    end: int | None = None,
) -> pd.DataFrame:
    """Mean over seeds with its interval, in the task's own unit (return, or success in percent).

    Args:
        end: env steps beyond which nothing is shown.

    Returns:
        Columns task, agent, env_steps, mean, low, high, seeds, unit.
    """
    agents = list(agents)
    parts = []
    for task in names:
        is_return = tasks.get(task).metric == "return"
        for agent in agents:
            runs = curves.get((agent, task), ())
            if not runs:
                continue
            env_steps, scores = learning_curve(runs)
            if end is not None:
                env_steps, scores = env_steps[env_steps <= end], scores[:, env_steps <= end]
            mean, low, high = statistics.mean_interval(scores * (10 if is_return else 1), reps)
            unit = "return" if is_return else "success %"
            values = {"env_steps": env_steps, "mean": mean, "low": low, "high": high}
            values |= {"seeds": np.isfinite(scores).sum(axis=0)}
            parts.append(pd.DataFrame({"task": task, "agent": agent, "unit": unit, **values}))
    columns = ["task", "agent", "env_steps", "mean", "low", "high", "seeds", "unit"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def group_scores(
    curves: Mapping[tuple[str, str], Sequence[RunCurve]], agent: str, names: Sequence[str]
) -> tuple[Ints, Floats]:
    """Scores of an agent over the tasks of a group on one axis, up to the smallest budget among them.

    Between evaluations the curve of a run is straight. A run before its first evaluation has no score: the axis begins
    where all of them have one. A published run that stopped keeps its last score, as in the paper.

    Returns:
        env_steps: (points,)
        scores: (runs, tasks, points)
    """
    runs = [curves[agent, task] for task in names]
    count = min(len(of_task) for of_task in runs)
    end = min(tasks.get(task).budget_env_steps for task in names)
    spacing = max(tasks.get(task).eval_every_env_steps for task in names)
    spacing *= math.ceil(end / spacing / (POINTS - 1))
    env_steps = np.arange(0, end + 1, spacing)
    scores = np.stack(
        [
            np.stack([np.interp(env_steps, run.env_steps, run.scores, left=np.nan) for run in of_task[:count]])
            for of_task in runs
        ],
        axis=1,
    )  # (runs, tasks, points)
    there = np.isfinite(scores).all(axis=(0, 1))
    return env_steps[there], scores[..., there]


def group_curves(
    curves: Mapping[tuple[str, str], Sequence[RunCurve]], matrices: Mapping[str, Mapping[str, Floats]], reps: int
) -> pd.DataFrame:
    """Mean and IQM over env steps for every group and agent.

    Returns:
        Columns group, agent, env_steps, mean, mean_low, mean_high, iqm, low, high.
    """
    wanted = groups({task for _, task in curves})
    parts = []
    for group, agents in matrices.items():
        for agent in agents:
            env_steps, scores = group_scores(curves, agent, wanted[group])
            mean, low, high = statistics.mean_curve(scores, reps)
            iqm = statistics.sample_efficiency(env_steps, {agent: scores}, reps)
            parts.append(iqm.assign(group=group, mean=mean, mean_low=low, mean_high=high))
    table = pd.concat(parts, ignore_index=True)
    return table[["group", "agent", "env_steps", "mean", "mean_low", "mean_high", "iqm", "low", "high"]]


def with_mean(table: pd.DataFrame, groups_table: pd.DataFrame, group: str) -> pd.DataFrame:
    """Curves of tasks scored by return with one more panel: the mean over the tasks of their group."""
    rows = groups_table[groups_table["group"] == group]
    count = table["task"].nunique()
    mean = pd.DataFrame(
        {
            "task": f"mean of {count} tasks",
            "agent": rows["agent"],
            "env_steps": rows["env_steps"],
            "mean": rows["mean"] * 10,
            "low": rows["mean_low"] * 10,
            "high": rows["mean_high"] * 10,
            "seeds": int(table["seeds"].min()),
            "unit": "return",
        }
    )
    return pd.concat([table, mean], ignore_index=True)


def profiles(matrices: Mapping[str, Mapping[str, Floats]], reps: int) -> pd.DataFrame:
    """Performance profiles of every group: columns group, agent, score, share, low, high."""
    parts = [
        statistics.performance_profiles(agents, reps=reps).assign(group=group) for group, agents in matrices.items()
    ]
    return pd.concat(parts, ignore_index=True)


def improvements(matrices: Mapping[str, Mapping[str, Floats]], reps: int, agent: str = "tdmpc2") -> pd.DataFrame:
    """Probability that a run of `agent` beats one of another: columns group, x, y, probability, low, high."""
    rows = []
    for group, agents in matrices.items():
        for other in [name for name in agents if name != agent]:
            x, y = agents[agent], agents[other]
            value = statistics.probability_of_improvement(x, y)
            rows.append((group, agent, other, value, *statistics.improvement_interval(x, y, reps)))
    return pd.DataFrame(rows, columns=["group", "x", "y", "probability", "low", "high"])


def final_table(finals: pd.DataFrame, reps: int) -> pd.DataFrame:
    """Mean over seeds of every task and agent: columns task, group, agent, score, low, high, std, seeds, env_steps."""
    wanted = finals[(finals["obs"] == "state") & (finals["variant"] == "default")]
    rows = []
    for (task, agent), group in wanted.groupby(["task", "agent"], sort=True):
        scores = group[["score"]].to_numpy()
        mean, low, high = statistics.mean_interval(scores, reps)
        std = float(scores.std(ddof=1)) if len(scores) > 1 else float("nan")
        shared = (task, tasks.get(task).domain, agent)
        rows.append((*shared, mean[0], low[0], high[0], std, len(scores), int(group["env_steps"].max())))
    columns = ["task", "domain", "agent", "score", "low", "high", "std", "seeds", "env_steps"]
    return pd.DataFrame(rows, columns=columns)


def paper_numbers(path: Path = PUBLISHED / "paper_numbers.csv") -> pd.DataFrame:
    """Numbers that the paper prints and of which no curves are public: columns item, setting, value, unit, detail."""
    if not path.exists():
        raise UserError(f"no {path}: it comes with a clone of this repository")
    return pd.read_csv(path)
