"""The figures of a report. Each is drawn from a table of numbers, which is written as CSV beside its PNG and PDF."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.alignment import Comparison
from analysis.panels import interval_row, legend, line, score_axis, shortened, write_csv
from analysis.score_rule import learning_curve
from analysis.statistics import METRICS, mean_interval
from analysis.style import Style, figure, million, save, styles

COLUMNS, ROWS = 3, 4
"""Panels on a page of learning curves."""
PAGE_WIDTHS_IN = {1: 5.2, 2: 7.4, 3: 9.3}
"""Width of a page by its columns."""

NAMES = ("aggregates", "sample_efficiency", "performance_profile", "probability_of_improvement", "learning_curves")
"""How the files of figures begin."""


@dataclass(frozen=True)
class Drawn:
    """A figure as it was written."""

    name: str
    """File name without ending, in the figures' folder."""
    title: str
    caption: str
    alt: str
    """What the figure shows, in words and numbers."""
    png: bytes


def learning_curve_table(comparison: Comparison, reps: int) -> pd.DataFrame:
    """Mean score over seeds with its interval at every env-step count, and every seed's own evaluations.

    Returns:
        Columns task, agent, seed ("mean" or a number), env_steps, score, low, high (of the mean only), seeds.
    """
    parts = []
    for (agent, task), runs in sorted(comparison.curves.items(), key=lambda item: (item[0][1], item[0][0])):
        env_steps, scores = learning_curve(runs)
        mean, low, high = mean_interval(scores, reps)
        shared = {"task": task, "agent": agent}
        mean_rows = {
            "env_steps": env_steps,
            "score": mean,
            "low": low,
            "high": high,
            "seeds": np.isfinite(scores).sum(axis=0),
        }
        parts.append(pd.DataFrame({**shared, "seed": "mean", **mean_rows}))
        for run in runs:
            parts.append(
                pd.DataFrame({**shared, "seed": str(run.seed), "env_steps": run.env_steps, "score": run.scores})
            )
    columns = ["task", "agent", "seed", "env_steps", "score", "low", "high", "seeds"]
    return pd.concat(parts, ignore_index=True)[columns]


def draw_learning_curves(
    comparison: Comparison, table: pd.DataFrame, folder: Path, progress: Callable[[str], None] | None = None
) -> list[Drawn]:
    """Pages of learning curves, up to twelve tasks each, in order of domain and task."""
    write_csv(table, folder, "learning_curves")
    tasks = sorted(comparison.tasks, key=lambda task: (comparison.domains[task], task))
    by_task = dict(tuple(table.groupby("task")))
    pages = [tasks[i : i + COLUMNS * ROWS] for i in range(0, len(tasks), COLUMNS * ROWS)]
    drawn = []
    for number, page in enumerate(pages, 1):
        if progress is not None and len(pages) > 1:
            progress(f"learning curves, page {number} of {len(pages)}")
        name = "learning_curves" if len(pages) == 1 else f"learning_curves_{number:02d}"
        drawn.append(_curve_page(comparison, {task: by_task[task] for task in page}, folder, name))
    return drawn


def _curve_page(comparison: Comparison, tables: Mapping[str, pd.DataFrame], folder: Path, name: str) -> Drawn:
    look = styles(comparison.agents)
    columns = min(COLUMNS, len(tables)) if len(tables) != 4 else 2
    rows = math.ceil(len(tables) / columns)
    said = []
    with figure(PAGE_WIDTHS_IN[columns], 2.35 * rows + 0.4) as drawn:
        axes = drawn.subplots(rows, columns, squeeze=False).ravel()
        for axis, (task, table) in zip(axes, tables.items(), strict=False):
            _curve_panel(axis, comparison, task, table, look)
            said.append(_curve_words(task, table))
        for axis in axes[len(tables) :]:
            axis.set_axis_off()
        drawn.supxlabel("env steps", fontsize=10)
        drawn.supylabel("score (0–100)", fontsize=10)
        legend(drawn, comparison.agents, look)
        png = save(drawn, folder, name)
    tasks = list(tables)
    title = "Score over env steps" if name == "learning_curves" else f"{tasks[0]} to {tasks[-1]}"
    caption = (
        "Thick: mean over seeds; band: its 95 % bootstrap interval; thin: each seed. A cross ends a seed that stopped "
        "before the others of its agent; the mean is then that of the others, while they are at least half."
    )
    return Drawn(name, title, caption, "Score over env steps. " + " ".join(said), png)


