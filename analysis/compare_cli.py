"""`bench compare` and `bench regress`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from analysis.sides import Side

app = typer.Typer()


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command(context_settings={"allow_interspersed_args": True})
def compare(
    mine: Annotated[str, typer.Argument(metavar="MINE", help="run directories, a table, or <agent>/<task>.csv curves")],
    others: Annotated[
        list[str] | None, typer.Argument(metavar="[OTHERS]...", help="more to compare with, as for --against")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="NAME", help="a published agent (tdmpc2, sac, …) or a place like MINE"),
    ] = None,
    agent: Annotated[str | None, typer.Option(help="which agent of MINE, where it holds several")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder for tables and the figure")] = Path("compare"),
    curves: Annotated[
        Path | None, typer.Option(metavar="DIR", help="what `published import` wrote [results/published/curves]")
    ] = None,
    reps: Annotated[int, typer.Option(min=100, help="bootstrap resamples for every interval")] = 2000,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="leave out what of the compared agents cannot be read")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """Compare an agent with published or own ones: --against tdmpc2 sac, at equal env steps, with a verdict."""
    from analysis.compare import compare as compare_tables
    from analysis.compare_text import as_json as json_text
    from analysis.compare_text import write_compared
    from analysis.problems import lines as problem_lines
    from analysis.published_finals import CURVES
    from analysis.sides import gather
    from bench.errors import UserError

    names = [*(against or []), *(others or [])]
    if not names:
        raise UserError("nothing to compare with: add --against tdmpc2 (or sac, tdmpc, dreamerv3, a results folder)")
    sides = gather(mine, names, agent, curves or CURVES, _say, allow_missing)
    compared = compare_tables(
        sides.mine, sides.evals, sides.clocks, reps, sides.notes, sides.assumptions, sides.problems
    )
    files = write_compared(compared, out, reps)
    if as_json:
        typer.echo(json_text(compared))
        return
    for verdict in compared.verdicts:
        typer.echo(verdict)
    for warning in compared.warnings:
        typer.echo(f"warning: {warning}")
    for line in problem_lines(compared.problems):
        typer.echo(line)
    for assumption in compared.assumptions:
        typer.echo(f"assumed: {assumption}")
    for path in files:
        typer.echo(path.as_posix())


@app.command()
def regress(
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help="results, a table or curves from before")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="the same from after")],
    alpha: Annotated[float, typer.Option(min=1e-6, max=0.5, help="how often no change may be called worse")] = 0.05,
    margin: Annotated[float, typer.Option(min=0, help="points of mean score that may be lost")] = 0.0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="leave out what of the compared agents cannot be read")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the answers as JSON")] = False,
) -> None:
    """Exit with 1 where an agent got worse (one-sided Welch test over seeds), else with 0."""
    from analysis.problems import lines as problem_lines
    from analysis.problems import refuse_lost, to_json
    from analysis.regress import regress as test
    from analysis.regress import regression_lines

    old, now = _side(baseline), _side(new)
    problems = (*old.problems, *now.problems)
    refuse_lost(problems, old.agents | now.agents | {problem.agent for problem in problems}, allow_missing)
    answers = test(old, now, alpha, margin)
    regressed = any(answer.regressed for answer in answers)
    if as_json:
        found = {"regressed": regressed, "agents": [answer.as_dict() for answer in answers]} | to_json(problems)
        typer.echo(json.dumps(found, indent=2))
        raise typer.Exit(int(regressed))
    for one in answers:
        for line in regression_lines(one, margin):
            typer.echo(line)
    for line in problem_lines(problems):
        typer.echo(line)
    for assumption in dict.fromkeys((*old.assumptions, *now.assumptions)):
        typer.echo(f"assumed: {assumption}")
    rule = f"worse where the one-sided {1 - alpha:.1%} bound lies below -{margin:g}, or a task or a run is missing"
    typer.echo(f"rule: {rule}")
    raise typer.Exit(int(regressed))


def _side(place: str) -> Side:
    from analysis.sides import load_side

    return load_side(place, _say)
