"""The status of a sweep for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

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

NOTABLE_ENV_WAIT = 0.1
"""From this share on, status says that learners wait for environments."""

WIDE = 120
"""Columns of a terminal that shows the table whole."""

SHORT = {"pending": "wait", "running": "run", "failed": "fail"}

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
    out.print(table(runs, by, out.width))
    for line in lines(runs, launches, silence):
        out.print(line, soft_wrap=True)
    show_failures(out, runs)


def table(runs: Sequence[RunState], by: str, width: int) -> Table:
    """A row for each agent variant and task or domain; on a narrow terminal in shorter words, without env steps."""
    wide = width >= WIDE
    shown = Table(header_style="bold", box=box.SIMPLE if wide else None, padding=(0, 1) if wide else (0, 1, 0, 0))
    states = STATES if wide else [SHORT.get(state, state) for state in STATES]
    for name, most in (("agent", 32 if wide else 16), (by, 30 if wide else 16)):
        shown.add_column(name, overflow="ellipsis", no_wrap=True, max_width=most)
    rows = status.rows(runs, by)
    axes = " or ".join(dict.fromkeys(row.axis.replace("_", " ") for row in rows))
    for name in (*states, *([axes] if wide else []), "%", "ETA", "h used", "h left"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        found = plan.counts(row.runs)
        total = sum(row.hours.values(), Hours(0, 0, 0))
        shown.add_row(
            row.agent,
            row.name,
            *(str(found[state]) if found[state] else "·" for state in STATES),
            *([f"{row.reached:,}/{row.budget:,}"] if wide else []),
            f"{100 * row.reached / row.budget:.0f}",
            "–" if row.eta_s is None else duration(row.eta_s),
            _h(total.used_h),
            "unknown" if total.unknown else _h(total.to_come_h),
        )
    return shown


def lines(runs: Sequence[RunState], launches: Sequence[LaunchRecord], silence: str | None) -> list[str]:
    """Hours over all runs, and why those wait that wait."""
    found = status.hours(runs, runs)
    return [
        *(hours_line(device, found[device]) for device in sorted(found) if device in TITLES),
        *([never_ran_line(found["unknown"])] if "unknown" in found else []),
        *env_wait_lines(runs),
        *waiting_lines(runs, status.why(runs, launches)),
        *([f"could not query Slurm, last known states are shown: {silence}"] if silence else []),
    ]


def hours_line(device: str, found: Hours) -> str:
    """`GPU-hours: 12.3 used, 40.2 to come at the speed of this sweep's own runs`."""
    to_come = f"{_h(found.to_come_h)} to come at the speed of this sweep's own runs"
    if found.unknown:
        to_come += f", and unknown for {plural(found.unknown, 'run')} of no speed yet"
    return f"{TITLES[device]}: {_h(found.used_h)} used, {to_come}"


def env_wait_lines(runs: Sequence[RunState]) -> list[str]:
    """About running learners that spend much of their time waiting for environments."""
    shares = [run.progress.env_wait_share or 0.0 for run in runs if run.state == "running"]
    waiting = [share for share in shares if share >= NOTABLE_ENV_WAIT]
    if not waiting:
        return []
    return [
        f"{plural(len(waiting), 'running run')}: the learner waits for environments {100 * median(waiting):.0f} % of "
        "the time; more resources.env_workers may help where there are cores for them"
    ]


def never_ran_line(found: Hours) -> str:
    """About runs of agents that have not trained here yet."""
    return f"Hours to come are unknown for {plural(found.unknown, 'run')} of agents that have not begun (see `plan`)"


def _h(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 10 else f"{hours:.2f}"


def waiting_lines(runs: Sequence[RunState], reasons: Mapping[str, str]) -> list[str]:
    """`12 pending: Slurm: PENDING (Priority)`, the most frequent reason first."""
    counted = Counter((run.state, reasons[run.spec.run_id]) for run in runs if run.spec.run_id in reasons).most_common()
    shown = [f"{count} {state}: {words}" for (state, words), count in counted[:MOST_REASONS]]
    more = sum(count for _, count in counted[MOST_REASONS:])
    return [*shown, *([f"{more} more wait for other reasons (--json lists all)"] if more else [])]
