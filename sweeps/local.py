"""Launching on this machine, through submitit's local executor: one submitit job for each slot."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from bench.errors import UserError
from bench.processes import Process, kill, wait_gone
from sweeps.record import LaunchRecord
from sweeps.slot import run_slot

TIMEOUT_MIN = 366 * 24 * 60
"""submitit ends a job after its timeout; a local sweep has none, and a year says so."""


class LocalExecutor:
    """Slots on this machine that outlive the shell they were started from."""

    name = "local"

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

    def describe(self, record: LaunchRecord) -> str:
        """`launch 20260101-120000: 2 slots on this machine (process 41, 42)`."""
        pids = [str(slot.processes["slot"].pid) for slot in record.slots() if "slot" in slot.processes]
        shown = f" (process {', '.join(pids)})" if pids else ""
        count = record.info["slots"]
        return f"launch {record.name}: {count} slot{'s' if count > 1 else ''} on {record.info['host']}{shown}"


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
