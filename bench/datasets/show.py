"""What a converted data set holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets.layout import ENTRIES, Layout, spread

MOST_ROWS = 200
"""Rows of each task whose returns are looked at, evenly spaced."""


def facts(folder: Path) -> dict[str, Any]:
    """Sizes, and of each task its rows and the returns of up to 200 of them (of a piece, where episodes are cut).

    Raises:
        UserError: no data set there, or it is not whole.
    """
    layout = Layout.read(folder)
    numbers = np.memmap(folder / ENTRIES, "<f4", "r")
    tasks: list[dict[str, Any]] = []
    for part, start in zip(layout.parts, layout.starts, strict=False):
        returns = np.zeros(0)
        if part.rows:
            shape = (part.rows, layout.row_entries, part.entry_size)
            rewards = numbers[start : start + int(np.prod(shape))].reshape(shape)[:, 1:, -1]
            returns = rewards[list(spread(part.rows, MOST_ROWS))].sum(axis=1, dtype=np.float64)
        some = {"mean": returns.mean(), "least": returns.min(), "most": returns.max()} if part.rows else {}
        sizes = {"rows": part.rows, "obs_size": part.obs_size, "action_size": part.action_size}
        tasks.append({"task": part.task, **sizes, **{name: float(value) for name, value in some.items()}})
    return {
        "rows": layout.rows,
        "row_entries": layout.row_entries,
        "transitions": layout.rows * (layout.row_entries - 1),
        "bytes": layout.bytes,
        "fingerprint": layout.fingerprint,
        "sources": [name for name, _ in layout.sources],
        "tasks": tasks,
    }
