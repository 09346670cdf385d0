"""Runs that learn several tasks offline: their normalised score over updates, and each task's at the end.

The normalised score of a run is the mean of the scores of all its tasks (return / 10 on DMControl, success x 100
elsewhere). Updates take the place of env steps in the rules of `analysis.score_rule`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.alignment import labels, mixes_obs
from analysis.figures import Drawn
from analysis.panels import legend, line, score_axis, shortened, write_csv
from analysis.score_rule import RunCurve, common_env_steps, learning_curve, score_at
from analysis.statistics import mean_interval
from analysis.style import figure, million, save, styles
from analysis.tables import Tables

NAME = "offline"
"""How the files of its figure begin."""
CURVES = ["tasks", "agent", "seed", "updates", "score", "low", "high", "seeds"]
FINALS = ["tasks", "task", "domain", "agent", "updates", "score", "low", "high", "seeds"]


def evaluations(tables: Tables) -> pd.DataFrame:
    """The rows of `evals` that are over updates, with the agent's label and `tasks`, what the run calls its tasks."""
    evals = tables.evals[tables.evals["updates"].notna()]
    called = dict(zip(tables.runs["run_id"], tables.runs["task"], strict=True))
    return evals.assign(label=labels(evals, mixes_obs(tables.evals)), tasks=evals["run_id"].map(called))


def score_curves(evals: pd.DataFrame, reps: int) -> pd.DataFrame:
    """Normalised score at every evaluation: mean over seeds with its interval, and each seed's.

    Args:
        evals: of `evaluations`.
        reps: bootstrap resamples.

    Returns:
        Columns `CURVES`; seed is "mean" or a number.
    """
    parts = []
    for (tasks, agent), rows in evals.groupby(["tasks", "label"], sort=True):
        shared: dict[str, Any] = {"tasks": tasks, "agent": agent}
        runs = _curves(rows)
        updates, scores = learning_curve(runs)
        mean, low, high = mean_interval(scores, reps)
        means = {"updates": updates, "score": mean, "low": low, "high": high}
        parts.append(pd.DataFrame({**shared, "seed": "mean", **means, "seeds": np.isfinite(scores).sum(axis=0)}))
        for run in runs:
            parts.append(pd.DataFrame({**shared, "seed": str(run.seed), "updates": run.env_steps, "score": run.scores}))
    return pd.concat(parts, ignore_index=True)[CURVES] if parts else pd.DataFrame(columns=CURVES)


def final_scores(evals: pd.DataFrame, reps: int) -> pd.DataFrame:
    """The score of every task at the updates where agents are compared, mean over seeds; columns `FINALS`."""
    found = []
    for tasks, of_set in evals.groupby("tasks", sort=False):
        updates = common_env_steps({str(agent): _curves(rows) for agent, rows in of_set.groupby("label")})
        if updates is None:
            continue
        for (agent, task), rows in of_set.groupby(["label", "task"], sort=False):
            scores = np.array([score_at(run, np.array([updates])) for run in _curves(rows)])  # (seeds, 1)
            mean, low, high = mean_interval(scores, reps)
            place = (tasks, task, rows["domain"].iloc[0], agent, updates)
            found.append((*place, mean[0], low[0], high[0], int(np.isfinite(scores).sum())))
    return pd.DataFrame(found, columns=FINALS)


def _curves(rows: pd.DataFrame) -> list[RunCurve]:
    """The mean score over the tasks in some rows as a curve over updates for each seed."""
    scores = rows.groupby(["seed", "updates"])["score"].agg(lambda scores: scores.mean(skipna=False)).dropna()
    return [
        RunCurve("", int(seed), of.index.get_level_values("updates").to_numpy("int64"), of.to_numpy("float64"))
        for seed, of in scores.groupby("seed")
    ]


def draw(curves: pd.DataFrame, folder: Path) -> Drawn:
    """Normalised score over updates, a panel for each set of tasks; its numbers as CSV beside it."""
    write_csv(curves, folder, NAME)
    agents = list(dict.fromkeys(curves["agent"]))
    look = styles(agents)
    sets = dict(tuple(curves.groupby("tasks", sort=True)))
    said = []
    with figure(max(5.2, 3.6 * len(sets)), 3.4) as drawn:
        axes = drawn.subplots(1, len(sets), squeeze=False).ravel()
        for axis, (tasks, table) in zip(axes, sets.items(), strict=True):
            for agent, rows in table.groupby("agent", sort=True):
                for _seed, own in rows[rows["seed"] != "mean"].groupby("seed"):
                    if rows["seed"].nunique() > 2:
                        axis.plot(own["updates"], own["score"], color=look[agent].colour, linewidth=0.6, alpha=0.4)
                mean = rows[rows["seed"] == "mean"]
                line(axis, look[agent], mean["updates"], mean["score"], mean["low"], mean["high"])
                last = mean.iloc[-1]
                said.append(f"{agent} on {tasks} ends at {last['score']:.1f} after {int(last['updates']):,} updates.")
            score_axis(axis, table["score"].min(), table["score"].max())
            axis.set_xlim(left=0)
            axis.xaxis.set_major_formatter(million)
            axis.set_title(shortened(str(tasks), 34))
        drawn.supxlabel("updates", fontsize=10)
        drawn.supylabel("normalised score (0–100)", fontsize=10)
        legend(drawn, agents, look)
        png = save(drawn, folder, NAME)
    caption = (
        "Mean score over all tasks that the model learns, over updates. Thick: mean over seeds; band: its 95 % "
        "bootstrap interval where there are several; thin: each seed."
    )
    return Drawn(NAME, "Normalised score over updates", caption, "Normalised score. " + " ".join(said), png)
