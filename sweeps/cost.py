"""What a sweep will cost, from speeds that were really measured (see `measured`); unknown where nothing was."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from sweeps import plan
from sweeps.measured import Measurement, sources
from sweeps.plan import Fleet, Plan, counts, replay_bytes, run_json


@dataclass(frozen=True)
class Rate:
    """The speed to expect of a fleet, and where it comes from."""

    agent_steps_per_s: float
    source: str


def rate_of(fleet: Fleet, device: str, measured: Sequence[Measurement]) -> Rate | None:
    """The median of the nearest measurements.

    Always of the same agent, hyperparameters, observation kind, environments, device and pack; this machine before
    others, then the same task, then the same domain. Where this size of fleet was not measured, the next larger one
    serves: its runs are no faster.
    """
    spec, runs = fleet.spec, len(fleet.runs)
    fitting = [m for m in measured if m.device == device and m.pack == fleet.pack and m.fleet >= runs and m.is_of(spec)]
    if not fitting:
        return None
    size = min(m.fleet for m in fitting)

    def nearness(m: Measurement) -> tuple[bool, bool, bool]:
        return (m.host == socket.gethostname(), m.task == spec.task, m.domain == spec.domain)

    fitting = [m for m in fitting if m.fleet == size]
    nearest = max(map(nearness, fitting))
    best = [m for m in fitting if nearness(m) == nearest]
    where = best[0].task or "no single task"
    if best[0].task not in (None, spec.task):
        where += f", not {spec.task}"
    host = "this machine" if nearest[0] else best[0].host
    beside = "" if size == runs else f"; fleet of {size}"
    source = f"{sources(best)} ({where}{beside}; {device}, {host})"
    return Rate(median(m.agent_steps_per_s for m in best), source)


@dataclass(frozen=True)
class FleetCost:
    """One fleet and the time it will take."""

    fleet: Fleet
    rate: Rate | None

    @property
    def wall_s(self) -> float | None:
        """Seconds to the budget; None where no speed was measured."""
        return None if self.rate is None else self.fleet.left_agent_steps / self.rate.agent_steps_per_s


def cost(fleets: Sequence[Fleet], device: str, measured: Sequence[Measurement]) -> list[FleetCost]:
    """The cost of each fleet, in order."""
    return [FleetCost(fleet, rate_of(fleet, device, measured)) for fleet in fleets]


def makespan_s(costs: Sequence[FleetCost], slots: int) -> float:
    """Wall time of the fleets whose cost is known, each taken in order by the slot that is free first."""
    free = [0.0] * slots
    for pack, items in groupby(costs, key=lambda item: item.fleet.pack):
        lanes = [[time_s, slot] for slot, time_s in enumerate(free) for _ in range(pack)]
        for item in items:
            min(lanes)[0] += item.wall_s or 0.0
        for time_s, slot in lanes:
            free[int(slot)] = max(free[int(slot)], time_s)
    return max(free)


def plan_json(made: Plan, costs: Sequence[FleetCost], device: str) -> dict[str, Any]:
    """A plan and its cost as plain values, for `--json`."""
    slots = max(1, plan.slots(made.sweep.resources.slots, made.fleets))
    todo = [run for item in costs for run in item.fleet.runs]
    return {
        "name": made.sweep.name,
        "folder": str(made.folder),
        "device": device,
        "slots": slots,
        "counts": counts(made.runs),
        "env_steps": sum(run.left_agent_steps * run.spec.action_repeat for run in todo),
        "agent_steps": sum(run.left_agent_steps for run in todo),
        "wall_s": makespan_s(costs, slots) if all(item.rate for item in costs) else None,
        "replay_bytes": sum(replay_bytes(made.sweep, run.spec) for run in todo),
        "fleets": [
            {
                "title": item.fleet.title(),
                "runs": item.fleet.run_ids,
                "pack": item.fleet.pack,
                "why": item.fleet.why,
                "agent_steps": item.fleet.left_agent_steps,
                "env_steps": item.fleet.left_agent_steps * item.fleet.spec.action_repeat,
                "agent_steps_per_s": item.rate.agent_steps_per_s if item.rate else None,
                "source": item.rate.source if item.rate else None,
                "wall_s": item.wall_s,
            }
            for item in costs
        ],
        "runs": [run_json(run) for run in made.runs],
    }
