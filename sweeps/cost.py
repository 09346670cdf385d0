"""What a sweep will cost, from speeds that were really measured (see `measured`); unknown where nothing was."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from bench.errors import UserError
from bench.runspec import RunSpec
from sweeps import plan
from sweeps.measured import Measurement, by_configuration, sources
from sweeps.plan import Fleet, Plan, counts, lacking, replay_bytes, run_json


@dataclass(frozen=True)
class Rate:
    """The speed to expect of a fleet, and where it comes from."""

    speed: float
    """Of each run, on its clock: agent steps or updates a second."""
    source: str


def _nearest(spec: RunSpec, fitting: Sequence[Measurement]) -> list[Measurement]:
    """The measurements that are nearest to a run: this machine before others, then the same task, then the same
    domain, then any simulator before made-up environments."""

    def nearness(m: Measurement) -> tuple[bool, ...]:
        return (m.host == socket.gethostname(), m.task == spec.task, m.domain == spec.domain, not m.made_up)

    nearest = max(map(nearness, fitting), default=None)
    return [m for m in fitting if nearness(m) == nearest]


def rate_of(fleet: Fleet, device: str, measured: Sequence[Measurement]) -> Rate | None:
    """The median of the nearest measurements of the same agent, hyperparameters, observation kind, environments, device
    and pack, with CUDA graphs or without. Where this size of fleet was not measured, the next larger one serves: its
    runs are no faster."""
    spec, runs = fleet.spec, len(fleet.runs)
    how = device, fleet.pack, fleet.cuda_graphs
    fitting = [m for m in measured if (m.device, m.pack, m.cuda_graphs) == how and m.fleet >= runs and m.is_of(spec)]
    if not fitting:
        return None
    size = min(m.fleet for m in fitting)
    best = _nearest(spec, [m for m in fitting if m.fleet == size])
    where = best[0].task or ("made-up environments" if best[0].made_up else "no single task")
    if best[0].task not in (None, spec.task):
        where += f", not {spec.task}"
    host = "this machine" if best[0].host == socket.gethostname() else best[0].host
    beside = "" if size == runs else f"; fleet of {size}"
    source = f"{sources(best)} ({where}{beside}; {device}, {host})"
    return Rate(median(m.speed for m in best), source)


@dataclass(frozen=True)
class FleetCost:
    """One fleet and the time it will take."""

    fleet: Fleet
    rate: Rate | None

    @property
    def wall_s(self) -> float | None:
        """Seconds to the budget; None where no speed was measured."""
        return None if self.rate is None else self.fleet.left / self.rate.speed


def cost(fleets: Sequence[Fleet], device: str, measured: Sequence[Measurement]) -> list[FleetCost]:
    """The cost of each fleet, in order."""
    of = by_configuration(measured)
    return [FleetCost(fleet, rate_of(fleet, device, of(fleet.spec))) for fleet in fleets]


def busy_s(costs: Sequence[FleetCost], slots: int) -> list[float]:
    """How long each slot works on the fleets whose cost is known; the slot that is free first takes the next."""
    free = [0.0] * slots
    for pack, items in groupby(costs, key=lambda item: item.fleet.pack):
        lanes = [[time_s, slot] for slot, time_s in enumerate(free) for _ in range(pack)]
        for item in items:
            min(lanes)[0] += item.wall_s or 0.0
        for time_s, slot in lanes:
            free[int(slot)] = max(free[int(slot)], time_s)
    return free


@dataclass(frozen=True)
class Disk:
    """What a sweep writes, in bytes."""

    replay_at_once: int
    """Replay logs of the largest fleets that train at a time, at their budgets; computed from shapes."""
    replay: int
    """Over all runs."""
    checkpoints: int | None
    """Over all runs, which keep them; None where none of some agent was measured."""
    checkpoints_source: str


@dataclass(frozen=True)
class Total:
    """What a plan will cost."""

    slots: int
    device: str
    wall_s: float
    """Of the fleets whose cost is known."""
    device_h: float
    """Time that their devices are held: on GPUs, GPU-hours."""
    unknown: tuple[Fleet, ...]
    """Fleets of which no speed was measured."""
    disk: Disk


def total(
    made: Plan, costs: Sequence[FleetCost], device: str, known: Sequence[Measurement], gpus: float = 1.0
) -> Total:
    """Add up what a plan will cost.

    Args:
        made: the plan.
        costs: of its fleets, in order.
        device: cpu or cuda.
        known: what was measured.
        gpus: how many a slot holds; less than 1 where slots share them.
    """
    slots = max(1, plan.slots(made.sweep.resources.slots, made.fleets))
    times = busy_s(costs, slots)
    return Total(
        slots=slots,
        device=device,
        wall_s=max(times),
        device_h=sum(times) / 3600 * (gpus if device == "cuda" else 1.0),
        unknown=tuple(item.fleet for item in costs if item.rate is None),
        disk=_disk(made, slots, known),
    )


def _disk(made: Plan, slots: int, known: Sequence[Measurement]) -> Disk:
    replay = sorted(
        (fleet.pack * sum(replay_bytes(made.sweep, run.spec) for run in fleet.runs) for fleet in made.fleets),
        reverse=True,
    )
    runs = [run.spec for fleet in made.fleets for run in fleet.runs]
    saved, used, of = [], [], by_configuration(known)
    for spec in runs:
        best = _nearest(spec, [m for m in of(spec) if m.checkpoint_bytes])
        used += best
        saved.append(median(m.checkpoint_bytes or 0 for m in best) if best else None)
    return Disk(
        replay_at_once=sum(replay[:slots]),
        replay=sum(replay_bytes(made.sweep, spec) for spec in runs),
        checkpoints=None if None in saved else int(sum(size or 0 for size in saved)),
        checkpoints_source="none of some agent was measured"
        if None in saved
        else sources(list({id(m): m for m in used}.values())),
    )


def check_gpu_hours(cost: Total, most: float) -> None:
    """Refuse a plan that costs more.

    Raises:
        UserError: it costs more GPU-hours, or what it costs is not known.
    """
    if cost.device != "cuda":
        return
    if cost.unknown:
        first = cost.unknown[0].spec
        obs = "" if first.obs == "state" else f" --obs {first.obs}"
        measure = (
            f"measure it on such a GPU with `bench speed {first.agent} --task {first.task}{obs} --fleet "
            f"{len(cost.unknown[0].runs)} --device cuda`, or "
        )
        raise UserError(
            f"--max-gpu-hours {most:g}: the cost of {len(cost.unknown)} fleets is unknown (the first: "
            f"{cost.unknown[0].title()}): {'' if first.offline else measure}launch a single run of it, or launch "
            "without --max-gpu-hours"
        )
    if cost.device_h > most:
        raise UserError(
            f"--max-gpu-hours {most:g}: this would take {cost.device_h:.1f} GPU-hours: take fewer tasks, seeds or "
            "steps, or allow more"
        )


def _left_json(fleet: Fleet) -> dict[str, int]:
    if fleet.spec.offline is not None:
        return {"updates": fleet.left}
    return {"agent_steps": fleet.left, "env_steps": fleet.left * fleet.spec.action_repeat}


def plan_json(made: Plan, costs: Sequence[FleetCost], cost: Total) -> dict[str, Any]:
    """A plan and its cost as plain values, for `--json`."""
    todo = [run for item in costs for run in item.fleet.runs]
    hours = None if cost.unknown else cost.device_h
    return {
        "name": made.sweep.name,
        "folder": str(made.folder),
        "device": cost.device,
        "slots": cost.slots,
        "counts": counts(made.runs),
        "lacking": lacking(todo),
        "env_steps": sum(run.left * run.spec.action_repeat for run in todo if run.spec.offline is None),
        "agent_steps": sum(run.left for run in todo if run.spec.offline is None),
        "updates": sum(run.left for run in todo if run.spec.offline is not None),
        "wall_s": None if cost.unknown else cost.wall_s,
        "gpu_h": hours if cost.device == "cuda" else 0.0,
        "cpu_worker_h": hours if cost.device == "cpu" else 0.0,
        "fleets_of_unknown_cost": len(cost.unknown),
        "replay_bytes": cost.disk.replay,
        "replay_bytes_at_once": cost.disk.replay_at_once,
        "checkpoint_bytes": cost.disk.checkpoints,
        "checkpoint_bytes_source": cost.disk.checkpoints_source,
        "fleets": [
            {
                "title": item.fleet.title(),
                "runs": item.fleet.run_ids,
                "pack": item.fleet.pack,
                "why": item.fleet.why,
                **_left_json(item.fleet),
                f"{item.fleet.spec.clock}_per_s": item.rate.speed if item.rate else None,
                "source": item.rate.source if item.rate else None,
                "wall_s": item.wall_s,
            }
            for item in costs
        ],
        "runs": [run_json(run) for run in made.runs],
    }
