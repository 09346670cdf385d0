"""What every figure is drawn with: a curve with its band, an interval, a legend, and the numbers as CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.style import MARKERS, Style
from bench import atomic

MARKS = 6
"""Markers along a curve, about."""
_FILL: dict[str, Any] = {"default": None, "steps-post": "post"}
"""What `fill_between` calls the draw styles of `plot`."""


def line(axis: Axes, style: Style, x: Any, y: Any, low: Any, high: Any, steps: str = "default") -> None:
    """A curve with its band; `low` and `high` are NaN where there is none."""
    if np.isfinite(np.asarray(low, dtype=float)).any():
        axis.fill_between(x, low, high, color=style.colour, alpha=0.18, linewidth=0, step=_FILL[steps])
    every = max(1, round(len(x) / MARKS))
    start = list(MARKERS).index(style.marker) * every // len(MARKERS)  # so that markers of agents do not coincide
    axis.plot(
        x,
        y,
        color=style.colour,
        linestyle=style.line,
        linewidth=1.8,
        drawstyle=steps,
        marker=style.marker,
        markevery=(start, every),
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.7,
    )


def interval_row(axis: Axes, place: int, style: Style, value: float, low: float, high: float) -> None:
    """A point with its interval, lying."""
    if np.isfinite(low):
        axis.barh(place, high - low, left=low, height=0.56, color=style.colour, alpha=0.3, linewidth=0)
    axis.plot([value], [place], style.marker, color=style.colour, markersize=7, markeredgecolor="white", clip_on=False)


def score_axis(axis: Axes, low: float, high: float) -> None:
    """A y axis over 0-100, wider where scores leave that range."""
    axis.set_ylim(min(-3.0, low - 3.0), max(103.0, high + 3.0))
    if low >= -3 and high <= 103:
        axis.set_yticks([0, 25, 50, 75, 100])


def legend(drawn: Figure, agents: Sequence[str], look: Mapping[str, Style], name: Callable[[str], str] = str) -> None:
    """A legend above the panels; the figure grows by its height, so that the panels keep theirs."""
    handles = [
        Line2D([], [], color=look[agent].colour, linestyle=look[agent].line, linewidth=2, marker=look[agent].marker)
        for agent in agents
    ]
    names = [shortened(name(agent), 32) for agent in agents]
    width_in, height_in = drawn.get_size_inches()
    columns = max(1, min(len(agents), int(width_in / (0.75 + 0.072 * max(map(len, names))))))
    drawn.set_size_inches(width_in, height_in + 0.1 + 0.21 * math.ceil(len(agents) / columns))
    drawn.legend(handles, names, loc="outside upper center", ncols=columns, handlelength=2.8)


def shortened(name: str, length: int) -> str:
    """A name of at most `length` characters, cut in the middle: variants often differ at their end."""
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def write_csv(table: pd.DataFrame, folder: Path, name: str) -> None:
    """The numbers of a figure, as `name`.csv beside it."""
    atomic.write_text(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
