"""A comparison as Markdown, LaTeX, CSV, JSON and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.compare import Compared, rules
from analysis.panels import shortened, write_csv
from analysis.problems import lines as problem_lines
from analysis.style import figure, save, styles
from analysis.text_tables import interval, latex, markdown, markdown_text, number_range
from bench import atomic
from bench.errors import UserError


def write_compared(compared: Compared, folder: Path, reps: int) -> list[Path]:
    """Write `compare.md`, `.tex`, `.json`, `.png`, `.pdf` and the tables as CSV; the same numbers, the same bytes.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder / "compare.md", as_markdown(compared, reps))
        caption = f"{compared.mine} against {', '.join(compared.others)}: scores (0-100), mean over seeds."
        header, rows = _task_cells(compared)
        atomic.write_text(folder / "compare.tex", latex(header, rows, caption, 2))
        atomic.write_json(folder / "compare.json", compared.as_dict())
        write_csv(compared.tasks, folder, "compare")
        write_csv(compared.groups, folder, "compare_groups")
        write_csv(compared.scores, folder, "compare_scores")
        _draw(compared, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror}): choose another folder with -o") from error
    names = (
        "compare.md",
        "compare.tex",
        "compare.json",
        "compare.csv",
        "compare_groups.csv",
        "compare_scores.csv",
        "compare.png",
        "compare.pdf",
    )
    return [folder / name for name in names]


def as_markdown(compared: Compared, reps: int) -> str:
    """The whole comparison to read."""
    tasks = compared.tasks
    names = list(dict.fromkeys(tasks["task"]))
    span = number_range(tasks["env_steps"].tolist())
    lines = [f"# {markdown_text(compared.mine)} against {markdown_text(', '.join(compared.others))}", ""]
    lines += [f"- **{markdown_text(verdict)}**" for verdict in compared.verdicts]
    lines += ["", f"{len(names)} common task{'s' * (len(names) != 1)}, compared at {span} env steps (table below).", ""]
    lines += [f"> Warning: {markdown_text(warning)}" for warning in compared.warnings]
    lines += [f"> {markdown_text(line)}" for line in problem_lines(compared.problems)]
    lines += [f"> Assumed: {markdown_text(assumption)}" for assumption in compared.assumptions]
    lines += ["", "## By group", "", markdown(*_group_cells(compared), 3)]
    lines += ["## Where it wins and loses", "", *_wins(compared), ""]
    lines += ["## Equal time", "", _clock_text(compared), ""]
    lines += ["## By task", "", markdown(*_task_cells(compared), 2), "## Rules and notes", ""]
    lines += [f"- {markdown_text(text)}" for text in (*rules(reps), *compared.notes)]
    lines += [f"- {markdown_text(str(problem))}" for problem in compared.problems if problem.kind == "note"]
    return "\n".join(lines) + "\n"


def _group_cells(compared: Compared) -> tuple[list[str], list[list[str]]]:
    header = ["group", "against", "tasks", "mean", "their mean", "IQM", "their IQM", "difference", "P(higher)"]
    rows = []
    for row in compared.groups.to_dict("records"):
        cells = [interval(row[key], row[f"{key}_low"], row[f"{key}_high"]) for key in _SIDES]
        gap = interval(row["difference"], row["low"], row["high"])
        chance = interval(row["probability"], row["probability_low"], row["probability_high"], 2)
        rows.append([row["group"], row["other"], str(row["tasks"]), *cells, gap, chance])
    return header, rows


_SIDES = ("mine_mean", "theirs_mean", "mine_iqm", "theirs_iqm")


def _task_cells(compared: Compared) -> tuple[list[str], list[list[str]]]:
    header = ["task", "against", "env steps", "mine", "theirs", "seeds", "difference", "result"]
    rows = []
    for row in compared.tasks.to_dict("records"):
        mine = interval(row["mine"], row["mine_low"], row["mine_high"])
        theirs = interval(row["theirs"], row["theirs_low"], row["theirs_high"])
        seeds = f"{row['mine_seeds']} / {row['their_seeds']}"
        gap = interval(row["difference"], row["low"], row["high"])
        rows.append([row["task"], row["other"], _where(row), mine, theirs, seeds, gap, row["result"]])
    return header, rows


