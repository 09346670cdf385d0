"""A cluster profile: where and with what a sweep's jobs run. Sweep files name no cluster, profiles no task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from bench.errors import UserError
from sweeps import document
from sweeps.spec import Count, Part, check, number, parse_assignment

SHIPPED = Path(__file__).with_name("profiles")
"""Profiles that come with the suite, called by their name."""


OURS = frozenset(
    {
        *("array", "dependency", "error", "no-requeue", "open-mode", "output", "requeue", "signal", "wrap"),
        *("parsable", "quiet", "wait", "test-only", "clusters", "help", "usage", "version"),
    }
)
"""Options of sbatch that no profile sets: those of the launch itself, and those that change what sbatch answers."""


class Gpus(Part):
    """GPUs of one job."""

    count: Annotated[int, BeforeValidator(number), Field(ge=0)] = 0
    type: str | None = None
    """As the cluster names it, such as a100; any where it is not given."""
    memory_gb: Annotated[float, BeforeValidator(number), Field(gt=0)] | None = None
    """Of one GPU, which fleets and packs must fit in; the sweep file's `gpu_memory_gb` where it is not given."""


class Profile(Part):
    """The keys of a cluster profile. What is not given is left to the cluster's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    executor: Literal["slurm", "local"] = "slurm"
    """local: this machine, with the `resources` of the sweep file alone."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: Gpus = Gpus()
    cpus: Count = 1
    """CPU cores of one job."""
    memory_gb: Annotated[float, BeforeValidator(number), Field(gt=0)] | None = None
    time_h: Annotated[float, BeforeValidator(number), Field(gt=0)] = 24.0
    """Time limit of one job, rounded up to whole minutes; a job that reaches it checkpoints and queues again."""
    parallel: Count = 64
    """Most jobs of one launch that run at a time, over all its arrays."""
    signal_s: Annotated[int, BeforeValidator(number), Field(ge=10)] = 120
    """Seconds before the time limit at which a job checkpoints and queues again."""
    max_attempts: Count = 50
    """Starts of one job, the first included; after that its unfinished runs have failed."""
    sbatch: dict[str, str | bool] = Field(default_factory=dict)
    """More options of sbatch: `exclude: node7` is --exclude=node7, `exclusive: true` is --exclusive."""
    setup: tuple[str, ...] = ()
    """Shell lines before the work begins: modules, environment variables."""
    python: str | None = None
    """Command that starts Python in the job, such as `apptainer exec image.sif python`; this Python where not given."""
    scratch: str | None = None
    """Folder of the node for temporary files, given to the job as TMPDIR; environment variables are filled in there."""

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, value: dict[str, str | bool]) -> dict[str, str | bool]:
        for key in value:
            if key in OURS:
                cure = "; export SLURM_CLUSTERS instead, which every command follows" if key == "clusters" else ""
                raise ValueError(f"sbatch.{key} is the launch's own, as are {', '.join(sorted(OURS))}{cure}")
        return value

    @model_validator(mode="after")
    def _signal_within_the_limit(self) -> Profile:
        if self.signal_s >= 60 * self.time_min:
            raise ValueError(
                f"signal_s must be less than the time limit: {self.signal_s} s before the end of {self.time_min} min "
                "is before the beginning; lower signal_s or raise time_h"
            )
        return self

    @property
    def time_min(self) -> int:
        """The time limit in whole minutes."""
        return max(1, -int(-self.time_h * 60 // 1))

    @property
    def gres(self) -> str | None:
        """`gpu:a100:2`, `gpu:2`; None without GPUs."""
        if not self.gpus.count:
            return None
        return ":".join(["gpu", *([self.gpus.type] if self.gpus.type else []), str(self.gpus.count)])


def load(name: str, assignments: Sequence[str] = ()) -> Profile:
    """Read and check a profile.

    Args:
        name: path of a YAML file, or the name of a profile that comes with the suite (`local`).
        assignments: `key=value` put over the file: `time_h=4`, `gpus.count=2`.

    Raises:
        UserError: no such file, or one line with file, line, key and the valid choices.
    """
    path = Path(name)
    if not path.suffix and not path.exists():
        path = SHIPPED / f"{name}.yaml"
        if not path.exists():
            known = ", ".join(sorted(found.stem for found in SHIPPED.glob("*.yaml")))
            raise UserError(f"--cluster {name}: give the path of a profile, or the name of a shipped one: {known}")
    doc = document.load(path, "profile", "sweeps/profiles/slurm-example.yaml", "partition, time_h")
    for assignment in assignments:
        _assign(doc.data, assignment)
    return check(doc, (), Profile, doc.data)


def _assign(data: dict[str, Any], assignment: str) -> None:
    parts, value = parse_assignment(assignment, "time_h=4 or gpus.count=2")
    target = data
    for part in parts[:-1]:
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    target[parts[-1]] = value
