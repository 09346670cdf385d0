"""Following a sweep until nothing of it runs any more: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from statistics import mean, median

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from sweeps import plan, status_text
from sweeps.launches import Launches
from sweeps.record import LaunchRecord
from sweeps.state import RunState
from sweeps.text import duration, on_axis, plural, show_failures, tally

REFRESH_S = 2.0
"""How often run directories are read."""

LINE_EVERY_S = 20.0
MOST_FLEETS_SHOWN = 16

Row = tuple[str, str, str, str, str]
"""Fleet, env steps (updates), return (score), speed, ETA."""


def rows(runs: Sequence[RunState], live: Iterable[LaunchRecord]) -> list[Row]:
    """One row for each fleet with running runs, and for each running run outside of any."""
    by_id = {run.spec.run_id: run for run in runs if run.state == "running"}
    fleets = [fleet for launched in live for fleet in launched.working().values()]
    groups = [[by_id.pop(run_id) for run_id in fleet if run_id in by_id] for fleet in fleets]
    return [_row(group) for group in [*groups, *([run] for run in by_id.values())] if group]


def _row(group: Sequence[RunState]) -> Row:
    first = group[0]
    returns = [run.progress.last_return for run in group if run.progress.last_return is not None]
    rates = [run.progress.speed for run in group if run.progress.speed]
    etas = [run.eta_s for run in group if run.eta_s is not None]
    reached = min(run.progress.reached for run in group)
    measure = "return" if first.spec.offline is None else "score"
    return (
        plan.fleet_title([run.spec for run in group]),
        f"{reached:,}/{on_axis(first.spec, first.spec.budget)}",
        f"{measure} {mean(returns):.1f}" if returns else f"{measure} –",
        f"{sum(rates):,.1f} {first.spec.clock.replace('_', ' ')}/s" if rates else "starting",
        f"ETA {duration(max(etas))}" if etas else "ETA –",
    )


def eta_s(runs: Sequence[RunState], live: Sequence[LaunchRecord]) -> float | None:
    """Seconds until the live launches have worked off their fleets, at the speeds of this sweep's own runs.

    None where nothing is live, no job of a launch has started, or a fleet waits whose agent has no speed yet.
    """
    by_id = {run.spec.run_id: run for run in runs}
    rates: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if run.state in ("running", "done") and run.progress.speed:
            rates.setdefault(plan.kind(run.spec), []).append(run.progress.speed)
    ends = []
    for launched in live:
        owned = launched.owned()
        waits = []
        shares = []
        for fleet, pack in zip(launched.fleets, launched.packs, strict=True):
            left = [by_id[run_id] for run_id in fleet if run_id in owned and run_id in by_id]
            left = [run for run in left if run.left and run.state != "failed"]
            if not left:
                continue
            own = [run.progress.speed for run in left if run.eta_s is not None]
            known = [rate for rate in own if rate] or rates.get(plan.kind(left[0].spec), [])
            if not known:
                return None
            waits.append(max(run.left for run in left) / median(known))
            shares.append(waits[-1] / pack)
        slots = _working_slots(launched)
        if waits and not slots:
            return None  # how long jobs wait in the queue nobody knows
        if waits:
            ends.append(max(sum(shares) / slots, max(waits)))
    return max(ends, default=None)


def _working_slots(launched: LaunchRecord) -> int:
    """Slots that take work now; on Slurm, jobs that run."""
    if launched.on_slurm:
        return sum(state.state == "RUNNING" for state in launched.job_states.values())
    return sum(slot.alive for slot in launched.slots())


def summary(runs: Sequence[RunState], live: Sequence[LaunchRecord]) -> str:
    """`2 running, 3 done · ETA 12 min`; without an ETA where no launch works."""
    return f"{tally(runs)} · ETA {duration(eta_s(runs, live))}" if live else tally(runs)


def follow(
    out: Console,
    folder: Path,
    read: Callable[[], list[RunState]],
    line_every_s: float = LINE_EVERY_S,
    every_s: float = REFRESH_S,
    by: str | None = None,
) -> int:
    """Show progress until no launch of the sweep lives and no run of it is running.

    Args:
        out: a terminal gets a live display, anything else a line for each fleet every `line_every_s` seconds,
            and whenever a run changed its state.
        folder: the sweep's folder.
        read: the states of the sweep's runs, read anew.
        line_every_s: see `out`.
        every_s: how often run directories are read; Slurm is asked every `launches.ASK_SLURM_EVERY_S` at most.
        by: what the display counts by: task or domain.

    Returns:
        0 if every run is done, else 1; each failed run is named with its error.
    """
    screen = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal else None
    printed, printed_at = "", float("-inf")
    launches = Launches(folder)
    ended = {run.spec.run_id for run in read() if run.state in ("done", "failed")}
    with screen or nullcontext():
        while True:
            known = launches.read()  # before the states: what ends in between is then seen as ended
            live = [launched for launched in known if launched.alive]
            runs = read()
            for run in runs:
                if run.state in ("done", "failed") and run.spec.run_id not in ended:
                    ended.add(run.spec.run_id)
                    _say_ended(out, run)
            if not live and not any(run.state == "running" for run in runs):
                break
            if screen is not None:
                screen.update(display(runs, known, launches.silence, by, out.width), refresh=True)
            elif tally(runs) != printed or time.monotonic() - printed_at >= line_every_s:
                _print_lines(out, runs, live)
                printed, printed_at = tally(runs), time.monotonic()
            time.sleep(min(every_s, line_every_s))
    return _conclude(out, runs)


def _say_ended(out: Console, run: RunState) -> None:
    measure = "return" if run.spec.offline is None else "score"
    last = "" if run.progress.last_return is None else f", {measure} {run.progress.last_return:.1f}"
    reached = on_axis(run.spec, run.progress.reached)
    what = f"failed: {run.error}" if run.state == "failed" else f"done at {reached}{last}"
    out.print(f"{_clock()} {run.spec.run_id} {what}", soft_wrap=True)


def _print_lines(out: Console, runs: Sequence[RunState], live: Sequence[LaunchRecord]) -> None:
    out.print(f"{_clock()} {summary(runs, live)}", soft_wrap=True)
    for row in rows(runs, live):
        out.print(f"{_clock()}   {' · '.join(row)}", soft_wrap=True)


def display(
    runs: Sequence[RunState],
    launches: Sequence[LaunchRecord],
    silence: str | None = None,
    by: str | None = None,
    width: int = status_text.WIDE,
) -> RenderableType:
    """What a terminal shows: the summary, the table of agents and tasks or domains, and a line for each fleet that
    trains."""
    live = [launched for launched in launches if launched.alive]
    fleets = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    training = rows(runs, live)
    for row in training[:MOST_FLEETS_SHOWN]:
        fleets.add_row(*row)
    hidden = len(training) - MOST_FLEETS_SHOWN
    return Group(
        summary(runs, live),
        status_text.table(runs, by or status_text.default_by(runs), width),
        *status_text.lines(runs, launches, silence),
        fleets,
        *([f"… and {plural(hidden, 'more fleet')} that train"] if hidden > 0 else []),
    )


def _conclude(out: Console, runs: Sequence[RunState]) -> int:
    left = [run for run in runs if run.state in ("pending", "stale")]
    failed = [run for run in runs if run.state == "failed"]
    out.print(f"ended: {tally(runs)}")
    show_failures(out, failed)
    if left:
        out.print(f"{plural(len(left), 'run')} unfinished: launch again to go on", soft_wrap=True)
    return 1 if failed or left else 0


def _clock() -> str:
    return datetime.now().strftime("%H:%M:%S")
