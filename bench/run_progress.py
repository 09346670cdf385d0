"""What state a run is in and how far it came, by its heartbeat and done.json."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.processes import Process

STALE_AFTER_S = 300.0
"""A heartbeat older than this means that the run's process is gone (it beats every 10 s at most)."""


@dataclass(frozen=True)
class Progress:
    """Where a run is, as its directory tells."""

    state: str
    """pending, running, stale, failed or done."""
    reached: int
    """Env steps, or updates of a run that learns offline: on the axis of its specification."""
    speed: float | None
    """On its clock: agent steps or updates a second."""
    last_return: float | None
    """Of the last evaluation; offline, the normalised score over all tasks."""
    wall_s: float
    age_s: float | None
    """Seconds since the last heartbeat; None where there was none."""
    device: str | None = None
    """cpu or cuda, by the last heartbeat."""
    sharers: int = 1
    """Runs that trained on that device together, this one included."""
    env_wait_share: float | None = None
    """Share of its time that the learner waited for environments, by the last heartbeat."""


def progress_of(beat: Mapping[str, Any] | None, done: Mapping[str, Any] | None, failed: bool, budget: int) -> Progress:
    """State and progress of a run.

    Args:
        beat: its heartbeat; None where there is none.
        done: its done.json; None where there is none.
        failed: whether it left a failed.json.
        budget: what counts as done, in env steps or updates; 0: whatever the run was done with.

    Raises:
        KeyError, TypeError: the heartbeat is not one.
    """
    age_s = None if beat is None else max(0.0, time.time() - beat["time"])
    if done is not None and _reached(done) >= budget:
        state = "done"
    elif failed:
        state = "failed"
    elif beat is None or beat["ended"]:
        state = "pending"
    else:
        state = "stale" if _owner_gone(beat, age_s or 0.0) else "running"
    beat = beat or {}
    return Progress(
        state=state,
        reached=max(_reached(done or {}), _reached(beat)),
        speed=beat.get("updates_per_s", beat.get("agent_steps_per_s")),
        last_return=beat.get("score", beat.get("return")),
        wall_s=float(beat.get("wall_s", 0.0)),
        age_s=age_s,
        device=beat.get("device"),
        sharers=int(beat.get("fleet") or 1) * int(beat.get("pack") or 1),
        env_wait_share=beat.get("env_wait_share"),
    )


def _owner_gone(beat: Mapping[str, Any], age_s: float) -> bool:
    owner = Process.from_json(beat["process"])
    return age_s > STALE_AFTER_S or (owner.is_here and not owner.alive)


def _reached(told: Mapping[str, Any]) -> int:
    """How far a run came, by its heartbeat or done.json: updates of one that learns offline, else env steps."""
    return int(told.get("updates", told.get("env_steps", 0)))
