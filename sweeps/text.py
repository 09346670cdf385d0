"""Plans, states and outcomes of sweeps as text for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sweeps import plan
from sweeps.cost import FleetCost, makespan_s
from sweeps.failures import FailureGroup
from sweeps.launch import Launched, worker_options
from sweeps.plan import Fleet, Plan
from sweeps.state import STATES, RunState

MOST_FLEETS_SHOWN = 24
MOST_FAILURES_SHOWN = 20
MOST_RUNS_OF_A_GROUP = 5
MOST_TASKS_BY_NAME = 24
"""With more tasks than this, status counts by domain."""


def console() -> Console:
    """Where people read: the terminal's width, or a fixed one in a file or pipe."""
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 150)


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3.4 h`, `2.1 d`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if name == 'h' else 0}f} {name}"
    return f"{seconds / 86400:.1f} d"


def size(count: float) -> str:
    """Bytes as `12 MB` or `1.2 GB` (powers of ten)."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def tally(runs: Iterable[RunState]) -> str:
    """`2 done, 1 failed`: the states that occur."""
    found = plan.counts(runs)
    return ", ".join(f"{found[state]} {state}" for state in reversed(STATES) if found[state])


def show_plan(out: Console, made: Plan, costs: Sequence[FleetCost], device: str) -> None:
    """The matrix, the fleets that a launch would start, and what they cost."""
    agents, cells = plan.matrix(made.runs)
    out.print(
        f"{made.sweep.name}: {plural(len(made.runs), 'run')} in {made.folder}: {tally(made.runs)}", soft_wrap=True
    )
    table = Table("task", *agents, header_style="bold", box=box.SIMPLE)
    for task, row in cells.items():
        table.add_row(task, *(tally(row[agent]) if agent in row else "–" for agent in agents))
    out.print(table)
    show_failures(out, made.runs)
    show_ended(out, [run for run in made.runs if not run.extendable])
    if not costs:
        out.print("Nothing to start.", soft_wrap=True)
        return
    resources = made.sweep.resources
    slots = plan.slots(resources.slots, made.fleets)
    runs = sum(len(item.fleet.runs) for item in costs)
    out.print(
        f"To start: {plural(runs, 'run')} in {plural(len(costs), 'fleet')}, {plural(slots, 'slot')} on {device}; "
        f"worker {' '.join(worker_options(resources))}",
        soft_wrap=True,
    )
    show_grouping(out, made.fleets)
    table = Table(
        "fleet", "runs", "env steps", "agent steps", "time", "measured speed", header_style="bold", box=box.SIMPLE
    )
    for item in costs[:MOST_FLEETS_SHOWN]:
        left = item.fleet.left_agent_steps
        speed = "unknown: nothing like it was measured"
        if item.rate is not None:
            speed = f"{item.rate.agent_steps_per_s:,.1f} agent steps/s: {item.rate.source}"
        table.add_row(
            item.fleet.title(),
            str(len(item.fleet.runs)),
            f"{left * item.fleet.spec.action_repeat:,}",
            f"{left:,}",
            duration(item.wall_s),
            speed,
        )
    out.print(table)
    if len(costs) > MOST_FLEETS_SHOWN:
        out.print(f"… and {plural(len(costs) - MOST_FLEETS_SHOWN, 'more fleet')} (--json lists all)", soft_wrap=True)
    _show_totals(out, made, costs, slots)


def show_grouping(out: Console, fleets: Sequence[Fleet]) -> None:
    """How the runs of each agent are grouped, and what decided it."""
    groups: dict[tuple[str, int, str], list[int]] = {}
    for fleet in fleets:
        groups.setdefault((plan.agent_title(fleet.spec), fleet.pack, fleet.why), []).append(len(fleet.runs))
    for (agent, pack, why), sizes in groups.items():
        runs = plural(max(sizes), "run") if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)} runs"
        beside = f", {pack} side by side in a slot" if pack > 1 else ""
        out.print(f"Grouping: {agent}: {plural(len(sizes), 'fleet')} of {runs}{beside}; {why}", soft_wrap=True)


def _show_totals(out: Console, made: Plan, costs: Sequence[FleetCost], slots: int) -> None:
    todo = [run for item in costs for run in item.fleet.runs]
    env_steps = sum(run.left_agent_steps * run.spec.action_repeat for run in todo)
    agent_steps = sum(run.left_agent_steps for run in todo)
    out.print(f"Steps: {env_steps:,} env steps, {agent_steps:,} agent steps over all runs", soft_wrap=True)
    known = [item for item in costs if item.wall_s is not None]
    unknown = len(costs) - len(known)
    busy_s = sum(item.wall_s or 0.0 for item in known)
    if not known:
        out.print("Time: unknown, no speed was measured; train one run, or see `bench speed`", soft_wrap=True)
    else:
        more = f", and {plural(unknown, 'fleet')} of unknown cost" if unknown else ""
        text = f"{duration(makespan_s(costs, slots))} with {plural(slots, 'slot')} ({duration(busy_s)} of one slot)"
        out.print(f"Time: {text}{more}", soft_wrap=True)
    needs = [[plan.replay_bytes(made.sweep, run.spec) for run in item.fleet.runs] for item in costs]
    fleets = sorted(map(sum, needs), reverse=True)
    kept = "kept" if made.sweep.resources.keep_replay else "removed when a run is done"
    at_once, all_runs = size(sum(fleets[:slots])), size(sum(fleets))
    out.print(
        f"Disk: replay logs of up to {at_once} at a time, {all_runs} over all runs ({kept}), besides checkpoints",
        soft_wrap=True,
    )


def show_status(out: Console, title: str, runs: Sequence[RunState], by: str | None, eta: str | None) -> None:
    """Counts and progress by agent and task (or domain), and the failures."""
    tasks = {run.spec.task for run in runs}
    key = by or ("task" if len(tasks) <= MOST_TASKS_BY_NAME else "domain")
    out.print(f"{title}: {plural(len(runs), 'run')}: {tally(runs)}{f'; {eta}' if eta else ''}", soft_wrap=True)
    table = Table("agent", key, *STATES, "env steps", "done %", "ETA of running", header_style="bold", box=box.SIMPLE)
    rows: dict[tuple[str, str], list[RunState]] = {}
    for run in runs:
        rows.setdefault((plan.agent_title(run.spec), getattr(run.spec, key)), []).append(run)
    for (agent, name), group in rows.items():
        found = plan.counts(group)
        reached = sum(min(run.progress.env_steps, run.spec.budget_env_steps) for run in group)
        budget = sum(run.spec.budget_env_steps for run in group)
        etas = [run.eta_s for run in group if run.eta_s is not None]
        table.add_row(
            agent,
            name,
            *(str(found[state]) if found[state] else "·" for state in STATES),
            f"{reached:,}/{budget:,}",
            f"{100 * reached / budget:.0f}",
            duration(max(etas)) if etas else "–",
        )
    out.print(table)
    show_failures(out, runs)


def show_failures(out: Console, runs: Sequence[RunState]) -> None:
    """Each failed run with its error, on a line of its own."""
    failed = [run for run in runs if run.state == "failed"]
    for run in failed[:MOST_FAILURES_SHOWN]:
        out.print(f"failed {run.spec.run_id}: {run.error}", style="red", soft_wrap=True)
    if len(failed) > MOST_FAILURES_SHOWN:
        out.print(
            f"… and {plural(len(failed) - MOST_FAILURES_SHOWN, 'more failure')} (--json lists all)", soft_wrap=True
        )


def show_failure_groups(out: Console, groups: Sequence[FailureGroup], runs: int, target: str) -> None:
    """Each group of runs that failed alike: how many, why, where, one traceback and a cure."""
    failed = sum(len(group.failures) for group in groups)
    if not failed:
        out.print(f"no run has failed so: {plural(runs, 'run')} looked at", soft_wrap=True)
        return
    kinds = ", ".join(dict.fromkeys(group.first.kind.title for group in groups))
    out.print(f"{failed} of {plural(runs, 'run')} failed ({kinds})", soft_wrap=True)
    for group in groups:
        first = group.first
        out.print(f"\n{len(group.failures)} × {first.kind.title}, {first.place}", style="bold red", soft_wrap=True)
        out.print(f"  {first.error}", soft_wrap=True)
        names = [failure.run.spec.run_id for failure in group.failures[:MOST_RUNS_OF_A_GROUP]]
        more = len(group.failures) - len(names)
        out.print(f"  {', '.join(names)}{f' and {more} more' if more else ''}", soft_wrap=True)
        for line in first.traceback.splitlines():
            out.print(f"    {line}", style="dim", soft_wrap=True)
        out.print(f"  cure: {first.kind.cure}", soft_wrap=True)
        out.print(f"  again: bench sweep retry {target} --class {first.kind.name}", soft_wrap=True)


def show_ended(out: Console, runs: Sequence[RunState]) -> None:
    """Runs that would have to go on from a smaller budget but cannot."""
    if runs:
        out.print(
            f"{plural(len(runs), 'run')} ended at a smaller budget and kept no replay, so cannot be extended: "
            f"left alone; move {runs[0].directory.path} away to train it anew (resources.keep_replay keeps the replay)",
            soft_wrap=True,
        )


def show_launched(out: Console, launched: Launched, described: str | None, file: str) -> None:
    """What a launch started, and what it left alone and why."""
    if launched.record is not None:
        runs = sum(len(fleet.runs) for fleet in launched.fleets)
        out.print(
            f"started {plural(runs, 'run')} in {plural(len(launched.fleets), 'fleet')}: {described}", soft_wrap=True
        )
    for owner, group in launched.busy.items():
        out.print(f"{plural(len(group), 'run')} already running or queued by {owner}: left alone", soft_wrap=True)
    if launched.done:
        out.print(f"{plural(len(launched.done), 'run')} done already: skipped", soft_wrap=True)
    if launched.failed:
        count = plural(len(launched.failed), "run")
        out.print(
            f"{count} failed before: skipped; `bench sweep failures {file}` says why, "
            f"`bench sweep retry {file}` starts them again",
            soft_wrap=True,
        )
        show_failures(out, launched.failed)
    show_ended(out, launched.ended)
    if launched.record is None and not launched.busy:
        out.print("nothing to start", soft_wrap=True)
