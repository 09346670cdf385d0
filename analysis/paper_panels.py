"""Drawing the paper's figures from their tables. Nothing is computed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.panels import interval_row, legend, line
from analysis.style import Style, figure, million, save, styles, title
from bench import tasks


def draw_bars(table: pd.DataFrame, agents: Sequence[str], folder: Path, name: str) -> None:
    """Figure 1: a panel of bars for each group; columns of `paper_data.bars`."""
    means = table[table["metric"] == "Mean"]
    names = list(dict.fromkeys(means["group"]))
    look = styles(agents)
    with figure(10.6, 5.0) as drawn:
        axes = drawn.subplots(2, math.ceil(len(names) / 2), sharey=True).ravel()
        for axis, group in zip(axes, names, strict=False):
            rows = means[means["group"] == group].set_index("agent")
            for place, agent in enumerate(agents):
                row = rows.loc[agent]
                axis.bar(place, row["value"], color=look[agent].colour, width=0.72)
                if np.isfinite(row["low"]):
                    error = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
                    axis.errorbar(place, row["value"], yerr=error, color="#222222", linewidth=1.1, capsize=2.5)
                top = max(row["value"], row["high"] if np.isfinite(row["high"]) else 0)
                axis.text(place, top + 2, f"{row['value']:.1f}", ha="center", va="bottom", fontsize=8.5)
            count = int(rows["tasks"].iloc[0])
            axis.set_title(f"{group} ({count} task{'s' * (count != 1)})")
            axis.set_xticks(range(len(agents)), [title(agent) for agent in agents], rotation=30, ha="right", fontsize=9)
            axis.grid(axis="x", visible=False)
            axis.set_ylim(0, 112)
            axis.set_yticks([0, 25, 50, 75, 100])
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        drawn.supylabel("final score (0–100)", fontsize=10)
        save(drawn, folder, name)


def draw_group_curves(
    table: pd.DataFrame, agents: Sequence[str], folder: Path, name: str, columns: tuple[str, str, str], ylabel: str
) -> None:
    """A panel of aggregate curves for each group; columns of `paper_data.group_curves`."""
    names = list(dict.fromkeys(table["group"]))
    value, low, high = columns
    look = styles(agents)
    with figure(10.6, 4.9) as drawn:
        axes = drawn.subplots(2, math.ceil(len(names) / 2), sharey=True).ravel()
        for axis, group in zip(axes, names, strict=False):
            for agent in agents:
                rows = table[(table["group"] == group) & (table["agent"] == agent)]
                line(axis, look[agent], rows["env_steps"], rows[value], rows[low], rows[high])
            axis.set_title(group)
            axis.set_ylim(-3, 103)
            axis.set_yticks([0, 25, 50, 75, 100])
            _steps_axis(axis)
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        drawn.supxlabel("env steps", fontsize=10)
        drawn.supylabel(ylabel, fontsize=10)
        legend(drawn, agents, look, title)
        save(drawn, folder, name)


def draw_task_curves(
    table: pd.DataFrame, agents: Sequence[str], folder: Path, name: str, columns: int, panel_in: tuple[float, float]
) -> None:
    """A panel for each task in the order of the table; columns of `paper_data.task_curves`."""
    look = styles(agents)
    panels = list(table.groupby("task", sort=False))
    rows = math.ceil(len(panels) / columns)
    width, height = panel_in
    with figure(columns * width + 0.5, rows * height + 0.5) as drawn:
        axes = drawn.subplots(rows, columns, squeeze=False).ravel()
        for axis, (task, of_task) in zip(axes, panels, strict=False):
            _task_panel(axis, str(task), of_task, agents, look)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        drawn.supxlabel("env steps", fontsize=10)
        units = " · ".join(dict.fromkeys("episode return" if unit == "return" else unit for unit in table["unit"]))
        drawn.supylabel(units, fontsize=10)
        legend(drawn, agents, look, title)
        save(drawn, folder, name)


def _task_panel(axis: Axes, task: str, table: pd.DataFrame, agents: Sequence[str], look: Mapping[str, Style]) -> None:
    for agent in agents:
        rows = table[table["agent"] == agent]
        if len(rows):
            line(axis, look[agent], rows["env_steps"], rows["mean"], rows["low"], rows["high"])
    top = 1000 if table["unit"].iloc[0] == "return" else 100
    axis.set_ylim(-0.03 * top, 1.03 * top)
    axis.set_yticks([0, top // 2, top])
    axis.set_title(task, fontsize=min(9.0, 200 / len(task)))  # long names must not run into the next panel
    axis.tick_params(labelsize=8)
    _steps_axis(axis)


def _steps_axis(axis: Axes) -> None:
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(million))


def draw_intervals(table: pd.DataFrame, agents: Sequence[str], folder: Path, name: str) -> None:
    """Rows of groups, columns of metrics, an interval for each agent."""
    groups = list(dict.fromkeys(table["group"]))
    metrics = [metric for metric in ("Median", "IQM", "Mean", "Optimality gap") if metric in set(table["metric"])]
    look = styles(agents)
    keyed = table.set_index(["group", "metric", "agent"])
    with figure(10.6, 1.25 * len(groups) + 0.4) as drawn:
        axes = drawn.subplots(len(groups), len(metrics), sharey=True, sharex=True, squeeze=False)
        for group, of_group in zip(groups, axes, strict=True):
            for metric, axis in zip(metrics, of_group, strict=True):
                for place, agent in enumerate(agents):
                    row = keyed.loc[(group, metric, agent)]
                    interval_row(axis, place, look[agent], row["value"], row["low"], row["high"])
                axis.set_yticks(range(len(agents)), [title(agent) for agent in agents], fontsize=8.5)
                axis.set_ylim(len(agents) - 0.45, -0.55)
                axis.set_xlim(-3, 103)
                axis.grid(axis="y", visible=False)
                axis.tick_params(axis="y", length=0)
                if group == groups[0]:
                    axis.set_title(metric + (" (lower is better)" if metric == "Optimality gap" else ""))
            of_group[0].set_ylabel(group, fontsize=9.5, fontweight="bold")
        drawn.supxlabel("score (0–100)", fontsize=10)
        save(drawn, folder, name)


def draw_profiles(table: pd.DataFrame, agents: Sequence[str], folder: Path, name: str) -> None:
    """Share of runs above every score, a panel for each group."""
    groups = list(dict.fromkeys(table["group"]))
    look = styles(agents)
    with figure(10.6, 4.9) as drawn:
        axes = drawn.subplots(2, math.ceil(len(groups) / 2), sharey=True, sharex=True).ravel()
        for axis, group in zip(axes, groups, strict=False):
            for agent in agents:
                rows = table[(table["group"] == group) & (table["agent"] == agent)]
                share, low, high = (rows[column] * 100 for column in ("share", "low", "high"))
                line(axis, look[agent], rows["score"], share, low, high, "steps-post")
            axis.set_title(group)
            axis.set_xlim(0, 100)
            axis.set_ylim(-3, 103)
            axis.tick_params(labelbottom=True)
        for axis in axes[len(groups) :]:
            axis.set_axis_off()
        drawn.supxlabel("score τ (0–100)", fontsize=10)
        drawn.supylabel("runs with a score above τ (%)", fontsize=10)
        legend(drawn, agents, look, title)
        save(drawn, folder, name)


def draw_improvements(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Probability of improvement over each other agent, a panel for each group."""
    groups = list(dict.fromkeys(table["group"]))
    others = list(dict.fromkeys(table["y"]))
    look = styles([*dict.fromkeys(table["x"]), *others])
    with figure(10.6, 3.8) as drawn:
        axes = drawn.subplots(2, math.ceil(len(groups) / 2), sharey=True, sharex=True).ravel()
        for axis, group in zip(axes, groups, strict=False):
            rows = table[table["group"] == group].set_index("y")
            for place, other in enumerate(others):
                row = rows.loc[other]
                interval_row(axis, place, look[other], row["probability"], row["low"], row["high"])
            axis.axvline(0.5, color="#444444", linewidth=1, linestyle=(0, (3, 2)))
            axis.set_yticks(range(len(others)), [f"> {title(other)}" for other in others])
            axis.set_ylim(len(others) - 0.4, -0.6)
            axis.set_xlim(0, 1.03)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
            axis.tick_params(labelbottom=True)
            axis.set_title(group)
        for axis in axes[len(groups) :]:
            axis.set_axis_off()
        drawn.supxlabel(f"P({title(table['x'].iloc[0])} > other agent)", fontsize=10)
        save(drawn, folder, name)


