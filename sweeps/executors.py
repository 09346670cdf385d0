"""Which executor runs a launch: chosen by a profile when it is launched, told by its record afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.executor import Executor
from sweeps.record import LaunchRecord

PROFILE_KEY = "cluster."
"""An assignment that begins with this is for the profile: `--set cluster.time_h=4`."""


def choose(profile_name: str | None, assignments: Sequence[str] = ()) -> Executor:
    """The executor of a cluster profile; this machine where none is named.

    Args:
        profile_name: path of a profile, or the name of a shipped one.
        assignments: `key=value` put over the profile.

    Raises:
        UserError: no such profile, or a mistake in it.
    """
    from sweeps import cluster
    from sweeps.local import LocalExecutor

    profile = cluster.load(profile_name or "local", assignments)
    if profile.executor == "local":
        return LocalExecutor()
    from sweeps.slurm import SlurmExecutor

    return SlurmExecutor(profile, profile_name or "local")


def of(record: LaunchRecord) -> Executor:
    """The executor of a launch that was recorded."""
    from sweeps.local import LocalExecutor

    if not record.on_slurm:
        return LocalExecutor()
    from sweeps.cluster import Profile
    from sweeps.slurm import SlurmExecutor

    return SlurmExecutor(Profile.model_validate(record.info["profile"]), record.info["profile_source"])


def split_assignments(assignments: Sequence[str]) -> tuple[list[str], list[str]]:
    """`--set` values of the sweep file, and those of the profile without their `cluster.`."""
    own = [text.removeprefix(PROFILE_KEY) for text in assignments if text.startswith(PROFILE_KEY)]
    return [text for text in assignments if not text.startswith(PROFILE_KEY)], own
