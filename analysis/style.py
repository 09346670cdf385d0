"""How figures look: one colour, line and marker for each agent, and files that are the same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bench import atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which the colour-blind can tell apart, without its yellow (too pale on white)."""
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.4, 1.4)))
"""The line changes where the colours begin anew."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DPI = 160

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "text.parse_math": False,  # a `$` in a name is a dollar sign
    "pdf.fonttype": 42,
    "svg.hashsalt": "tdmpc2-bench",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Style:
    """How one agent is drawn, in every figure."""

    colour: str
    line: Any
    marker: str


def styles(agents: Sequence[str]) -> dict[str, Style]:
    """A style for each agent, by its place; no two of the first 56 share colour and marker."""
    return {
        agent: Style(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)], MARKERS[i % len(MARKERS)])
        for i, agent in enumerate(agents)
    }


@contextmanager
def figure(width_in: float, height_in: float) -> Iterator[Figure]:
    """An empty figure in the suite's style, whatever the user's own matplotlib settings; no window, no global state."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield Figure(figsize=(width_in, height_in), layout="constrained")


def render(drawn: Figure, kind: str) -> bytes:
    """A figure as "png" or "pdf" without dates or names of programs, so that equal figures are equal bytes."""
    nothing = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=kind, dpi=DPI, metadata=nothing[kind])
    return buffer.getvalue()


def save(drawn: Figure, folder: Path, name: str) -> bytes:
    """Write `name`.png and `name`.pdf; returns the PNG."""
    png = render(drawn, "png")
    atomic.write_bytes(folder / f"{name}.png", png)
    atomic.write_bytes(folder / f"{name}.pdf", render(drawn, "pdf"))
    return png


def million(value: float, _position: int = 0) -> str:
    """Env steps for an axis: 0, 500k, 2M."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
