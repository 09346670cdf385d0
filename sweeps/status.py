"""What a person wants to know of a sweep that runs: counts and progress, why runs wait, when it ends, what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sweeps import plan
from sweeps.record import LaunchRecord
from sweeps.state import RunState


def why(runs: Iterable[RunState], launches: Sequence[LaunchRecord]) -> dict[str, str]:
    """Why pending runs wait, and what became of the process of stale ones: run id -> a few words."""
    words: dict[str, str] = {}
    for launched in launches:
        released = launched.released()
        if launched.on_slurm:
            jobs = launched.jobs()
            words |= {
                run_id: f"Slurm: {launched.job_states[job]}"
                for slot, job in jobs.items()
                if job in launched.job_states
                for fleet in launched.tasks[slot]
                for run_id in launched.fleets[fleet]
                if run_id not in released
            }
        else:
            words |= dict.fromkeys(launched.owned(), f"waits for a slot of launch {launched.name}")
    default = {"pending": "not launched", "stale": "its process is gone"}
    return {run.spec.run_id: words.get(run.spec.run_id, default[run.state]) for run in runs if run.state in default}


@dataclass(frozen=True)
class Hours:
    """Time on one kind of device: of a run, its wall time divided by the runs that share its device."""

    used_h: float
    to_come_h: float
    unknown: int
    """Runs with steps to go and no speed to go by; they are not in `to_come_h`."""

    def __add__(self, other: Hours) -> Hours:
        return Hours(self.used_h + other.used_h, self.to_come_h + other.to_come_h, self.unknown + other.unknown)


def hours(runs: Sequence[RunState], among: Sequence[RunState]) -> dict[str, Hours]:
    """Hours used and to come, by device (cpu, cuda; unknown where nothing of the agent has run yet).

    Args:
        runs: those that count.
        among: all runs of the sweep. One that waits goes as fast as its agent's others here, in the median.
    """
    speeds: dict[tuple[str, str], list[float]] = {}
    devices: dict[tuple[str, str], Counter[str]] = {}
    for run in among:
        agent, progress = plan.kind(run.spec), run.progress
        if progress.speed:
            speeds.setdefault(agent, []).append(progress.speed * progress.sharers)
        if progress.device:
            devices.setdefault(agent, Counter())[progress.device] += 1
    found: dict[str, Hours] = {}
    for run in runs:
        agent, progress = plan.kind(run.spec), run.progress
        usual = devices[agent].most_common(1)[0][0] if agent in devices else "unknown"
        device = progress.device or usual
        found[device] = found.get(device, Hours(0, 0, 0)) + _hours(run, speeds.get(agent, []))
    return found


def _hours(run: RunState, speeds: Sequence[float]) -> Hours:
    used_h = run.progress.wall_s / run.progress.sharers / 3600
    left = 0 if run.state in ("done", "failed") else run.left
    if not left:
        return Hours(used_h, 0.0, 0)
    own = run.progress.speed if run.state == "running" else None
    speed = own * run.progress.sharers if own else median(speeds) if speeds else None
    return Hours(used_h, 0.0, 1) if speed is None else Hours(used_h, left / speed / 3600, 0)


@dataclass(frozen=True)
class Row:
    """The runs of one agent variant on one domain (or task), all of one axis."""

    agent: str
    name: str
    runs: tuple[RunState, ...]
    hours: Mapping[str, Hours]

    @property
    def axis(self) -> str:
        """env_steps, or updates of runs that learn offline."""
        return self.runs[0].spec.axis

    @property
    def reached(self) -> int:
        """So far, over all runs."""
        return sum(min(run.progress.reached, run.spec.budget) for run in self.runs)

    @property
    def budget(self) -> int:
        """Of all runs."""
        return sum(run.spec.budget for run in self.runs)

    @property
    def eta_s(self) -> float | None:
        """Until the last of those that run now is done."""
        return max((run.eta_s for run in self.runs if run.eta_s is not None), default=None)


def rows(runs: Sequence[RunState], by: str) -> list[Row]:
    """Runs by agent variant and `domain` or `task`, in order of the sweep."""
    groups: dict[tuple[str, str, str], list[RunState]] = {}
    for run in runs:
        groups.setdefault((plan.agent_title(run.spec), getattr(run.spec, by), run.spec.axis), []).append(run)
    return [Row(agent, name, tuple(group), hours(group, runs)) for (agent, name, _), group in groups.items()]


def to_json(
    folder: Path,
    runs: Sequence[RunState],
    launches: Sequence[LaunchRecord],
    by: str,
    eta_s: float | None,
    silence: str | None,
) -> dict[str, Any]:
    """Plain values, for `--json`."""
    reasons = why(runs, launches)
    return {
        "folder": str(folder),
        "counts": plan.counts(runs),
        "eta_s": eta_s,
        "hours": _hours_json(hours(runs, runs)),
        "launches": [launched.name for launched in launches if launched.alive],
        "slurm_silent": silence,
        "rows": [
            {
                "agent": row.agent,
                by: row.name,
                "counts": plan.counts(row.runs),
                row.axis: row.reached,
                f"budget_{row.axis}": row.budget,
                "eta_s": row.eta_s,
                "hours": _hours_json(row.hours),
            }
            for row in rows(runs, by)
        ],
        "runs": [plan.run_json(run) | {"why": reasons.get(run.spec.run_id)} for run in runs],
    }


def _hours_json(found: Mapping[str, Hours]) -> dict[str, Any]:
    return {
        device: {"used_h": of.used_h, "to_come_h": of.to_come_h, "runs_of_unknown_speed": of.unknown}
        for device, of in found.items()
    }
