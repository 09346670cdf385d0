"""The launches of a sweep, and what Slurm says of the jobs of those that have any."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.errors import UserError
from sweeps import slurm_state
from sweeps.record import LaunchRecord
from sweeps.slurm_state import UNKNOWN, JobState, SlurmSilent

ASK_SLURM_EVERY_S = 30.0
"""Slurm's controller serves everybody: it is asked once for a whole sweep, and never more often than this."""


def records(sweep_folder: Path) -> list[LaunchRecord]:
    """Every launch of a sweep, oldest first.

    Raises:
        UserError: a launch's file is damaged.
    """
    found = []
    for path in sorted((sweep_folder / ".launch").glob("*/launch.json")):
        try:
            found.append(LaunchRecord(path.parent))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): remove {path.parent}") from error
    return found


def live(sweep_folder: Path) -> list[LaunchRecord]:
    """The launches whose slots still work.

    Raises:
        UserError: a launch's file is damaged, or there are launches on Slurm and it does not answer.
    """
    return [record for record in with_jobs(records(sweep_folder)) if record.alive]


def with_jobs(launches: Sequence[LaunchRecord]) -> Sequence[LaunchRecord]:
    """The same launches, with the present states of their Slurm jobs: Slurm is asked once for all of them."""
    on_slurm = [record for record in launches if record.on_slurm]
    if on_slurm:
        found = slurm_state.states(*on_slurm)
        for record in on_slurm:
            record.job_states = {job: found[job] for job in record.jobs().values()}
    return launches


class Launches:
    """The launches of a sweep, read anew at each look, with what Slurm says about their jobs.

    Attributes:
        silence: why Slurm gave no answer; None where it did, or was not asked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.silence: str | None = None
        self._asked_at = float("-inf")
        self._known: dict[str, Mapping[str, JobState]] = {}

    def read(self) -> list[LaunchRecord]:
        """Every launch, oldest first."""
        launches = records(self.folder)
        if not any(launched.on_slurm for launched in launches):
            return launches
        if time.monotonic() - self._asked_at >= ASK_SLURM_EVERY_S:
            self._asked_at = time.monotonic()
            try:
                with_jobs(launches)
                self.silence = None
                self._known = {launched.name: launched.job_states for launched in launches}
            except SlurmSilent as silent:  # what was known before still holds
                self.silence = str(silent)
        for launched in launches:
            unknown = dict.fromkeys(launched.jobs().values(), JobState(UNKNOWN, "")) if launched.on_slurm else {}
            launched.job_states = unknown | dict(self._known.get(launched.name, {}))
        return launches
