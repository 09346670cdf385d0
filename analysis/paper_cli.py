"""`bench figures`: figures of published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Figures from published numbers.")


@app.callback()
def figures() -> None:
    """Figures from published numbers."""


@app.command()
def paper(
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the figures and tables")],
    curves: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="what `published import` wrote [default: results/published/curves]"),
    ] = None,
    reps: Annotated[int, typer.Option(min=100, help="bootstrap resamples for every interval")] = 2000,
) -> None:
    """Draw every figure and table of the TD-MPC2 paper whose numbers are public, each with its CSV."""
    from analysis.paper import write_figures
    from analysis.paper_data import load
    from analysis.published_finals import CURVES
    from bench.errors import UserError

    def say(line: str) -> None:
        typer.echo(line, err=True)

    if curves is not None and not curves.is_dir():
        raise UserError(f"no folder {curves}: run `bench published import -o {curves}` first")
    data = load(curves or CURVES)
    if data.curves is None:
        say("no curves: drawing what final scores allow (run `bench published import` for the rest)")
    typer.echo(write_figures(out, data, reps, say).as_posix())
