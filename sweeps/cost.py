"""What a sweep will cost, from speeds that were really measured; unknown where nothing was.

Two sources: the run directories below the results folder (finished runs: agent steps over wall time, evaluation
included; running ones: the rate of their heartbeat once they learn), and the files of `bench speed`:

    results/speed/*.json: {"device": "cpu", "host": "...", "measurements": [
        {"agent": ..., "hyperparameters": {all of them}, "obs": "state", "num_envs": 1, "fleet": 4,
         "loop_agent_steps_per_s": of each run}, ...]}
"""

from __future__ import annotations

import heapq
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.errors import UserError
from bench.rundir import RunDir
from sweeps.plan import Fleet, Plan, counts, replay_bytes, run_json


@dataclass(frozen=True)
class Measurement:
    """A speed that was measured."""

    agent: str
    hyperparameters: dict[str, Any]
    obs: str
    num_envs: int
    fleet: int
    device: str
    host: str
    task: str | None
    domain: str | None
    agent_steps_per_s: float
    """Of each run of the fleet."""
    kind: str
    """`finished run`, `running run`, or the name of a speed file."""


@dataclass(frozen=True)
class Rate:
    """The speed to expect of a fleet, and where it comes from."""

    agent_steps_per_s: float
    source: str


def measurements(results: Path) -> list[Measurement]:
    """Every speed that can be found below a results folder."""
    return [*_of_runs(results), *_of_speed_files(results / "speed")]


def _of_runs(results: Path) -> Iterator[Measurement]:
    for path in sorted(results.glob("*/*/*/*/run.json")):
        directory = RunDir(path.parent)
        try:
            found = _of_run(directory)
        except UserError:
            continue  # a damaged directory says nothing about speed; `status` names it
        if found is not None:
            yield found


def _of_run(directory: RunDir) -> Measurement | None:
    attempts = directory.info()["attempts"]
    done, beat = directory.read_json("done.json"), directory.read_json("heartbeat")
    if not attempts or "device" not in attempts[-1]:
        return None
    spec, last = directory.spec, attempts[-1]
    if done is not None and done.get("wall_s"):
        rate, kind = done["env_steps"] / spec.action_repeat / done["wall_s"], "finished run"
    elif beat is not None and beat.get("agent_steps_per_s") and directory.train_csv.exists():
        rate, kind = beat["agent_steps_per_s"], "running run"  # train.csv begins with the first update
    else:
        return None
    return Measurement(
        agent=spec.agent,
        hyperparameters=spec.hyperparameters,
        obs=spec.obs,
        num_envs=spec.num_envs,
        fleet=last.get("fleet", 1),
        device=last["device"].partition(":")[0],
        host=last.get("host", "unknown host"),
        task=spec.task,
        domain=spec.domain,
        agent_steps_per_s=rate,
        kind=kind,
    )


def _of_speed_files(folder: Path) -> Iterator[Measurement]:
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is not JSON ({error}): remove it, or measure again with `bench speed`") from error
        if not isinstance(content, dict):
            continue
        for row in content.get("measurements", ()):
            yield Measurement(
                agent=row["agent"],
                hyperparameters=row["hyperparameters"],
                obs=row.get("obs", "state"),
                num_envs=row.get("num_envs", 1),
                fleet=row["fleet"],
                device=content["device"],
                host=content["host"],
                task=row.get("task"),
                domain=None,
                agent_steps_per_s=row["loop_agent_steps_per_s"],
                kind=path.name,
            )


def rate_of(fleet: Fleet, device: str, measured: Sequence[Measurement]) -> Rate | None:
    """The median of the nearest measurements: same agent, hyperparameters, observation kind, environments, fleet size
    and device always; this machine before others, then the same task, then the same domain."""
    spec = fleet.spec
    wanted = (spec.agent, spec.hyperparameters, spec.obs, spec.num_envs, len(fleet.runs), device)
    fitting = [m for m in measured if (m.agent, m.hyperparameters, m.obs, m.num_envs, m.fleet, m.device) == wanted]
    if not fitting:
        return None

    def nearness(m: Measurement) -> tuple[bool, bool, bool]:
        return (m.host == socket.gethostname(), m.task == spec.task, m.domain == spec.domain)

    nearest = max(map(nearness, fitting))
    best = [m for m in fitting if nearness(m) == nearest]
    kinds = ", ".join(dict.fromkeys(m.kind for m in best))
    where = best[0].task or "no single task"
    if best[0].task not in (None, spec.task):
        where += f", not {spec.task}"
    host = "this machine" if nearest[0] else best[0].host
    source = f"{len(best)} × {kinds} ({where}; {device}, {host})"
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
    for item in costs:
        if item.wall_s is not None:
            heapq.heapreplace(free, free[0] + item.wall_s)
    return max(free)


def plan_json(made: Plan, costs: Sequence[FleetCost], device: str) -> dict[str, Any]:
    """A plan and its cost as plain values, for `--json`."""
    slots = min(made.sweep.resources.slots, max(1, len(costs)))
    todo = [run for item in costs for run in item.fleet.runs]
    replay = [replay_bytes(made.sweep, run.spec) for run in todo]
    return {
        "name": made.sweep.name,
        "folder": str(made.folder),
        "device": device,
        "slots": slots,
        "counts": counts(made.runs),
        "env_steps": sum(run.left_agent_steps * run.spec.action_repeat for run in todo),
        "agent_steps": sum(run.left_agent_steps for run in todo),
        "wall_s": makespan_s(costs, slots) if all(item.rate for item in costs) else None,
        "replay_bytes": None if None in replay else sum(need or 0 for need in replay),
        "fleets": [
            {
                "title": item.fleet.title(),
                "runs": item.fleet.run_ids,
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
