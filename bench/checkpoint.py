"""Checkpoints of one run: written aside and renamed, the last two kept, a damaged one passed over.

Each is named by where the run's clock stood: agent steps, or updates of a run that learns offline.
"""

from __future__ import annotations

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


def _path(run: RunDir, at: int) -> Path:
    return run.checkpoints / f"{at:010d}.pt"


def saved(run: RunDir) -> list[int]:
    """Where on the run's clock checkpoints lie in its directory, ascending. Unfinished files do not count."""
    return run.saved()


def save(run: RunDir, at: int, state: dict[str, Any]) -> None:
    """Write one checkpoint, then drop all but the last two.

    Args:
        run: its directory.
        at: where its clock stands.
        state: what it needs to go on.

    Raises:
        OSError: the disk is full; the checkpoints from before are untouched.
    """
    run.checkpoints.mkdir(exist_ok=True)
    with atomic.writing(_path(run, at), run.guard) as file:
        torch.save({"format_version": FORMAT_VERSION, "at": at, **state}, file)
    run.guard()
    for old in saved(run)[:-KEEP]:
        _path(run, old).unlink()


def load(run: RunDir, at: int) -> dict[str, Any] | None:
    """The checkpoint at `at`; None, with a warning, where the file is damaged.

    Raises:
        UserError: written by another version of the format.
    """
    path = _path(run, at)
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
    """The newest checkpoint that every run of a fleet has intact, as (where, a state for each run).

    None where there is no such checkpoint, so that the fleet starts from the beginning.
    """
    common = set.intersection(*(set(saved(run)) for run in runs))
    for at in sorted(common, reverse=True):
        states = [load(run, at) for run in runs]
        intact = [state for state in states if state is not None]
        if len(intact) == len(runs):
            return at, intact
    return None


def discard_after(run: RunDir, at: int) -> None:
    """Remove checkpoints later than `at`: a fleet that goes on from there will write them anew."""
    run.guard()
    for later in saved(run):
        if later > at:
            _path(run, later).unlink()
