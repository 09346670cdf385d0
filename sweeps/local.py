"""Launching on this machine, through submitit's local executor: one submitit job for each slot."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.errors import UserError
from bench.processes import Process, kill, wait_gone
from sweeps import devices, plan, sizing, snapshot
from sweeps.executor import Placement
from sweeps.record import LaunchRecord
from sweeps.slot import run_slot
from sweeps.spec import Resources

TIMEOUT_MIN = 366 * 24 * 60
"""submitit ends a job after its timeout; a local sweep has none, and a year says so."""


class LocalExecutor:
    """Slots on this machine that outlive the shell they were started from."""

    name = "local"

    def place(self, resources: Resources, packs: Sequence[int]) -> Placement:
        """As many slots as the sweep asks for; each takes the next fleet that nobody has."""
        slots = min(resources.slots, plan.units(packs))
        return Placement(slots, visible_gpus(resources, slots))

    def planned(self, resources: Resources) -> Resources:
        """The device that this machine has, unless the sweep says which; its cores shared by the slots."""
        device, cores = devices.resolve(resources.device), cores_of_a_worker(resources)
        return resources.model_copy(
            update={
                "device": device,
                "threads": resources.threads or cores,
                "env_workers": sizing.env_workers(resources, device, cores),
            }
        )

    def gpus_per_slot(self, resources: Resources) -> float:
        """Its share of `resources.gpus`; of the first one that it sees where they are not given."""
        return min(1.0, len(set(resources.gpus or (0,))) / resources.slots)

    def remarks(self) -> list[str]:
        """Nothing."""
        return []

    def scripts(self, launch_folder: Path, code: str, placement: Placement) -> list[str]:
        """Nothing is given to anybody."""
        return []

    def submit(self, record: LaunchRecord) -> None:
        """Start the slots of a launch.

        submitit's job controllers belong to the session of the process that submits, and would end with its terminal.
        So a process with a session of its own submits them, and ends.

        Raises:
            UserError: the slots could not be started.
        """
        log = record.path / "submit.log"
        with log.open("ab") as output:
            done = subprocess.run(
                [sys.executable, "-m", "sweeps.local", str(record.path.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **snapshot.environment(record.info["code"])},
                start_new_session=True,
                check=False,
            )
        if done.returncode != 0:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise UserError(f"the slots of launch {record.name} could not be started: {last} (log: {log})")

    def cancel(self, record: LaunchRecord, run_ids: Collection[str] | None, grace_s: float) -> list[Process]:
        """Stop slots and workers: SIGTERM, so that workers checkpoint, then SIGKILL after `grace_s` seconds.

        Args:
            record: the launch.
            run_ids: only stop the workers that train these runs; the slots go on without them. None: stop everything.
            grace_s: time for a checkpoint.

        Returns the processes that had to be killed. A process that has taken over a pid is never touched.
        """
        if run_ids is not None:
            concerned = {worker for worker, fleet in record.working().items() if not set(run_ids).isdisjoint(fleet)}
            workers = [
                process
                for slot in record.slots()
                for role, process in slot.processes.items()
                if (slot.index, role) in concerned
            ]
            for worker in workers:
                worker.signal(signal.SIGTERM)
            wait_gone(workers, grace_s)
            return kill(workers)
        for slot in record.slots():
            leader = slot.processes.get("slot")
            if leader is not None and leader.signal(signal.SIGTERM):
                continue  # a slot stops its worker itself, and settles its runs
            for process in slot.processes.values():
                process.signal(signal.SIGTERM)
        wait_gone(_processes(record, "worker", "slot", "controller"), grace_s)
        killed = kill(_processes(record, "worker"))
        wait_gone(_processes(record, "slot", "controller"), 2.0)
        return killed + kill(_processes(record, "worker", "slot", "controller"))

    def reaches(self, record: LaunchRecord) -> bool:
        """Whether its slots are on this machine."""
        return bool(record.info["host"] == socket.gethostname())

    def describe(self, record: LaunchRecord) -> str:
        """`launch 20260101-120000: 2 slots on this machine (process 41, 42)`."""
        pids = [str(slot.processes["slot"].pid) for slot in record.slots() if "slot" in slot.processes]
        shown = f" (process {', '.join(pids)})" if pids else ""
        count = record.info["slots"]
        return f"launch {record.name}: {count} slot{'s' if count > 1 else ''} on {record.info['host']}{shown}"


def cores_of_a_worker(resources: Resources) -> int:
    """This machine's cores, shared by the workers of all slots; at least 1."""
    workers = resources.slots * max(resources.pack.values())
    return max(1, len(os.sched_getaffinity(0)) // workers)


def visible_gpus(resources: Resources, slots: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each slot: its share of `resources.gpus`, else what this process sees (None: all)."""
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if resources.gpus is None:
        return [inherited] * slots
    names = None if inherited is None else [name for name in inherited.split(",") if name]
    try:
        chosen = [str(gpu) if names is None else names[gpu] for gpu in resources.gpus]
    except IndexError as error:
        shown = f"{inherited} only" if names else "no GPU"
        raise UserError(f"resources.gpus is {list(resources.gpus)}, but CUDA_VISIBLE_DEVICES shows {shown}") from error
    return [chosen[slot % len(chosen)] for slot in range(slots)]


def _processes(record: LaunchRecord, *roles: str) -> list[Process]:
    """The live processes of a launch on this machine that have one of these roles; `worker-1` counts as a worker."""
    found = [
        process for slot in record.slots() for role, process in slot.processes.items() if role.split("-")[0] in roles
    ]
    return [process for process in found if process.alive]


def _submit_slots(record: LaunchRecord) -> None:
    """Submit one job for each slot and note its controller. Runs in a session of its own."""
    import submitit

    executor = submitit.LocalExecutor(folder=record.path / "submitit")
    executor.update_parameters(timeout_min=TIMEOUT_MIN)
    for index in range(record.info["slots"]):
        job = executor.submit(run_slot, str(record.path), index)
        controller = Process.of(int(job.job_id))
        record.write_slot(index, {} if controller is None else {"controller": controller}, job.job_id)


if __name__ == "__main__":
    _submit_slots(LaunchRecord(Path(sys.argv[1])))
