"""What each precision of an agent's products gives on this device: update and act, side by side."""

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


def compare(
    agent: str, hyperparameters: Mapping[str, Any], world: World, device: torch.device, calls: int, obs: ObsKind
) -> dict[str, dict[str, float]]:
    """Medians of one run in each precision that the device has. The precisions take turns call by call, so that what
    else the machine does meets all of them; with one thread of a CPU, times are CPU time.

    Returns:
        Precision -> `update_ms`, `act_ms`, and the ratio of each to float32's in the same round (`update_ratio`,
        `act_ratio`, medians); on a GPU also `peak_gpu_gb` of an update and an act, with a small replay. Empty where the
        agent has no such hyperparameter.
    """
    if "precision" not in get_agent(agent).hyperparameters_model().model_fields:
        return {}
    names = [name for name in get_args(Precision) if name != "tf32" or device.type == "cuda"]
    fleets: dict[str, Fleet] = {}
    facts: dict[str, dict[str, float]] = {name: {} for name in names}
    times: dict[tuple[str, str], list[float]] = {(name, call): [] for name in names for call in CALLS}
    try:
        for name in names:
            before = _allocated(device)
            fleets[name] = Fleet(agent, {**hyperparameters, "precision": name}, world, 1, device, obs)
            fleets[name].prepare()
            for _ in range(WARM_UP_CALLS):
                fleets[name].update()
                fleets[name].act()
            if device.type == "cuda":
                facts[name]["peak_gpu_gb"] = round((torch.cuda.max_memory_allocated(device) - before) / 1e9, 3)
        for turn in range(calls):
            for call in CALLS:
                for name in names if turn % 2 else names[::-1]:
                    times[name, call].append(_timed(fleets[name], call, device))
    finally:
        for fleet in fleets.values():
            fleet.collector.close()
    for name in names:
        for call in CALLS:
            pairs = zip(times[name, call], times["float32", call], strict=True)
            facts[name][f"{call}_ms"] = round(statistics.median(times[name, call]), 3)
            facts[name][f"{call}_ratio"] = round(statistics.median(own / plain for own, plain in pairs), 3)
    return facts


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
    for name, own in facts.items():
        shown = [f"{call} {own[f'{call}_ms']:g} ms ({own[f'{call}_ratio']:.2f} of float32's)" for call in CALLS]
        memory = [f"{own['peak_gpu_gb']:g} GB"] if "peak_gpu_gb" in own else []
        found.append(f"precision {name}: {', '.join([*shown, *memory])}")
    return found