def _curve_panel(axis: Axes, comparison: Comparison, task: str, table: pd.DataFrame, look: Mapping[str, Style]) -> None:
    for agent in comparison.agents:
        runs = comparison.curves.get((agent, task), ())
        if not runs:
            continue
        style = look[agent]
        end = max(int(run.env_steps[-1]) for run in runs)
        if len(runs) > 1:
            for run in runs:
                axis.plot(run.env_steps, run.scores, color=style.colour, linewidth=0.6, alpha=0.4)
                if run.env_steps[-1] < 0.95 * end:
                    axis.plot(run.env_steps[-1:], run.scores[-1:], "x", color=style.colour, markersize=6)
        mean = table[(table["agent"] == agent) & (table["seed"] == "mean")]
        line(axis, style, mean["env_steps"], mean["score"], mean["low"], mean["high"])
    axis.set_title(shortened(task, 34))
    score_axis(axis, table["score"].min(), table["score"].max())
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(million))


def _curve_words(task: str, table: pd.DataFrame) -> str:
    means = table[table["seed"] == "mean"].groupby("agent").tail(1)
    parts = (f"{row.agent} ends at {row.score:.1f} after {int(row.env_steps):,}" for row in means.itertuples())
    return f"{task}: {', '.join(parts)}."


def draw_sample_efficiency(comparison: Comparison, table: pd.DataFrame, folder: Path) -> Drawn:
    """IQM over env steps with its interval."""
    name = "sample_efficiency"
    write_csv(table, folder, name)
    look = styles(comparison.agents)
    ends = []
    with figure(6.4, 3.6) as drawn:
        axis = drawn.subplots()
        for agent, rows in table.groupby("agent", sort=True):
            line(axis, look[agent], rows["env_steps"], rows["iqm"], rows["low"], rows["high"])
            ends.append(f"{agent} {rows['iqm'].iloc[-1]:.1f}")
        score_axis(axis, table["iqm"].min(), table["iqm"].max())
        axis.xaxis.set_major_formatter(FuncFormatter(million))
        axis.set_xlabel("env steps")
        axis.set_ylabel("IQM of scores (0–100)")
        legend(drawn, comparison.agents, look)
        png = save(drawn, folder, name)
    first, last = int(table["env_steps"].min()), int(table["env_steps"].max())
    caption = (
        f"Interquartile mean over {_tasks(comparison)} and their runs, every task at the same env steps, on the "
        f"coarsest grid that the agents share, from {first:,} to {last:,}. "
        f"{_band(comparison)}"
    )
    alt = f"IQM of scores over env steps. At {last:,} env steps: {', '.join(ends)}."
    return Drawn(name, "Sample efficiency", caption, alt, png)


def draw_intervals(comparison: Comparison, table: pd.DataFrame, folder: Path) -> Drawn:
    """Median, IQM, mean and optimality gap of every agent with intervals."""
    name = "aggregates"
    write_csv(table, folder, name)
    look = styles(comparison.agents)
    agents = list(comparison.agents)
    names = [shortened(agent, 28) for agent in agents]
    with figure(6.6 + 0.075 * max(map(len, names)), 2 * (0.75 + 0.3 * len(agents))) as drawn:
        panels = drawn.subplots(2, 2, sharey=True).ravel()
        for axis, metric in zip(panels, METRICS, strict=True):
            rows = table[table["metric"] == metric].set_index("agent")
            for place, agent in enumerate(agents):
                row = rows.loc[agent]
                interval_row(axis, place, look[agent], row["value"], row["low"], row["high"])
            axis.set_title(f"{metric} {'(lower is better)' if metric == 'Optimality gap' else ''}".strip())
            axis.set_yticks(range(len(agents)), names)
            axis.set_ylim(len(agents) - 0.45, -0.55)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.use_sticky_edges = False
            axis.margins(x=0.08)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
        drawn.supxlabel("score (0–100)", fontsize=10)
        png = save(drawn, folder, name)
    caption = f"Final scores over {_tasks(comparison)}. {_band(comparison, 'Bars')} Axes do not start at 0."
    alt = " ".join(f"{metric}: {_numbers(table[table['metric'] == metric])}." for metric in METRICS)
    return Drawn(name, "Aggregate scores", caption, alt, png)


