"""The commands of `bench sweep` that start and stop runs; those that only read are in `cli_read`. Each imports what it
needs when it runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps import cli_read
from sweeps.options import AsJson, Assignments, Classes, Cluster, Patterns, Results, SweepFile, Target, Wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from sweeps.cost import FleetCost, Total
    from sweeps.executor import Executor
    from sweeps.expand import Sweep
    from sweeps.measured import Measurement
    from sweeps.plan import Plan
    from sweeps.state import RunState

app = typer.Typer(help="Plan, launch and watch sweeps: agents × tasks × seeds.", no_args_is_help=True)
app.registered_commands += cli_read.app.registered_commands


@app.command("plan")
def plan_command(
    file: SweepFile,
    results: Results = Path("results"),
    cluster: Cluster = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Show the runs of a sweep, what is already done, and what the rest will cost. Starts nothing."""
    sweep, executor = _load(file, cluster, assignments, results)
    from sweeps import measured

    made, costs, total = _plan(sweep, results, executor, measured.read(results))
    if as_json:
        from sweeps import cost

        typer.echo(json.dumps(cost.plan_json(made, costs, total), indent=2))
    else:
        from sweeps import plan_text, text

        plan_text.show(text.console(), made, costs, total)


def _load(file: Path, cluster: str | None, assignments: list[str] | None, results: Path) -> tuple[Sweep, Executor]:
    """The sweep with its resources as they will be where it runs, and what runs it."""
    from dataclasses import replace

    from sweeps import executors, expand

    of_sweep, of_profile = executors.split_assignments(assignments or ())
    sweep, executor = expand.load(file, of_sweep, results), executors.choose(cluster, of_profile)
    return replace(sweep, resources=executor.planned(sweep.resources)), executor


def _plan(
    sweep: Sweep, results: Path, executor: Executor, known: list[Measurement]
) -> tuple[Plan, list[FleetCost], Total]:
    """A sweep's plan, the cost of each fleet and of all together, from what was measured."""
    from sweeps import cost, plan

    device = sweep.resources.device
    made = plan.make(sweep, results, known)
    costs = cost.cost(made.fleets, device, known)
    return made, costs, cost.total(made, costs, device, known, executor.gpus_per_slot(sweep.resources))


@app.command("launch")
def launch_command(
    file: SweepFile,
    results: Results = Path("results"),
    cluster: Cluster = None,
    wait: Wait = False,
    assignments: Assignments = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, and what would be submitted; start nothing.")
    ] = False,
    max_gpu_hours: Annotated[
        float | None, typer.Option(min=0, help="Start nothing if it would cost more GPU-hours, or nobody knows.")
    ] = None,
) -> None:
    """Start every run that is neither done nor running nor failed; returns at once unless told to wait."""
    from sweeps import measured

    sweep, executor = _load(file, cluster, assignments, results)
    known = measured.read(results)  # once: below a large results folder it takes seconds
    if dry_run or max_gpu_hours is not None:
        from sweeps import cost, plan_text, text

        made, costs, total = _plan(sweep, results, executor, known)
        if dry_run:
            plan_text.show(text.console(), made, costs, total)
        if max_gpu_hours is not None:
            cost.check_gpu_hours(total, max_gpu_hours)
    if dry_run:
        _show_scripts(sweep, results, executor, known)
        return
    _launch(sweep, results, executor, wait, known=known)


def _show_scripts(sweep: Sweep, results: Path, executor: Executor, known: list[Measurement]) -> None:
    from sweeps import launch, text

    out = text.console()
    for remark in executor.remarks():
        out.print(remark, soft_wrap=True)
    for number, script in enumerate(launch.rehearse(sweep, results, executor, known), 1):
        out.print(f"Submission {number}, given to sbatch:\n\n{script}", soft_wrap=True)


@app.command("retry")
def retry_command(
    file: SweepFile,
    results: Results = Path("results"),
    failed: Annotated[bool, typer.Option("--failed", help="Failed runs (the default).")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Runs whose process is gone.")] = False,
    classes: Classes = None,
    run: Patterns = None,
    cluster: Cluster = None,
    wait: Wait = False,
    assignments: Assignments = None,
) -> None:
    """Start failed runs again, from their last checkpoint; with other resources where --set says so."""
    from sweeps import failures, plan, retry

    failures.check_classes(classes or ())
    sweep, executor = _load(file, cluster, assignments, results)
    retry.check_assignments(assignments or (), plan.sweep_folder(sweep.name, results))
    _launch(sweep, results, executor, wait, retry.wanted(failed or not stale, stale, run or (), classes or ()))


def _launch(
    sweep: Sweep,
    results: Path,
    executor: Executor,
    wait: bool,
    wanted: Callable[[RunState], bool] | None = None,
    known: list[Measurement] | None = None,
) -> None:
    from sweeps import launch, plan, text

    out = text.console()
    for remark in executor.remarks():
        out.print(remark, soft_wrap=True)
    launched = launch.launch(sweep, results, executor, wanted or plan.is_startable, known=known)
    described = executor.describe(launched.record) if launched.record else None
    commands = partial(_command, sweep, results)
    text.show_launched(out, launched, described, commands)
    if wait:
        raise typer.Exit(_follow(sweep, launched.folder))
    if launched.record is not None or launched.busy:
        out.print(_how_to_follow(sweep, results), soft_wrap=True)


def _follow(sweep: Sweep, folder: Path) -> int:
    from sweeps import follow, state, text

    out = text.console()
    try:
        return follow.follow(out, folder, lambda: state.read_all(folder, sweep.runs))
    except KeyboardInterrupt:
        out.print(f"detached, the runs go on. {_how_to_follow(sweep, folder.parent)}", soft_wrap=True)
        return 130


def _how_to_follow(sweep: Sweep, results: Path) -> str:
    return f"follow: {_command(sweep, results, 'status')} --watch · stop: {_command(sweep, results, 'cancel')}"


def _command(sweep: Sweep, results: Path, verb: str) -> str:
    from sweeps import text

    return text.command(verb, sweep.path, results, () if verb == "cancel" else sweep.assignments)


@app.command("cancel")
def cancel_command(
    target: Target,
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[PATTERN]...", help="Only runs that match, such as 'sac/*'.")
    ] = None,
    results: Results = Path("results"),
    grace_s: Annotated[float, typer.Option(min=0, help="Time for a last checkpoint, then the process is killed.")] = 60,
) -> None:
    """Stop a sweep's runs. They checkpoint first: launching again goes on from there."""
    from sweeps import launch, plan, spec, text

    out = text.console()
    folder = target if target.is_dir() else plan.sweep_folder(spec.read(target)[1].name, results)
    cancelled = launch.cancel(folder, patterns or (), grace_s)
    for described in cancelled.stopped:
        out.print(f"stopped {described}", soft_wrap=True)
    for described in cancelled.elsewhere:
        out.print(f"not on this machine, cancel it there: {described}", soft_wrap=True)
    if cancelled.killed:
        pids = ", ".join(str(process.pid) for process in cancelled.killed)
        out.print(
            f"killed after {grace_s:g} s without an end: {pids}; work since the last checkpoint is lost", soft_wrap=True
        )
    if cancelled.stopped:
        out.print(
            f"{text.plural(len(cancelled.runs), 'run')} cancelled; launching again goes on with them", soft_wrap=True
        )
    elif not cancelled.elsewhere:
        out.print(
            "nothing to cancel: no launch works on " + ("runs that match" if patterns else f"{folder}"), soft_wrap=True
        )
