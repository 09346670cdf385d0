"""Commands of the analysis. Each imports what it needs when it runs: `bench --help` loads no table library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from analysis.compare_cli import app as compare_app
from analysis.paper_cli import app as figures_app
from analysis.published_cli import app as published_app

app = typer.Typer()
app.registered_commands += compare_app.registered_commands
app.add_typer(published_app, name="published")
app.add_typer(figures_app, name="figures")


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def collect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a folder with run directories anywhere below it")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="where the tables go [default: DIR/tables]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Collect run directories into the tables evals and runs (CSV and Parquet).

    Directories that did not change since the last collection into the same place are not read again.
    """
    from analysis.collect import collect as collect_tables
    from analysis.collect_cache import Cache
    from analysis.tables import TABLES, write_tables

    out = out or folder / TABLES
    cache = Cache.load(out)
    tables = collect_tables(folder, _say, cache)
    files = write_tables(tables, out)
    cache.save(out)
    states = tables.runs["state"].fillna("unknown").value_counts().sort_index().to_dict()
    if as_json:
        summary = {
            "evals": len(tables.evals),
            "runs": len(tables.runs),
            "states": states,
            "problems": [{"path": problem.path, "message": problem.message} for problem in tables.problems],
            "files": [path.as_posix() for path in files],
        }
        typer.echo(json.dumps(summary, indent=2))
        return
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    typer.echo(f"{len(tables.runs)} runs ({counts}), {len(tables.evals)} evaluations")
    for problem in tables.problems:
        typer.echo(f"problem: {problem.path}: {problem.message}")
    for path in files:
        typer.echo(path.as_posix())


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="run directories, or tables that `collect` wrote")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="page to write [default: DIR/report.html]")] = None,
    reps: Annotated[int, typer.Option(min=100, help="bootstrap resamples for every interval")] = 2000,
) -> None:
    """Write one HTML page that compares the agents, and its figures as PNG, PDF and CSV beside it."""
    from analysis.problems import lines
    from analysis.report import write_report
    from analysis.tables import load_tables

    tables = load_tables(folder, _say)
    page = write_report(tables, out or folder / "report.html", folder.as_posix(), reps, _say)
    for line in lines(tables.problems):
        _say(line)
    typer.echo(page.as_posix())