def _where(row: Mapping[str, Any]) -> str:
    """The compared env steps, with those of the evaluations where they are others."""
    evaluations = [row["mine_env_steps"], row["their_env_steps"]]
    place = f"{row['env_steps']:,}"
    return place if set(evaluations) == {str(row["env_steps"])} else f"{place} ({' / '.join(evaluations)})"


def _wins(compared: Compared) -> list[str]:
    lines = []
    for other, rows in compared.tasks.groupby("other", sort=False):
        counts = {result: list(of["task"]) for result, of in rows.groupby("result")}
        parts = []
        for result in ("higher", "lower", "not told apart"):
            found = counts.get(result, [])
            listed = f" ({', '.join(found)})" if found and result != "not told apart" else ""
            parts.append(
                f"{result} on {len(found)}{listed}" if result != "not told apart" else f"{result} on {len(found)}"
            )
        lines.append(f"- against {markdown_text(str(other))}: {markdown_text('; '.join(parts))}")
    return lines


def _clock_text(compared: Compared) -> str:
    if compared.clocks.empty:
        return "Not known: a side has no wall-clock time (published curves have none), or none in common."
    rows = [
        [
            row["clock"],
            row["per_task"],
            row["agent"],
            interval(row["value"], row["low"], row["high"]),
            str(row["tasks"]),
        ]
        for row in compared.clocks.to_dict("records")
    ]
    return markdown(["clock", "time a task", "agent", "mean score", "tasks"], rows, 3)


def _draw(compared: Compared, folder: Path) -> None:
    """Differences by group and by task, a row of panels for each other agent."""
    look = styles([compared.mine, *compared.others])
    groups = list(dict.fromkeys(compared.groups["group"]))
    count = compared.tasks["task"].nunique()
    height = max(2.4, 0.32 * len(groups) + 1.0, 1.0 + 0.16 * count if count <= 40 else 5.0)
    with figure(10.6, height * len(compared.others) + 0.4) as drawn:
        axes = drawn.subplots(len(compared.others), 2, squeeze=False, width_ratios=(1, 1.25))
        for other, (left, right) in zip(compared.others, axes, strict=True):
            colour = look[other].colour
            rows = compared.groups[compared.groups["other"] == other]
            _points(left, rows, list(rows["group"]), colour)
            left.set_title(f"{shortened(compared.mine, 24)} - {shortened(other, 24)}, by group")
            rows = compared.tasks[compared.tasks["other"] == other].sort_values("difference", ascending=False)
            _points(right, rows, list(rows["task"]) if count <= 40 else None, colour)
            right.set_title(f"by task ({count})")
        drawn.supxlabel("difference in score, points; filled: the 95 % interval excludes 0", fontsize=10)
        save(drawn, folder, "compare")


def _points(axis: Axes, rows: pd.DataFrame, names: list[str] | None, colour: str) -> None:
    low, high, value = (rows[key].to_numpy("float64") for key in ("low", "high", "difference"))
    places = np.arange(len(rows))
    known = np.isfinite(low)
    axis.hlines(places[known], low[known], high[known], color=colour, alpha=0.45, linewidth=3)
    told = known & ((low > 0) | (high < 0))
    axis.plot(value[told], places[told], "o", color=colour, markersize=5)
    axis.plot(value[~told], places[~told], "o", color=colour, markersize=5, markerfacecolor="white")
    axis.axvline(0, color="#444444", linewidth=1, linestyle=(0, (3, 2)))
    left, right = axis.get_xlim()
    axis.set_xlim(max(left, -105), min(right, 105))  # an interval may be wider than any difference of scores
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    if names is None:
        axis.set_yticks([])
    else:
        axis.set_yticks(places, [shortened(name, 30) for name in names], fontsize=8.5)


def as_json(compared: Compared) -> str:
    """The whole comparison for programs."""
    return json.dumps(compared.as_dict(), indent=2)
