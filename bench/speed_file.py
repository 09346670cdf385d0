"""What is measured of a fleet's speed, and a machine's file of it: what sweeps estimate their cost from."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from bench import atomic, provenance


@dataclass(frozen=True)
class Timing:
    """Median of repeated calls and half their interquartile range, in ms, after a warm-up."""

    ms: float
    spread_ms: float
    first_ms: float
    """Of the very first call: with whatever is made, chosen or compiled then."""


@dataclass(frozen=True)
class Measurement:
    """One fleet size. Times are of one call for the whole fleet; rates of each run."""

    agent: str
    hyperparameters: dict[str, Any]
    obs: str
    num_envs: int
    fleet: int
    world: dict[str, Any]
    """Task, sizes and environment processes; see `World.facts`."""
    update: Timing
    act: Timing
    env: Timing
    updates_per_agent_step: float
    loop_agent_steps_per_s: float
    """Of each run, from running the loop after the seed phase, between resets. An agent that learns in blocks has its
    updates spread evenly."""
    loop_spread: float
    """Half the range over the parts of the loop, in agent steps per second."""
    parts_agent_steps_per_s: float
    """What the sum of the times of update, act and environment would give: nothing overlaps in it."""
    env_wait_share: float
    """Share of the loop in which the learner waited for environments."""
    peak_rss_gb: float
    """Most memory that this process had, with the small replay of the measurement."""
    replay_gb: float
    """Memory on the device that the replay takes at the budget; not in `peak_rss_gb`."""
    peak_gpu_gb: float | None
    """Most GPU memory of the whole fleet: what was measured, with the replay as large as a whole run makes it."""
    threads: int
    profile: dict[str, dict[str, float]] = field(default_factory=dict)
    """Share of each kind of operations in the time of an update and of an act."""
    cuda_graphs: bool = False
    """Whether update and act were recorded as CUDA graphs; their first calls are then plain ones."""

    def first_s(self, what: Literal["update", "act"]) -> float:
        """Seconds that the first call took."""
        return float(getattr(self, what).first_ms) / 1000

    def row(self) -> dict[str, Any]:
        """As it stands in the file; flat, in the units that the names say."""
        values = dict(vars(self))
        for name in ("update", "act", "env"):
            timing: Timing = values.pop(name)
            values |= {
                f"{name}_ms": timing.ms,
                f"{name}_spread_ms": timing.spread_ms,
                f"first_{name}_ms": timing.first_ms,
            }
        return {**values.pop("world"), **values}


def write(
    measurements: Sequence[Measurement], device: str, folder: Path, extra: Mapping[str, Any] | None = None
) -> Path:
    """Add measurements to this machine's file in a results folder; a new figure for the same fleet replaces the old.

    Args:
        measurements: of this process.
        device: as torch names it.
        folder: the file goes into its folder `speed/`.
        extra: more facts to keep at the top of the file.
    """
    path = folder / "speed" / (re.sub(r"[^\w.-]+", "-", f"{socket.gethostname()}-{device}") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {"measurements": []}
    new = [measurement.row() for measurement in measurements]

    def what(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(
            row.get(key, False)
            for key in ("agent", "hyperparameters", "task", "synthetic", "obs", "num_envs", "fleet", "cuda_graphs")
        )

    kept = [row for row in before["measurements"] if what(row) not in [what(other) for other in new]]
    facts = provenance.collect(device)
    about = {key: facts[key] for key in ("commit", "dirty", "cpu", "cpu_count", "gpu", "driver", "versions")}
    content = {
        "host": socket.gethostname(),
        "device": device,
        "threads": torch.get_num_threads(),
        **about,
        **(extra or {}),
    }
    atomic.write_json(path, {**content, "measurements": kept + new})
    return path
