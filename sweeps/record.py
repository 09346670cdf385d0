"""What a launch leaves behind, and how its slots share the work: plain files below `results/<sweep>/.launch/`.

.launch/lock                 held while a launch decides what to start
.launch/<time>/launch.json   what was launched: fleets of run ids, worker command, host, slots
              /sweep.yaml    copy of the sweep file
              /slots/        a file for each slot: its processes; its age is the slot's heartbeat
              /claims/       a file for each fleet that a slot took
              /released.json runs that the launch no longer owns (cancelled, or taken over by a retry)
              /jobs.json     on Slurm: which job has which slots
              /logs/         output of the workers, a pair of files for each fleet
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import atomic
from bench.lock import locked
from bench.processes import Process
from bench.run_progress import STALE_AFTER_S
from bench.rundir import RunDir, now
from sweeps.slurm_state import JobState


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
        self.job_states: Mapping[str, JobState] = {}
        self.info: dict[str, Any] = json.loads((path / "launch.json").read_text())

    @classmethod
    def create(cls, sweep_folder: Path, sweep_file: Path, info: Mapping[str, Any]) -> LaunchRecord:
        """Record a launch; its name is the time. `info` holds fleets, worker, slots and what else is to be known."""
        root = sweep_folder / ".launch"
        while True:
            path = root / new_name()
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

    @property
    def on_slurm(self) -> bool:
        """Whether its slots are jobs of a cluster."""
        return bool(self.info["executor"] == "slurm")

    @property
    def tasks(self) -> list[list[int]]:
        """The fleets of each slot, where slots do not simply take the next one."""
        return self.info.get("tasks") or []

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

    def write_slot(
        self, index: int, processes: Mapping[str, Process], job_id: str | None = None, attempt: int | None = None
    ) -> None:
        """Say which processes a slot has, its job, and which attempt of the job; what is not named stays as it was."""
        path = self._slot_file(index)
        with locked(path.with_suffix(".lock")):
            value = json.loads(path.read_text()) if path.exists() else {"index": index, "job_id": None, "processes": {}}
            value["host"] = socket.gethostname()
            value["job_id"] = job_id or value["job_id"]
            value["attempt"] = attempt or value.get("attempt", 1)
            value["processes"] |= {role: process.to_json() for role, process in processes.items()}
            atomic.write_json(path, value)

    def attempt(self, index: int) -> int:
        """The newest attempt of a slot's job that has begun; 0 before the first."""
        path = self._slot_file(index)
        return int(json.loads(path.read_text())["attempt"]) if path.exists() else 0

    def beat(self, index: int) -> None:
        """Say that a slot lives, to machines that cannot see its process."""
        self._slot_file(index).touch()

    def _slot_file(self, index: int) -> Path:
        return self.path / "slots" / f"slot-{index:03d}.json"

    @property
    def alive(self) -> bool:
        """Whether any slot still takes work; on Slurm, whether any of its jobs is queued (see `launches.with_jobs`)."""
        if self.on_slurm:
            return any(state.queued for state in self.job_states.values())
        return any(slot.alive for slot in self.slots())

    # Jobs of a cluster

    def jobs(self) -> dict[int, str]:
        """Slurm's job of each slot: slot -> `41`, or `41_7` for a task of an array. Empty on this machine."""
        path = self.path / "jobs.json"
        if not path.exists():
            return {}
        found = {}
        for part in json.loads(path.read_text()):
            for task in range(part["count"]):
                found[part["first"] + task] = f"{part['job_id']}_{task}" if part["array"] else part["job_id"]
        return found

    def add_jobs(self, job_id: str, first: int, count: int, array: bool) -> None:
        """Note that a job, or an array of as many tasks, has the slots from `first` on."""
        path = self.path / "jobs.json"
        parts = json.loads(path.read_text()) if path.exists() else []
        atomic.write_json(path, [*parts, {"job_id": job_id, "first": first, "count": count, "array": array}])

    def forget_jobs(self) -> None:
        """None of its jobs is queued any more, and none has begun."""
        (self.path / "jobs.json").unlink(missing_ok=True)

    def is_queued(self, job_id: str) -> bool:
        """Whether a job waits or runs, as Slurm said when it was asked last (see `launches.with_jobs`)."""
        return job_id in self.job_states and self.job_states[job_id].queued

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
                self.claim(index, slot, owner, role)
                return index
        return None

    def claim(self, index: int, slot: int, owner: Process, role: str = "worker") -> None:
        """Note that a slot has a fleet, and which of its workers will train it."""
        who = {"slot": slot, "role": role, "owner": owner.to_json()}
        atomic.write_json(self._claim_file(index), {**who, "claimed": now(), "ended": None, "exit_code": None})

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

    def runs(self, fleet: int, released: Collection[str] | None = None) -> list[RunDir]:
        """The runs of a fleet that are still this launch's; `released` where it was read before."""
        gone = self.released() if released is None else released
        return [RunDir(self.sweep_folder / run_id) for run_id in self.fleets[fleet] if run_id not in gone]

    def release(self, run_ids: Iterable[str]) -> None:
        """Give up runs: they are not started, and what becomes of them is not this launch's to say."""
        with locked(self.path / "lock"):
            atomic.write_json(self.path / "released.json", sorted(self.released() | set(run_ids)))

    def take_back(self, run_ids: Collection[str]) -> None:
        """Own runs again that were released for something that did not come about."""
        with locked(self.path / "lock"):
            atomic.write_json(self.path / "released.json", sorted(self.released() - set(run_ids)))

    def owned(self) -> set[str]:
        """Runs that this launch is training or will train; none once its slots are gone."""
        if not self.alive:
            return set()
        fleets: Iterable[int] = range(len(self.fleets))
        if self.on_slurm:
            fleets = [fleet for slot, job in self.jobs().items() if self.is_queued(job) for fleet in self.tasks[slot]]
        return {run_id for index in fleets if self.is_open(index) for run_id in self.fleets[index]} - self.released()

    def is_open(self, index: int) -> bool:
        """Whether a fleet waits or trains."""
        claim = self._claim(index)
        return claim is None or claim["ended"] is None

    def unreleased_fleets(self) -> set[int]:
        """Fleets that wait or train, with a run that the launch still owns."""
        released = self.released()
        return {
            index for index, runs in enumerate(self.fleets) if self.is_open(index) and not released.issuperset(runs)
        }


def new_name() -> str:
    """The name of a launch that is made now: the time in UTC."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
