"""What launches did and why runs failed, for people; and the small words that all texts share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from bench.runspec import RunSpec
from sweeps import plan
from sweeps.failures import FailureGroup
from sweeps.launch import Launched
from sweeps.state import STATES, RunState

MOST_FAILURES_SHOWN = 20
MOST_RUNS_OF_A_GROUP = 5


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


def on_axis(spec: RunSpec, count: int) -> str:
    """`4,700 env steps`, or `4,700 updates` of a run that learns offline."""
    return f"{count:,} {spec.axis.replace('_', ' ')}"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def tally(runs: Iterable[RunState]) -> str:
    """`2 done, 1 failed`: the states that occur."""
    found = plan.counts(runs)
    return ", ".join(f"{found[state]} {state}" for state in reversed(STATES) if found[state])


def show_failures(out: Console, runs: Sequence[RunState]) -> None:
    """Each failed run with its error, on a line of its own."""
    failed = [run for run in runs if run.state == "failed"]
    for run in failed[:MOST_FAILURES_SHOWN]:
        out.print(f"failed {run.spec.run_id}: {run.error}", style="red", soft_wrap=True)
    if len(failed) > MOST_FAILURES_SHOWN:
        out.print(
            f"… and {plural(len(failed) - MOST_FAILURES_SHOWN, 'more failure')} (--json lists all)", soft_wrap=True
        )


def show_failure_groups(out: Console, groups: Sequence[FailureGroup], runs: int, retry: str) -> None:
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
        out.print(f"  again: {retry} --class {first.kind.name}", soft_wrap=True)


def show_ended(out: Console, runs: Sequence[RunState]) -> None:
    """Runs that would have to go on from a smaller budget but cannot."""
    if runs:
        out.print(
            f"{plural(len(runs), 'run')} ended at a smaller budget and kept no replay, so cannot be extended: "
            f"left alone; move {runs[0].directory.path} away to train it anew (resources.keep_replay keeps the replay)",
            soft_wrap=True,
        )


def command(verb: str, file: Path | str, results: Path, assignments: Sequence[str] = ()) -> str:
    """A command about the same sweep in the same folder, ready for a shell."""
    where = [] if results == Path("results") else ["--results", str(results)]
    return shlex.join(["bench", "sweep", verb, str(file), *where, *(f"--set={text}" for text in assignments)])


def show_launched(out: Console, launched: Launched, described: str | None, commands: Callable[[str], str]) -> None:
    """What a launch started, and what it left alone and why.

    Args:
        commands: verb -> the command about this sweep.
    """
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
            f"{count} failed before: skipped; `{commands('failures')}` says why, "
            f"`{commands('retry')}` starts them again",
            soft_wrap=True,
        )
        show_failures(out, launched.failed)
    show_ended(out, launched.ended)
    if launched.record is None and not launched.busy:
        out.print("nothing to start", soft_wrap=True)