def draw_model_size(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Table 1 and the left of Figure 7: score over parameters; columns parameters, value, gpu_days."""
    look = styles(["tdmpc2"])["tdmpc2"]
    with figure(5.4, 3.6) as drawn:
        axis = drawn.subplots()
        axis.plot(table["parameters"], table["value"], look.marker + "-", color=look.colour, linewidth=1.8)
        for row in table.itertuples():
            text = f"{row.value:.1f}\n{row.gpu_days:g} GPU-days"
            place = (row.parameters, row.value)
            axis.annotate(text, place, (5, -5), textcoords="offset points", va="top", ha="left", fontsize=8.5)
        axis.set_xscale("log")
        axis.set_xticks(table["parameters"], [f"{value / 1e6:.3g}M" for value in table["parameters"]])
        axis.minorticks_off()
        axis.set_xlim(0.9e6, 1.6e9)
        axis.set_ylim(0, 80)
        axis.set_xlabel("parameters")
        axis.set_ylabel("normalized score, 80 tasks")
        save(drawn, folder, name)


def draw_settings(table: pd.DataFrame, folder: Path, name: str, ylabel: str) -> None:
    """Bars of what the paper prints, a panel for each item; columns panel, setting, value."""
    look = styles(["tdmpc2"])["tdmpc2"]
    panels = list(table.groupby("panel", sort=False))
    widths = [len(rows) for _, rows in panels]
    with figure(max(3.4, 1.15 * sum(widths) + 0.8), 3.4) as drawn:
        axes = drawn.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths).ravel()
        for axis, (panel, rows) in zip(axes, panels, strict=True):
            places = range(len(rows))
            axis.bar(places, rows["value"], color=look.colour, width=0.62)
            for place, value in zip(places, rows["value"], strict=True):
                axis.text(place, value + 1, f"{value:.1f}", ha="center", va="bottom", fontsize=9)
            axis.set_xticks(places, [setting.replace(" + ", "\n+ ") for setting in rows["setting"]], fontsize=9)
            axis.set_xlim(-0.6, len(rows) - 0.4)
            axis.set_title(panel)
            axis.grid(axis="x", visible=False)
            axis.set_ylim(0, table["value"].max() * 1.15)
        axes[0].set_ylabel(ylabel)
        save(drawn, folder, name)


def domain_tasks(domain: str) -> list[str]:
    """The tasks of a domain in order of name, as the paper's grids show them."""
    return sorted(task.name for task in tasks.task_set(domain))
