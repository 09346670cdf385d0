"""The task embeddings of a multi-task model, drawn in the plane (the paper's Figures 7 and 19).

t-SNE (van der Maaten and Hinton 2008, scikit-learn's, computed exactly) keeps near neighbours near; distances between
groups, axes and orientation mean nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.panels import write_csv
from analysis.style import COLOURS, MARKERS, figure, save
from bench import tasks
from bench.errors import UserError

NAME = "embeddings"
PERPLEXITY = 10.0
"""Neighbours that a task is kept near to, about; fewer where there are few tasks."""
FEWEST = 4
UNKNOWN = "unknown"
"""Domain of tasks whose names are not known."""
LARGEST_IN = 9.0
"""Side of the figure of many tasks."""
GAPS_POINTS = (4.0, 9.0, 16.0, 26.0)
"""How far from its point a name may stand."""
HORIZONTAL, VERTICAL = {1: "left", 0: "center", -1: "right"}, {1: "bottom", 0: "center", -1: "top"}
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


def table(names: Sequence[str], embeddings: NDArray[np.float32], seed: int) -> pd.DataFrame:
    """Where each task lies in the plane.

    Args:
        names: of the tasks, in the order of their embeddings; those of no task of the table are of unknown domain.
        embeddings: (tasks, T).
        seed: of t-SNE.

    Returns:
        Columns number, task, domain, norm (of the embedding), x, y.

    Raises:
        UserError: too few tasks.
    """
    from sklearn.manifold import TSNE

    count = len(names)
    if count < FEWEST:
        raise UserError(f"a picture of embeddings needs at least {FEWEST} tasks, the model has {count}")
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", method="exact", random_state=seed).fit_transform(embeddings)
    known = {task.name: task.domain for task in tasks.tasks()}
    return pd.DataFrame(
        {
            "number": range(count),
            "task": list(names),
            "domain": [known.get(name, UNKNOWN) for name in names],
            "norm": np.linalg.norm(embeddings, axis=1),
            "x": plane[:, 0],
            "y": plane[:, 1],
        }
    )


def write_figure(points: pd.DataFrame, folder: Path) -> Path:
    """Draw what `table` gives as `embeddings`.png, .pdf and .csv. Returns the PNG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(points, folder, NAME)
    domains = list(dict.fromkeys(points["domain"]))
    colour = {domain: COLOURS[place % len(COLOURS)] for place, domain in enumerate(domains)}
    marker = {domain: MARKERS[place % len(MARKERS)] for place, domain in enumerate(domains)}
    side_in = min(LARGEST_IN, 4 + len(points) / 12)
    with figure(side_in, side_in) as drawn:
        axis = drawn.subplots()
        for domain, part in points.groupby("domain", sort=False):
            axis.plot(part["x"], part["y"], marker[domain], color=colour[domain], markersize=6, alpha=0.85)
        axis.set(xticks=[], yticks=[], xlabel="t-SNE", ylabel="t-SNE")
        axis.margins(0.12)
        handles = [Line2D([], [], linestyle="", marker=marker[d], color=colour[d]) for d in domains]
        drawn.legend(handles, domains, loc="outside upper center", ncols=len(domains))
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")  # the names are placed in what the layout came to
        _write_names(axis, points, [colour[domain] for domain in points["domain"]])
        save(drawn, folder, NAME)
    return folder / f"{NAME}.png"


def _write_names(axis: Axes, points: pd.DataFrame, colours: Sequence[str]) -> None:
    """A name beside each point, where it covers as little as possible of points and of names already there."""
    drawn = axis.get_figure(root=True)
    assert drawn is not None
    renderer, pixels = FigureCanvasAgg(drawn).get_renderer(), drawn.dpi / 72
    at = axis.transData.transform(points[["x", "y"]].to_numpy())
    taken = np.hstack([at - 4, at + 4])  # (boxes, 4): left, bottom, right, top
    frame = np.array([axis.get_window_extent(renderer).extents])
    gaps, directions = (np.array(values) for values in zip(*itertools.product(GAPS_POINTS, DIRECTIONS), strict=True))
    offsets = gaps[:, None] * directions  # (places, 2)
    for place, (name, colour) in enumerate(zip(points["task"], colours, strict=True)):
        spot = tuple(points.loc[points.index[place], ["x", "y"]])
        text = axis.annotate(name, spot, (0, 0), textcoords="offset points", color=colour, fontsize=6.5)
        size = np.array(text.get_window_extent(renderer).size)
        # A name that goes to the left of its point ends there; one above or below it is centred.
        corner = at[place] + offsets * pixels - (1 - directions) / 2 * size
        boxes = np.hstack([corner, corner + size])  # (places, 4)
        cost = gaps + overlaps(boxes, np.delete(taken, place, 0)).sum(1)
        cost += 10 * (size.prod() - overlaps(boxes, frame)[:, 0])
        best = int(cost.argmin())
        x, y = directions[best]
        text.set(position=offsets[best], ha=HORIZONTAL[x], va=VERTICAL[y])
        taken = np.vstack([taken, boxes[best]])


def overlaps(some: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The areas that boxes (n, 4) and (m, 4) have in common, (n, m); a box is its left, bottom, right and top."""
    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(2)