def draw_profile(comparison: Comparison, table: pd.DataFrame, folder: Path) -> Drawn:
    """Share of runs above every score."""
    name = "performance_profile"
    write_csv(table, folder, name)
    look = styles(comparison.agents)
    said = []
    with figure(6.4, 3.6) as drawn:
        axis = drawn.subplots()
        for agent, rows in table.groupby("agent", sort=True):
            line(
                axis,
                look[agent],
                rows["score"],
                rows["share"] * 100,
                rows["low"] * 100,
                rows["high"] * 100,
                "steps-post",
            )
            half, most = (rows.loc[(rows["score"] - at).abs().idxmin(), "share"] for at in (50, 90))
            said.append(f"{agent}: {half:.0%} of runs above 50, {most:.0%} above 90.")
        axis.set_xlim(0, 100)
        axis.set_ylim(-2, 102)
        axis.set_xlabel("score τ (0–100)")
        axis.set_ylabel("runs with a score above τ (%)")
        legend(drawn, comparison.agents, look)
        png = save(drawn, folder, name)
    caption = f"Share of runs with a final score above τ, over {_tasks(comparison)}. {_band(comparison)}"
    return Drawn(name, "Performance profile", caption, "Share of runs above each score. " + " ".join(said), png)


def draw_improvement(comparison: Comparison, table: pd.DataFrame, folder: Path) -> Drawn:
    """Probability that X beats Y for every pair of agents."""
    name = "probability_of_improvement"
    write_csv(table, folder, name)
    look = styles(comparison.agents)
    names = [f"{shortened(row.x, 24)} > {shortened(row.y, 24)}" for row in table.itertuples()]
    with figure(5.2 + 0.075 * max(map(len, names)), 1.0 + 0.34 * len(table)) as drawn:
        axis = drawn.subplots()
        for place, row in enumerate(table.itertuples()):
            interval_row(axis, place, look[row.x], row.probability, row.low, row.high)
        axis.axvline(0.5, color="#444444", linewidth=1, linestyle=(0, (3, 2)))
        axis.set_yticks(range(len(table)), names)
        axis.set_ylim(len(table) - 0.4, -0.6)
        axis.set_xlim(0.0 if table["low"].min() < 0.4 else 0.4, 1.02)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("P(X > Y)")
        png = save(drawn, folder, name)
    caption = (
        f"Probability that a run of X has a higher final score than a run of Y on the same task, mean over "
        f"{_tasks(comparison)}; ties count half. {_band(comparison, 'Bars')}"
    )
    rows = table.assign(agent=table["x"] + " over " + table["y"], value=table["probability"])
    return Drawn(name, "Probability of improvement", caption, f"P(X > Y): {_numbers(rows, 2)}.", png)


def _tasks(comparison: Comparison) -> str:
    count = len(comparison.common_tasks)
    return "1 task" if count == 1 else f"{count} tasks"


def _band(comparison: Comparison, what: str = "Bands") -> str:
    single = [agent for agent in comparison.agents if comparison.seeds(agent) == 1]
    said = f"{what}: 95 % stratified bootstrap intervals."
    return f"{said} 1 seed, no interval: {', '.join(single)}." if single else said


def _numbers(rows: pd.DataFrame, digits: int = 1) -> str:
    return ", ".join(
        f"{row.agent} {row.value:.{digits}f}"
        + (f" [{row.low:.{digits}f}, {row.high:.{digits}f}]" if np.isfinite(row.low) else " (1 seed, no interval)")
        for row in rows.itertuples()
    )
