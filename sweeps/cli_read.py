"""The commands of `bench sweep` that only read: status, failures, logs. Each imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.options import AsJson, Assignments, Classes, Patterns, Results, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from sweeps.state import RunState

app = typer.Typer()


def _reader(target: Path, results: Path, assignments: list[str] | None) -> tuple[Path, Callable[[], list[RunState]]]:
    """The folder of a sweep's runs, and what reads their states anew."""
    from bench import offline
    from bench.errors import UserError
    from sweeps import expand, plan, state

    if target.is_dir():
        said: set[str] = set()

        def read_folder() -> list[RunState]:
            runs, unreadable = state.read_folder(target)
            for line in [f"not read: {one}" for one in unreadable]:
                if line not in said:
                    typer.echo(line, err=True)
                said.add(line)
            return runs

        return target, read_folder
    sweep = expand.load(target, assignments or (), results)
    folder = plan.sweep_folder(sweep.name, results)
    first = sweep.runs[0].offline
    if first is not None and (line := offline.lack(first)) is not None:  # run ids follow from the data
        raise UserError(f"{line}; the folder of the results needs no data set: give {folder}")
    return folder, lambda: state.read_all(folder, sweep.runs)


@app.command("status")
def status_command(
    target: Target,
    results: Results = Path("results"),
    watch: Annotated[bool, typer.Option("--watch", help="Follow until nothing runs any more.")] = False,
    every_s: Annotated[
        float, typer.Option(min=1, help="With --watch, how often run directories are read; Slurm every 30 s at most.")
    ] = 5.0,
    by: Annotated[str | None, typer.Option(metavar="task|domain", help="What to count by.")] = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Say where the runs are: counts, progress, why runs wait, hours used and to come, and when it ends."""
    from bench.errors import UserError
    from sweeps import follow, status, status_text, text
    from sweeps.launches import Launches

    if by not in (None, "task", "domain"):
        raise UserError(f"--by {by}: valid are task, domain")
    folder, read = _reader(target, results, assignments)
    if watch:
        try:
            follow.follow(text.console(), folder, read, every_s=every_s, by=by)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    looked = Launches(folder)
    launches, runs = looked.read(), read()
    eta_s = follow.eta_s(runs, [launched for launched in launches if launched.alive])
    by = by or status_text.default_by(runs)
    if as_json:
        value = status.to_json(folder, runs, launches, by, eta_s, looked.silence)
        typer.echo(json.dumps(value, indent=2))
    else:
        status_text.show(text.console(), str(folder), runs, launches, by, eta_s, looked.silence)


@app.command("failures")
def failures_command(
    target: Target,
    results: Results = Path("results"),
    classes: Classes = None,
    run: Patterns = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Say why runs failed: those that failed alike together, with one traceback and a cure."""
    from sweeps import failures, selectors, text

    failures.check_classes(classes or ())
    _, read = _reader(target, results, assignments)
    runs = [one for one in read() if not run or selectors.matches(one.spec.run_id, run)]
    groups = [found for found in failures.group(runs) if not classes or found.first.kind.name in classes]
    if as_json:
        typer.echo(json.dumps(failures.to_json(groups), indent=2))
    else:
        folder = Path("results") if target.is_dir() else results
        retry = text.command("retry", "FILE" if target.is_dir() else target, folder, assignments or ())
        text.show_failure_groups(text.console(), groups, len(runs), retry)


@app.command("logs")
def logs_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a run such as sac/cup-catch/seed1.")],
    results: Annotated[Path, typer.Option(help="Where to look for the run.")] = Path("results"),
    lines: Annotated[int | None, typer.Option("-n", "--lines", min=1, help="Only the last lines of each log.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run has ended.")] = False,
) -> None:
    """Show what the workers of a run wrote, over all launches and attempts."""
    from sweeps import logs, text

    directory = logs.find_run(run, results)
    found, out = logs.of_run(directory), text.console()
    ends = {}
    for log in found:
        out.print(f"==> {log.title()}", style="bold", soft_wrap=True)
        written, ends[log] = log.read(lines)
        out.print(written, end="", soft_wrap=True)
    if not found:
        out.print(f"no logs: no launch has started {directory.path} yet", soft_wrap=True)
    if not follow or not found:
        return
    newest = {log: ends[log] for log in found if log.launch.path == found[-1].launch.path}
    try:
        for log, line in logs.follow(newest, lambda: directory.progress().state not in ("running", "stale")):
            out.print(line, style="red" if log.stream == "err" else None, soft_wrap=True)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
