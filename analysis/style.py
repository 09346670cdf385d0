"""How figures look: one colour, line and marker for each agent, and files that are the same bytes every time."""

from __future__ import annotations

import io
import itertools
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
PLACES = {"tdmpc2": 0, "tdmpc": 1, "dreamerv3": 2, "sac": 3, "drqv2": 4, "curl": 5}
"""Agents that look the same in every figure: their place in the lists above."""
TITLES = {
    "tdmpc2": "TD-MPC2",
    "tdmpc": "TD-MPC",
    "dreamerv3": "DreamerV3",
    "sac": "SAC",
    "drqv2": "DrQ-v2",
    "curl": "CURL",
}
"""How papers write the names of agents."""
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
    """A style for each agent: its own for those of `PLACES`, wherever it is drawn; the others get what is left.

    A name with something in brackets ("sac (published)") takes the place of the name before them if it is free. No two
    of the first 56 share colour and marker.
    """
    places: dict[str, int] = {agent: PLACES[agent] for agent in agents if agent in PLACES}
    for agent in agents:
        base = agent.partition(" (")[0]
        if agent not in places and base in PLACES and PLACES[base] not in places.values():
            places[agent] = PLACES[base]
    taken = set(places.values())
    order = itertools.chain([len(PLACES)], range(len(PLACES)), itertools.count(len(PLACES) + 1))
    free = (place for place in order if place not in taken)
    for agent in agents:
        if agent not in places:
            places[agent] = next(free)
    return {
        agent: Style(COLOURS[i % len(COLOURS)], LINES[i // len(COLOURS) % len(LINES)], MARKERS[i % len(MARKERS)])
        for agent, i in ((agent, places[agent]) for agent in agents)
    }


@contextmanager
def figure(width_in: float, height_in: float) -> Iterator[Figure]:
    """An empty figure in the suite's style, whatever the user's own matplotlib settings; no window, no global state."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield Figure(figsize=(width_in, height_in), layout="constrained")


def title(agent: str) -> str:
    """An agent's name as papers write it, with what stands in brackets kept."""
    base, bracket, rest = agent.partition(" (")
    return TITLES.get(base, base) + bracket + rest


def render(drawn: Figure, kind: str) -> bytes:
    """A figure as "png" or "pdf" without dates or names of programs, so that equal figures are equal bytes."""
    nothing = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=kind, dpi=DPI, metadata=nothing[kind])
    return buffer.getvalue()


def save(drawn: Figure, folder: Path, name: str) -> bytes:
    """Write `name`.png and `name`.pdf; returns the PNG."""
    drawn.draw_without_rendering()
    drawn.set_layout_engine("none")  # laid out once for both files
    png = render(drawn, "png")
    atomic.write_bytes(folder / f"{name}.png", png)
    atomic.write_bytes(folder / f"{name}.pdf", render(drawn, "pdf"))
    return png


def million(value: float, _position: int = 0) -> str:
    """Env steps for an axis: 0, 500k, 2M."""
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
