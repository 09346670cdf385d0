"""`bench figures`: figures of published numbers, and of a model's task embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Figures: of published numbers, and of task embeddings.")


@app.callback()
def figures() -> None:
    """Figures: of published numbers, and of task embeddings."""


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


@app.command()
def embeddings(
    source: Annotated[Path, typer.Argument(help="a multi-task model: an authors' file (.pt), or a run directory")],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for the figure and its numbers")],
    model_tasks: Annotated[
        list[str] | None,
        typer.Option(help="all tasks of a file in order, where their number does not tell; names or sets"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of t-SNE")] = 1,
) -> None:
    """Draw the task embeddings of a multi-task model in the plane, by t-SNE, with their norms in the CSV beside it."""
    from analysis.embeddings import table, write_figure
    from bench.errors import UserError
    from bench.pretrained import Pretrained
    from bench.tasks import expand

    if not source.exists():
        raise UserError(f"no file {source}: give an authors' file (.pt) or a run directory")
    model = Pretrained.look_up(source)
    names = [task.name for task in expand(model_tasks)] if model_tasks else list(model.tasks)
    embedded = model.embeddings()
    if names and len(names) != len(embedded):
        raise UserError(
            f"{source} is a model of {len(embedded)} tasks, {len(names)} were given: name them all, in order"
        )
    points = table(names or [f"task {number}" for number in range(len(embedded))], embedded, seed)
    low, high = points["norm"].min(), points["norm"].max()
    typer.echo(f"{len(points)} tasks, embeddings of {embedded.shape[1]} numbers with norms of {low:.2f} to {high:.2f}")
    typer.echo(write_figure(points, out).as_posix())
