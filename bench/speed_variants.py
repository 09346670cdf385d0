"""What each way to compute an agent gives on this device: a single run's update and act, side by side.

The ways are the precisions of its products, and on a GPU each of them with CUDA graphs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, get_args

import torch

from agents.precision import Precision
from agents.registry import get as get_agent
from bench.envs import ObsKind
from bench.speed import WARM_UP_CALLS, Fleet, synchronise
from bench.speed_worlds import World

CALLS = ("update", "act")
GRAPHS = " with CUDA graphs"


def names(agent: str, device: torch.device) -> list[str]:
    """The ways that the agent and the device have, the plain one first."""
    entry = get_agent(agent)
    precisions = ["float32"]
    if "precision" in entry.hyperparameters_model().model_fields:
        precisions = [name for name in get_args(Precision) if name != "tf32" or device.type == "cuda"]
    graphs = entry.capturable and device.type == "cuda"
    return [*precisions, *(name + GRAPHS for name in precisions if graphs)]


def compare(
    agent: str, hyperparameters: Mapping[str, Any], world: World, device: torch.device, calls: int, obs: ObsKind
) -> dict[str, dict[str, float]]:
    """Medians of one run in each way. The ways take turns call by call, so that what else the machine does meets all of
    them; with one thread of a CPU, times are CPU time.

    Returns:
        Way -> `update_ms`, `act_ms`, and the ratio of each to plain float32's in the same round (`update_ratio`,
        `act_ratio`, medians); on a GPU also `peak_gpu_gb` of an update and an act, with a small replay. Empty where
        there is nothing to compare.
    """
    ways = names(agent, device)
    if len(ways) == 1:
        return {}
    fleets: dict[str, Fleet] = {}
    facts: dict[str, dict[str, float]] = {way: {} for way in ways}
    times: dict[tuple[str, str], list[float]] = {(way, call): [] for way in ways for call in CALLS}
    try:
        for way in ways:
            before = _allocated(device)
            fleets[way] = _fleet(agent, hyperparameters, world, device, obs, way)
            for _ in range(WARM_UP_CALLS):
                fleets[way].update()
                fleets[way].act()
            if device.type == "cuda":
                facts[way]["peak_gpu_gb"] = round((torch.cuda.max_memory_allocated(device) - before) / 1e9, 3)
        for turn in range(calls):
            for call in CALLS:
                for way in ways if turn % 2 else ways[::-1]:
                    times[way, call].append(_timed(fleets[way], call, device))
    finally:
        for fleet in fleets.values():
            fleet.collector.close()
    for way in ways:
        for call in CALLS:
            pairs = zip(times[way, call], times[ways[0], call], strict=True)
            facts[way][f"{call}_ms"] = round(statistics.median(times[way, call]), 3)
            facts[way][f"{call}_ratio"] = round(statistics.median(own / plain for own, plain in pairs), 3)
    return facts


def _fleet(
    agent: str, hyperparameters: Mapping[str, Any], world: World, device: torch.device, obs: ObsKind, way: str
) -> Fleet:
    precision = way.removesuffix(GRAPHS)
    own = {"precision": precision} if "precision" in hyperparameters else {}
    fleet = Fleet(agent, {**hyperparameters, **own}, world, 1, device, obs, graphs=way.endswith(GRAPHS))
    fleet.prepare()
    return fleet


def _allocated(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _timed(fleet: Fleet, call: str, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    getattr(fleet, call)()
    synchronise(device)
    return 1000 * (clock() - begin)


def lines(facts: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What `compare` found, for people."""
    found = []
    for way, own in facts.items():
        shown = [f"{call} {own[f'{call}_ms']:g} ms ({own[f'{call}_ratio']:.2f} of plain float32's)" for call in CALLS]
        memory = [f"{own['peak_gpu_gb']:g} GB"] if "peak_gpu_gb" in own else []
        found.append(f"{way}: {', '.join([*shown, *memory])}")
    return found
