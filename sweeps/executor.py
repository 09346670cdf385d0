"""What a way to run the slots of a launch has to do: on this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.processes import Process
from sweeps.record import LaunchRecord
from sweeps.spec import Resources


@dataclass(frozen=True)
class Placement:
    """How the fleets of a launch are spread over slots, and what each slot has."""

    slots: int
    visible_gpus: list[str | None] | None
    """CUDA_VISIBLE_DEVICES of each slot (None: all GPUs); None where the cluster decides."""
    tasks: list[list[int]] | None = None
    """Fleets of each slot, worked off in order; None where slots take the next fleet that nobody has."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What else the launch is to remember."""


class Executor(Protocol):
    """A way to run the slots of a launch."""

    name: str

    def place(self, resources: Resources, packs: Sequence[int]) -> Placement:
        """Decide how to run fleets, and check that it is possible. Writes nothing.

        Args:
            resources: those of the sweep, as `planned`.
            packs: of each fleet, how many train side by side in a slot (see `plan.Fleet.pack`).

        Raises:
            UserError: it is not.
        """
        ...

    def planned(self, resources: Resources) -> Resources:
        """A sweep's resources with device (cpu or cuda), threads and slots (jobs at a time) as they will be here."""
        ...

    def gpus_per_slot(self, resources: Resources) -> float:
        """GPUs that one slot holds; less than 1 where slots share them."""
        ...

    def remarks(self) -> list[str]:
        """What a person should know before something is submitted."""
        ...

    def scripts(self, launch_folder: Path, code: str, placement: Placement) -> list[str]:
        """What `submit` would give to the cluster, in order; nothing on this machine."""
        ...

    def submit(self, record: LaunchRecord) -> None:
        """Start jobs that work off the fleets of a recorded launch, and return at once."""
        ...

    def cancel(self, record: LaunchRecord, run_ids: Collection[str] | None, grace_s: float) -> list[Process]:
        """Stop a launch, or only its work on some runs, which the launch has already released.

        Returns the processes stopped by force.
        """
        ...

    def reaches(self, record: LaunchRecord) -> bool:
        """Whether a launch can be cancelled from here."""
        ...

    def describe(self, record: LaunchRecord) -> str:
        """Which jobs a launch has, on one line."""
        ...
