"""What a launch leaves behind, and how its slots share the work: plain files below `results/<sweep>/.launch/`.

.launch/lock                 held while a launch decides what to start
.launch/<time>/launch.json   what was launched: fleets of run ids, worker command, host, slots
              /sweep.yaml    copy of the sweep file
              /slots/        a file for each slot: its processes; its age is the slot's heartbeat
              /claims/       a file for each fleet that a slot took
              /released.json runs that the launch no longer owns (cancelled, or taken over by a retry)
              /logs/         output of the workers, a pair of files for each fleet
"""

from __future__ import annotations

import fcntl
import json
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench import atomic
from bench.errors import UserError
from bench.processes import Process
from bench.rundir import STALE_AFTER_S, now


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel lets it go if the process dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Slot:
    """The processes of one slot of a launch."""

    index: int
    job_id: str | None
    host: str
    age_s: float
    """Since the slot last said that it lives."""
    processes: Mapping[str, Process]
    """`controller` (the executor's), `slot`, `worker` (`worker-1`, … beside it): those that have been started."""

    @property
    def alive(self) -> bool:
        """Whether it still takes work; on another machine, by the age of its file."""
        if self.host != socket.gethostname():
            return self.age_s < STALE_AFTER_S
        return any(self.processes[role].alive for role in ("controller", "slot") if role in self.processes)


