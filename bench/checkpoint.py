"""Checkpoints of one run: written aside and renamed, the last two kept, a damaged one passed over."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from bench import atomic
from bench.errors import UserError
from bench.rundir import RunDir

FORMAT_VERSION = 1
KEEP = 2


def _path(run: RunDir, agent_steps: int) -> Path:
    return run.checkpoints / f"{agent_steps:010d}.pt"


def saved_agent_steps(run: RunDir) -> list[int]:
    """The agent steps at which checkpoints lie in the run directory, ascending. Unfinished files do not count."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(int(path.stem) for path in run.checkpoints.glob("[0-9]*.pt"))


def save(run: RunDir, agent_steps: int, state: dict[str, Any]) -> None:
    """Write one checkpoint, then drop all but the last two.

    Raises:
        OSError: the disk is full; the checkpoints from before are untouched.
    """
    run.checkpoints.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, "agent_steps": agent_steps, **state}, buffer)
    atomic.write_bytes(_path(run, agent_steps), buffer.getvalue(), run.guard)
    run.guard()
    for old in saved_agent_steps(run)[:-KEEP]:
        _path(run, old).unlink()


def load(run: RunDir, agent_steps: int) -> dict[str, Any] | None:
    """The checkpoint at `agent_steps`; None, with a warning, where the file is damaged.

    Raises:
        UserError: written by another version of the format.
    """
    path = _path(run, agent_steps)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(f"checkpoint {path} is damaged ({reason}); going back to the one before")
        return None
    if state["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"checkpoint {path} has format {state['format_version']}, this code reads {FORMAT_VERSION}: "
            "finish the run with the version that began it, or move the run directory away"
        )
    return state


def load_common(runs: list[RunDir]) -> tuple[int, list[dict[str, Any]]] | None:
    """The newest checkpoint that every run of a fleet has intact, as (agent_steps, a state for each run).

    None where there is no such checkpoint, so that the fleet starts from the beginning.
    """
    common = set.intersection(*(set(saved_agent_steps(run)) for run in runs))
    for agent_steps in sorted(common, reverse=True):
        states = [load(run, agent_steps) for run in runs]
        intact = [state for state in states if state is not None]
        if len(intact) == len(runs):
            return agent_steps, intact
    return None


def discard_after(run: RunDir, agent_steps: int) -> None:
    """Remove checkpoints later than `agent_steps`: a fleet that goes on from there will write them anew."""
    run.guard()
    for later in saved_agent_steps(run):
        if later > agent_steps:
            _path(run, later).unlink()
