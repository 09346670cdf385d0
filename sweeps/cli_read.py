"""The commands of `bench sweep` that only read: status, failures, logs. Each imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.options import AsJson, Assignments, Classes, Patterns, Results, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from sweeps.state import RunState

app = typer.Typer()


def _reader(target: Path, results: Path, assignments: list[str] | None) -> tuple[Path, Callable[[], list[RunState]]]:
    """The folder of a sweep's runs, and what reads their states anew."""
    from sweeps import expand, plan, state

    if target.is_dir():
        return target, lambda: state.read_folder(target)
    sweep = expand.load(target, assignments or ())
    folder = plan.sweep_folder(sweep.name, results)
    return folder, lambda: state.read_all(folder, sweep.runs)


@app.command("status")
def status_command(
    target: Target,
    results: Results = Path("results"),
    watch: Annotated[bool, typer.Option("--watch", help="Follow until nothing runs any more.")] = False,
    by: Annotated[str | None, typer.Option(metavar="task|domain", help="What to count by.")] = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Say where the runs are: pending, running, stale, failed or done, as their directories tell."""
    from bench.errors import UserError
    from sweeps import follow, record, text

    if by not in (None, "task", "domain"):
        raise UserError(f"--by {by}: valid are task, domain")
    folder, read = _reader(target, results, assignments)
    if watch:
        try:
            follow.follow(text.console(), folder, read)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    runs, live = read(), record.live(folder)
    eta_s = follow.eta_s(runs, live)
    if as_json:
        typer.echo(json.dumps(_status_json(folder, runs, eta_s, [launched.name for launched in live]), indent=2))
        return
    out = text.console()
    eta = f"{text.plural(len(live), 'launch')} working, ETA {text.duration(eta_s)}" if live else "no launch is working"
    text.show_status(out, str(folder), runs, by, eta)


def _status_json(folder: Path, runs: list[RunState], eta_s: float | None, launches: list[str]) -> dict[str, Any]:
    from sweeps import plan

    return {
        "folder": str(folder),
        "counts": plan.counts(runs),
        "eta_s": eta_s,
        "launches": launches,
        "runs": [plan.run_json(run) for run in runs],
    }


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
    from sweeps import failures, record, text

    failures.check_classes(classes or ())
    _, read = _reader(target, results, assignments)
    runs = [one for one in read() if not run or record.matches(one.spec.run_id, run)]
    groups = [found for found in failures.group(runs) if not classes or found.first.kind.name in classes]
    if as_json:
        typer.echo(json.dumps(failures.to_json(groups), indent=2))
    else:
        text.show_failure_groups(text.console(), groups, len(runs), str(target))


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