class LaunchRecord:
    """One launch, as its folder tells."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: dict[str, Any] = json.loads((path / "launch.json").read_text())

    @classmethod
    def create(cls, sweep_folder: Path, sweep_file: Path, info: Mapping[str, Any]) -> LaunchRecord:
        """Record a launch; its name is the time. `info` holds fleets, worker, slots and what else is to be known."""
        root = sweep_folder / ".launch"
        while True:
            path = root / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                time.sleep(0.2)
        for folder in ("slots", "claims", "logs"):
            (path / folder).mkdir()
        atomic.write_text(path / "sweep.yaml", sweep_file.read_text(encoding="utf-8"))
        atomic.write_json(path / "launch.json", {"created": now(), "host": socket.gethostname(), **info})
        return cls(path)

    @property
    def name(self) -> str:
        """The time of the launch."""
        return self.path.name

    @property
    def sweep_folder(self) -> Path:
        """Where the runs lie."""
        return self.path.parents[1]

    @property
    def fleets(self) -> list[list[str]]:
        """Run ids of each fleet, in the order in which slots take them."""
        return [fleet["runs"] for fleet in self.info["fleets"]]

    @property
    def packs(self) -> list[int]:
        """How many workers of one slot train side by side, for each fleet."""
        return [fleet.get("pack", 1) for fleet in self.info["fleets"]]

    # Slots

    def slots(self) -> list[Slot]:
        """Every slot that was submitted."""
        found = []
        for path in sorted((self.path / "slots").glob("*.json")):
            value = json.loads(path.read_text())
            processes = {role: Process.from_json(process) for role, process in value["processes"].items()}
            age_s = time.time() - path.stat().st_mtime
            found.append(Slot(value["index"], value["job_id"], value["host"], age_s, processes))
        return found

    def write_slot(self, index: int, processes: Mapping[str, Process], job_id: str | None = None) -> None:
        """Say which processes a slot has, and its job; what is not named stays as it was."""
        path = self._slot_file(index)
        with locked(self.path / "lock"):
            value = json.loads(path.read_text()) if path.exists() else {"index": index, "job_id": None, "processes": {}}
            value["host"] = socket.gethostname()
            value["job_id"] = job_id or value["job_id"]
            value["processes"] |= {role: process.to_json() for role, process in processes.items()}
            atomic.write_json(path, value)

    def beat(self, index: int) -> None:
        """Say that a slot lives, to machines that cannot see its process."""
        self._slot_file(index).touch()

    def _slot_file(self, index: int) -> Path:
        return self.path / "slots" / f"slot-{index:03d}.json"

    @property
    def alive(self) -> bool:
        """Whether any slot still takes work."""
        return any(slot.alive for slot in self.slots())

    # Claims

    def claim_next(self, slot: int, owner: Process, pack: int = 1, role: str = "worker") -> int | None:
        """Take the first fleet that nobody has, or whose owner died; None where there is none left.

        Args:
            slot: who takes it.
            owner: the slot's process.
            pack: only fleets of which so many train side by side in a slot.
            role: which of the slot's workers will train it.
        """
        with locked(self.path / "lock"):
            released, packs = self.released(), self.packs
            for index, run_ids in enumerate(self.fleets):
                if packs[index] != pack or released.issuperset(run_ids) or not self._free(index):
                    continue
                who = {"slot": slot, "role": role, "owner": owner.to_json()}
                claim = {**who, "claimed": now(), "ended": None, "exit_code": None}
                atomic.write_json(self._claim_file(index), claim)
                return index
        return None

    def end_claim(self, index: int, exit_code: int | None) -> None:
        """The fleet's worker ended."""
        claim = self._claim(index) or {}
        atomic.write_json(self._claim_file(index), claim | {"ended": now(), "exit_code": exit_code})

    def _free(self, index: int) -> bool:
        claim = self._claim(index)
        if claim is None:
            return True
        if claim["ended"] is not None:
            return False
        owner = Process.from_json(claim["owner"])
        if owner.is_here:
            return not owner.alive
        return all(slot.age_s > STALE_AFTER_S for slot in self.slots() if slot.index == claim["slot"])

    def _claim(self, index: int) -> dict[str, Any] | None:
        path = self._claim_file(index)
        if not path.exists():
            return None
        value: dict[str, Any] = json.loads(path.read_text())
        return value

    def _claim_file(self, index: int) -> Path:
        return self.path / "claims" / f"fleet-{index:04d}.json"

    def working(self) -> dict[tuple[int, str], list[str]]:
        """Runs of the fleet that each worker has now, by slot and role (see `Slot.processes`)."""
        claims = {index: self._claim(index) for index in range(len(self.fleets))}
        return {
            (claim["slot"], claim["role"]): self.fleets[index]
            for index, claim in claims.items()
            if claim and not claim["ended"]
        }

    def log(self, index: int, stream: str) -> Path:
        """Where the worker of a fleet writes its output; `stream` is out or err."""
        return self.path / "logs" / f"fleet-{index:04d}.{stream}"

    # Ownership of runs

    def released(self) -> set[str]:
        """Runs that this launch no longer owns."""
        path = self.path / "released.json"
        return set(json.loads(path.read_text())) if path.exists() else set()

    def release(self, run_ids: Iterable[str]) -> None:
        """Give up runs: they are not started, and what becomes of them is not this launch's to say."""
        with locked(self.path / "lock"):
            atomic.write_json(self.path / "released.json", sorted(self.released() | set(run_ids)))

    def owned(self) -> set[str]:
        """Runs that this launch is training or will train; none once its slots are gone."""
        if not self.alive:
            return set()
        open_fleets = [
            run_ids
            for index, run_ids in enumerate(self.fleets)
            if (claim := self._claim(index)) is None or claim["ended"] is None
        ]
        return {run_id for run_ids in open_fleets for run_id in run_ids} - self.released()


def records(sweep_folder: Path) -> list[LaunchRecord]:
    """Every launch of a sweep, oldest first.

    Raises:
        UserError: a launch's file is damaged.
    """
    found = []
    for path in sorted((sweep_folder / ".launch").glob("*/launch.json")):
        try:
            found.append(LaunchRecord(path.parent))
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged ({error}): remove {path.parent}") from error
    return found


def live(sweep_folder: Path) -> list[LaunchRecord]:
    """The launches whose slots still work."""
    return [record for record in records(sweep_folder) if record.alive]


def matches(run_id: str, patterns: Sequence[str]) -> bool:
    """Whether a run is meant: each pattern is a glob over `agent`, `task`, `seed<k>`, or these joined by `/`."""
    agent, task, leaf = run_id.split("/")
    seed = leaf.split("-")[0]
    names = (agent, task, seed, f"{agent}/{task}", f"{task}/{seed}", f"{agent}/{task}/{seed}", leaf, run_id)
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
