"""The environment of Slurm's commands: what a profile decides is not decided by variables of the shell.

sbatch and srun take options from variables (SBATCH_PARTITION, SRUN_EXPORT_ENV …), as do squeue and sacct. The shell of
a job has those of its own job (SLURM_MEM_PER_CPU, SLURM_CPU_BIND, PMI_RANK …), which would bind what it submits.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

PREFIXES = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "PMI", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")
KEPT = frozenset({"SLURM_CONF", "SLURM_CLUSTERS"})
"""Which cluster is meant is the shell's to say."""

MOST_NAMED = 6


def ignored(environment: Mapping[str, str] | None = None) -> list[str]:
    """Names of the variables that Slurm's commands are not given."""
    names = os.environ if environment is None else environment
    return sorted(name for name in names if name.startswith(PREFIXES) and name not in KEPT)


def clean() -> dict[str, str]:
    """This process's environment without them."""
    gone = set(ignored())
    return {name: value for name, value in os.environ.items() if name not in gone}


@contextlib.contextmanager
def cleaned() -> Iterator[None]:
    """This process without them for a while: for submitit, whose sbatch inherits its environment."""
    gone = {name: os.environ.pop(name) for name in ignored()}
    try:
        yield
    finally:
        os.environ.update(gone)


def remark(environment: Mapping[str, str] | None = None) -> str | None:
    """What a launch says of variables that it ignores; None where there are none."""
    found = os.environ if environment is None else environment
    options = [name for name in ignored(found) if not name.startswith(("SLURM_", "PMI")) or "SLURM_JOB_ID" not in found]
    parts = [f"{name}={found[name]}" for name in options[:MOST_NAMED]]
    parts += [f"{len(options) - MOST_NAMED} more"] if len(options) > MOST_NAMED else []
    parts += [f"the variables of job {found['SLURM_JOB_ID']}"] if "SLURM_JOB_ID" in found else []
    return f"ignored from this shell, the profile decides: {', '.join(parts)}" if parts else None
