"""The status of a sweep for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sweeps import plan, status
from sweeps.record import LaunchRecord
from sweeps.state import STATES, RunState
from sweeps.status import Hours
from sweeps.text import duration, plural, show_failures, tally

MOST_TASKS_BY_NAME = 24
"""With more tasks than this, status counts by domain."""

MOST_REASONS = 6

TITLES = {"cuda": "GPU-hours", "cpu": "CPU worker-hours"}


def default_by(runs: Sequence[RunState]) -> str:
    """What to count by where nobody says: task, or domain where there are many tasks."""
    return "task" if len({run.spec.task for run in runs}) <= MOST_TASKS_BY_NAME else "domain"


def show(
    out: Console,
    title: str,
    runs: Sequence[RunState],
    launches: Sequence[LaunchRecord],
    by: str,
    eta_s: float | None,
    silence: str | None,
) -> None:
    """Counts and progress by agent and task or domain, why runs wait, hours, and the failures."""
    live = sum(launched.alive for launched in launches)
    working = f"{plural(live, 'launch')} working, ETA {duration(eta_s)}" if live else "no launch is working"
    out.print(f"{title}: {plural(len(runs), 'run')}: {tally(runs)}; {working}", soft_wrap=True)
    out.print(table(runs, by))
    for line in lines(runs, launches, silence):
        out.print(line, soft_wrap=True)
    show_failures(out, runs)


def table(runs: Sequence[RunState], by: str) -> Table:
    """A row for each agent variant and task or domain."""
    columns = ("agent", by, *STATES, "env steps", "done %", "ETA of running", "hours used", "to come")
    shown = Table(*columns, header_style="bold", box=box.SIMPLE)
    for row in status.rows(runs, by):
        found = plan.counts(row.runs)
        total = sum(row.hours.values(), Hours(0, 0, 0))
        shown.add_row(
            row.agent,
            row.name,
            *(str(found[state]) if found[state] else "·" for state in STATES),
            f"{row.env_steps:,}/{row.budget_env_steps:,}",
            f"{100 * row.env_steps / row.budget_env_steps:.0f}",
            "–" if row.eta_s is None else duration(row.eta_s),
            f"{total.used_h:.1f}",
            "unknown" if total.unknown else f"{total.to_come_h:.1f}",
        )
    return shown


def lines(runs: Sequence[RunState], launches: Sequence[LaunchRecord], silence: str | None) -> list[str]:
    """Hours over all runs, and why those wait that wait."""
    found = status.hours(runs, runs)
    return [
        *(hours_line(device, found[device]) for device in sorted(found)),
        *waiting_lines(runs, status.why(runs, launches)),
        *([f"what Slurm says is not known: {silence}"] if silence else []),
    ]


def hours_line(device: str, found: Hours) -> str:
    """`GPU-hours: 12.3 used, 40.2 to come at the speed of this sweep's own runs`."""
    to_come = f"{found.to_come_h:.1f} to come at the speed of this sweep's own runs"
    if found.unknown:
        to_come += f", and unknown for {plural(found.unknown, 'run')} (see `bench sweep plan`)"
    return f"{TITLES.get(device, 'Hours on a device not yet known')}: {found.used_h:.1f} used, {to_come}"


def waiting_lines(runs: Sequence[RunState], reasons: Mapping[str, str]) -> list[str]:
    """`12 pending: Slurm: PENDING (Priority)`, the most frequent reason first."""
    counted = Counter((run.state, reasons[run.spec.run_id]) for run in runs if run.spec.run_id in reasons).most_common()
    shown = [f"{count} {state}: {words}" for (state, words), count in counted[:MOST_REASONS]]
    more = sum(count for _, count in counted[MOST_REASONS:])
    return [*shown, *([f"{more} more wait for other reasons (--json lists all)"] if more else [])]
