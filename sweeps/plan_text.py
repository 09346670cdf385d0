"""A plan and its cost for people."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

from sweeps import plan
from sweeps.cost import FleetCost, Total
from sweeps.launch import worker_options
from sweeps.plan import Fleet, Plan
from sweeps.text import duration, plural, show_ended, show_failures, size, tally

MOST_FLEETS_SHOWN = 24
"""With more fleets than this, they are added up by agent and domain."""


def show(out: Console, made: Plan, costs: Sequence[FleetCost], cost: Total) -> None:
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
    runs = sum(len(item.fleet.runs) for item in costs)
    out.print(
        f"To start: {plural(runs, 'run')} in {plural(len(costs), 'fleet')}, {plural(cost.slots, 'slot')} on "
        f"{cost.device}; worker {' '.join(worker_options(made.sweep.resources))}",
        soft_wrap=True,
    )
    for line in plan.lacking(run for item in costs for run in item.fleet.runs):
        out.print(f"Before a launch: {line}", soft_wrap=True)
    show_grouping(out, made.fleets)
    out.print(_by_fleet(costs) if len(costs) <= MOST_FLEETS_SHOWN else _by_domain(costs))
    _show_totals(out, made, costs, cost)


def _by_fleet(costs: Sequence[FleetCost]) -> Table:
    offline = costs[0].fleet.spec.offline is not None  # as all runs of the sweep, or none
    counted = ("updates",) if offline else ("env steps", "agent steps")
    table = Table("fleet", "runs", *counted, "time", "measured speed", header_style="bold", box=box.SIMPLE)
    for item in costs:
        left = item.fleet.left
        counts = (left,) if offline else (left * item.fleet.spec.action_repeat, left)
        shown = (f"{count:,}" for count in counts)
        table.add_row(item.fleet.title(), str(len(item.fleet.runs)), *shown, duration(item.wall_s), _speed([item]))
    return table


def _by_domain(costs: Sequence[FleetCost]) -> Table:
    clock = costs[0].fleet.spec.clock.replace("_", " ")
    columns = ("agent", "domain", "fleets", "runs", clock, "time, one after the other", "measured speed")
    table = Table(*columns, header_style="bold", box=box.SIMPLE)
    groups: dict[tuple[str, str], list[FleetCost]] = {}
    for item in costs:
        groups.setdefault((plan.agent_title(item.fleet.spec), item.fleet.spec.domain), []).append(item)
    for (agent, domain), items in groups.items():
        runs = [run for item in items for run in item.fleet.runs]
        times = [item.wall_s for item in items]
        table.add_row(
            agent,
            domain,
            str(len(items)),
            str(len(runs)),
            f"{sum(run.left for run in runs):,}",
            duration(None if None in times else sum(time_s or 0.0 for time_s in times)),
            _speed(items),
        )
    return table


def _speed(items: Sequence[FleetCost]) -> str:
    """The speed of some fleets, each run's, and where it comes from."""
    rates = [item.rate for item in items if item.rate is not None]
    if not rates:
        return "unknown: nothing like it was measured"
    found = list(dict.fromkeys(rate.source for rate in rates))
    source = found[0] + (f", and {plural(len(found) - 1, 'other source')}" if len(found) > 1 else "")
    unknown = f"; unknown for {plural(len(items) - len(rates), 'fleet')}" if len(rates) < len(items) else ""
    clock = items[0].fleet.spec.clock.replace("_", " ")
    return f"{median(rate.speed for rate in rates):,.1f} {clock}/s: {source}{unknown}"


def show_grouping(out: Console, fleets: Sequence[Fleet]) -> None:
    """How the runs of each agent are grouped, and what decided it."""
    groups: dict[tuple[str, int, str], list[int]] = {}
    for fleet in fleets:
        groups.setdefault((plan.agent_title(fleet.spec), fleet.pack, fleet.why), []).append(len(fleet.runs))
    for (agent, pack, why), sizes in groups.items():
        runs = plural(max(sizes), "run") if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)} runs"
        beside = f", {pack} side by side in a slot" if pack > 1 else ""
        out.print(f"Grouping: {agent}: {plural(len(sizes), 'fleet')} of {runs}{beside}; {why}", soft_wrap=True)


def _show_totals(out: Console, made: Plan, costs: Sequence[FleetCost], cost: Total) -> None:
    todo = [run for item in costs for run in item.fleet.runs]
    offline = todo[0].spec.offline is not None
    left = sum(run.left for run in todo)
    if offline:
        out.print(f"Updates: {left:,} over all runs", soft_wrap=True)
    else:
        env_steps = sum(run.left * run.spec.action_repeat for run in todo)
        out.print(f"Steps: {env_steps:,} env steps, {left:,} agent steps over all runs", soft_wrap=True)
    if len(cost.unknown) == len(costs):
        hint = "train one run" if offline else "train one run, or see `bench speed`"
        out.print(f"Time: unknown, no speed was measured; {hint}", soft_wrap=True)
    else:
        more = f", and {plural(len(cost.unknown), 'fleet')} of unknown cost" if cost.unknown else ""
        held = f"{cost.device_h:.1f} {'GPU-hours' if cost.device == 'cuda' else 'slot-hours'}"
        out.print(f"Time: {duration(cost.wall_s)} with {plural(cost.slots, 'slot')}, {held}{more}", soft_wrap=True)
    kept = "kept" if made.sweep.resources.keep_replay else "removed when a run is done"
    disk = cost.disk
    saved = "unknown" if disk.checkpoints is None else size(disk.checkpoints)
    replay = (
        f"replay logs of up to {size(disk.replay_at_once)} at a time, {size(disk.replay)} over all runs ({kept}; "
        "by the shapes); "
    )
    out.print(f"Disk: {'' if offline else replay}checkpoints {saved} ({disk.checkpoints_source})", soft_wrap=True)
