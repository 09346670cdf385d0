"""Parts of the report's page: aggregates by group, small multiples as inline SVG, cost, and videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.alignment import Comparison, labels, mixes_obs
from analysis.groups import ALL, groups
from analysis.style import MARKERS, Style, styles
from analysis.tables import Tables

WIDTH, HEIGHT, MARGIN = 168, 84, 4
"""Of a small panel, in SVG units; scores 0-100 fill the height between the margins."""
POINTS = 50
"""Of a curve in a small panel, at most."""
DASHES = ("", "6 2", "2 2", "8 2 2 2", "4 1 1 1", "1 2", "10 3", "3 4")
"""Lines of the small panels, one for each of `style.MARKERS`: too small for markers, so the line tells agents apart."""
VIDEOS = 12
"""Shown on the page, at most."""


def group_aggregates(comparison: Comparison, reps: int) -> pd.DataFrame:
    """Aggregates by group where there is more than one: columns of `statistics.aggregates` and group."""
    index = {task: place for place, task in enumerate(comparison.common_tasks)}
    found = groups(comparison.common_tasks, comparison.domains)
    if len(found) < 3:  # a single domain and All say the same
        return pd.DataFrame(columns=["group", "agent", "metric", "value", "low", "high", "seeds", "tasks"])
    parts = []
    for group, names in found.items():
        if group == ALL:
            continue
        columns = [index[name] for name in names]
        matrices = {agent: matrix[:, columns] for agent, matrix in comparison.matrices.items()}
        parts.append(statistics.aggregates(matrices, reps).assign(group=group))
    return pd.concat(parts, ignore_index=True)


def group_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """For the template: a row for each group and agent with its cells for mean and IQM."""
    rows = []
    for (group, agent), cells in table.groupby(["group", "agent"], sort=False):
        values = {
            row.metric: {"value": row.value, "interval": None if pd.isna(row.low) else (row.low, row.high)}
            for row in cells.itertuples()
        }
        first = cells.iloc[0]
        rows.append(
            {
                "group": group,
                "agent": agent,
                "tasks": int(first["tasks"]),
                "seeds": int(first["seeds"]),
                "cells": values,
            }
        )
    return rows


@dataclass(frozen=True)
class Panel:
    """A task's curves in small."""

    task: str
    domain: str
    lines: tuple[dict[str, str], ...]
    """colour, dash, and points of a polyline."""
    bands: tuple[dict[str, str], ...]
    """colour and points of a polygon."""
    end: str
    """Env steps at the right edge."""
    words: str
    """What the panel shows."""


def small_multiples(comparison: Comparison, table: pd.DataFrame) -> list[Panel]:
    """A panel for each task.

    Args:
        table: that of `figures.learning_curve_table`.
    """
    look = styles(comparison.agents)
    means = table[table["seed"] == "mean"]
    panels = []
    for task, of_task in means.groupby("task", sort=True):
        end = int(of_task["env_steps"].max()) or 1
        lines, bands, words = [], [], []
        for agent, rows in of_task.groupby("agent", sort=True):
            keep = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).round().astype(int))
            rows = rows.iloc[keep]
            x = rows["env_steps"].to_numpy("float64") / end * WIDTH
            shape = _dress(look[str(agent)])
            lines.append(shape | {"points": _points(x, rows["score"])})
            if rows["low"].notna().any():
                both = np.concatenate([rows["low"], rows["high"][::-1]])
                bands.append(shape | {"points": _points(np.concatenate([x, x[::-1]]), both)})
            words.append(f"{agent} {rows['score'].iloc[-1]:.1f}")
        said = f"{task}: {', '.join(words)} after {end:,} env steps"
        panels.append(Panel(str(task), comparison.domains[task], tuple(lines), tuple(bands), f"{end:,}", said))
    return panels


def legend(agents: Sequence[str]) -> list[dict[str, str]]:
    """The look of every agent in the small panels."""
    look = styles(agents)
    return [_dress(look[agent]) | {"agent": agent} for agent in agents]


def _dress(style: Style) -> dict[str, str]:
    return {"colour": style.colour, "dash": DASHES[MARKERS.index(style.marker)]}


def _points(x: Any, score: Any) -> str:
    y = MARGIN + (HEIGHT - 2 * MARGIN) * (1 - np.clip(np.asarray(score, dtype="float64"), 0, 100) / 100)
    return " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(x, y, strict=True))


def offline_rows(finals: pd.DataFrame) -> list[dict[str, Any]]:
    """For the template: a row for each set of tasks and agent, with the mean over tasks and each task's last score.

    Args:
        finals: that of `offline.final_scores`.
    """
    rows = []
    for (tasks, agent), group in finals.groupby(["tasks", "agent"], sort=True):
        cells = [
            {"task": row.task, "value": row.score, "interval": None if pd.isna(row.low) else (row.low, row.high)}
            for row in group.itertuples()
        ]
        rows.append(
            {
                "tasks": tasks,
                "agent": agent,
                "updates": int(group["updates"].min()),
                "seeds": int(group["seeds"].min()),
                "score": float(group["score"].mean()),
                "cells": cells,
            }
        )
    return rows


def cost(tables: Tables) -> list[dict[str, Any]]:
    """What every agent's runs took: a row for each agent, only of runs whose time is known."""
    runs = tables.runs.assign(label=labels(tables.runs, mixes_obs(tables.evals)))
    rows = []
    for agent, group in runs[runs["wall_s"].fillna(0) > 0].groupby("label", sort=True):
        wall_h = float(group["wall_s"].sum()) / 3600
        steps = float(group["env_steps"].fillna(0).sum())
        updates = group["updates"].dropna()
        gpu_h = float(group["gpu_h"].fillna(0).sum())
        peak = group["peak_gpu_gb"].max()
        rows.append(
            {
                "agent": agent,
                "runs": len(group),
                "env_steps": int(steps),
                "updates": int(updates.sum()) if len(updates) else None,
                "wall_h": wall_h,
                "gpu_h": gpu_h,
                "wall_h_per_million": wall_h / steps * 1e6 if steps else None,
                "gpu_h_per_million": gpu_h / steps * 1e6 if steps else None,
                "peak_gpu_gb": None if pd.isna(peak) else float(peak),
            }
        )
    return rows


def videos(tables: Tables, page: Path) -> list[dict[str, str]]:
    """The last video of each run that has one, as links relative to the page; up to `VIDEOS`, spread over tasks.

    Videos stay where they are: inside the page they would make it too large to send.
    """
    found = []
    runs = tables.runs.assign(label=labels(tables.runs, mixes_obs(tables.evals))).sort_values(["seed", "task", "label"])
    for row in runs.itertuples():
        files = sorted(Path(row.path).glob("videos/*.mp4"))
        if files:
            link = Path(os.path.relpath(files[-1].resolve(), page.resolve().parent)).as_posix()
            found.append({"title": f"{row.label} · {row.task} · seed {row.seed}", "link": link})
        if len(found) == VIDEOS:
            break
    return found
