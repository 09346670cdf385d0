"""What converting and sampling cost, on a synthetic set in the published format of mt30. Run as a program:

    python -m bench.datasets.measure FOLDER --gigabytes 6 -o results/speed/datasets.csv

Needs about twice as much disk in FOLDER, which is removed afterwards. Each measurement has a process of its own, whose
resident memory is looked at every 20 ms: all of it, mapped files included, and the part that no file backs.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bench.datasets.sampler import RESIDENT_BYTES
from bench.tasks import task_set

TASKS = "mt30"
ROW_ENTRIES = 501
CHUNKS = 4
LENGTH = 4
"""Observations in a slice: the planning horizon of 3, and one."""
BATCH_SIZES = (256, 1024)
ROUNDS = 5
ROUND_S = 3.0
COLD, LITTLE, MAPPED = (
    f"slices, {what}" for what in ("nothing cached", "cached, 1 GiB of it mapped", "cached and mapped")
)
CASES = {COLD: RESIDENT_BYTES, LITTLE: 1 << 30, MAPPED: RESIDENT_BYTES}
"""What is measured, and how much of the set may be resident."""
COLUMNS = (
    "measured",
    "batch_size",
    "gb",
    "per_s",
    "per_cpu_s",
    "of_memory",
    "peak_resident_gb",
    "peak_anonymous_gb",
)


def make_chunks(folder: Path, gigabytes: float) -> None:
    """Random numbers for all tasks of mt30 in turn, each row of its task's sizes and padded, in 4 files."""
    from bench.datasets.chunks import write_chunk

    tasks = task_set(TASKS)
    obs_size, action_size = max(task.obs_size for task in tasks), max(task.action_size for task in tasks)
    rows = round(gigabytes * 1e9 / (ROW_ENTRIES * 4 * (obs_size + action_size + 2)) / CHUNKS)
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(CHUNKS):
        ids = random.integers(len(tasks), size=rows)
        obs = random.standard_normal((rows, ROW_ENTRIES, obs_size), np.float32)
        action = random.random((rows, ROW_ENTRIES, action_size), np.float32)
        for place, task in enumerate(tasks):
            mine = ids == place
            obs[mine, :, task.obs_size :] = 0
            action[mine, :, task.action_size :] = 0
        reward = random.random((rows, ROW_ENTRIES), np.float32)
        task_ids = np.repeat(ids[:, None], ROW_ENTRIES, 1).astype(np.int32)
        write_chunk(folder / f"chunk_{number}.pt", {"obs": obs, "action": action, "reward": reward, "task": task_ids})


class Peak:
    """The most memory that this process has resident while it is open, in GB."""

    def __init__(self) -> None:
        self.resident = self.anonymous = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            kib = {
                name: int(value.split()[0])
                for name, _, value in (line.partition(":") for line in lines)
                if "Rss" in name
            }
            self.resident = max(self.resident, sum(kib.values()) * 1024 / 1e9)
            self.anonymous = max(self.anonymous, kib["RssAnon"] * 1024 / 1e9)


def converting(chunks: Path, target: Path) -> dict[str, Any]:
    """Seconds and memory of a conversion."""
    from bench.datasets.convert import convert

    read = sum(path.stat().st_size for path in chunks.glob("*.pt")) / 1e9
    with Peak() as peak, Clock() as clock:
        convert(chunks, target)
    return {"measured": "convert (GB of chunks)", "gb": read} | clock.rates(read) | _memory(peak)


def sampling(folder: Path, batch_size: int, what: str) -> dict[str, Any]:
    """Slices a second from the disk alone, and memory.

    Args:
        what: a key of CASES.
    """
    import torch

    from bench.datasets.dataset import Dataset
    from bench.datasets.layout import ENTRIES

    numbers = folder / ENTRIES
    with numbers.open("rb") as file:
        if what == COLD:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while what != COLD and file.read(1 << 24):
            pass
    dataset = Dataset.open(folder)
    with Peak() as peak:
        sampler = dataset.sampler(batch_size, LENGTH, [1], torch.device("cpu"), resident_bytes=CASES[what])
        if what == MAPPED:
            dataset.touch()
        rates = _rates(sampler.sample, batch_size)
        sampler.close()
    about = {"measured": what, "batch_size": batch_size, "gb": numbers.stat().st_size / 1e9}
    return about | rates | _memory(peak)


def comparing(folder: Path, batch_size: int, what: str) -> float:
    """The CPU time of a batch from memory over that from disk: the median of rounds in turn."""
    import torch

    from bench.datasets.dataset import Dataset

    dataset, cpu = Dataset.open(folder), torch.device("cpu")
    samplers = [
        dataset.sampler(batch_size, LENGTH, [1], cpu, in_memory=in_memory, resident_bytes=CASES[what])
        for in_memory in (False, True)
    ]
    dataset.touch()
    ratios = []
    for _ in range(ROUNDS):
        from_disk, from_memory = (_rates(sampler.sample, batch_size)["per_cpu_s"] for sampler in samplers)
        ratios.append(from_disk / from_memory)
    return statistics.median(ratios)


class Clock:
    """Wall and CPU time while it is open. The latter tells more where other programs share the cores."""

    def __enter__(self) -> Clock:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def rates(self, amount: float) -> dict[str, float]:
        """So much in this time."""
        return {"per_s": amount / self.wall_s, "per_cpu_s": amount / self.cpu_s}


def _rates(sample: Callable[[], Any], batch_size: int) -> dict[str, float]:
    sample()
    count = 0
    with Clock() as clock:
        begin = time.perf_counter()
        while time.perf_counter() - begin < ROUND_S:
            sample()
            count += 1
    return clock.rates(count * batch_size)


def _memory(peak: Peak) -> dict[str, float]:
    return {"peak_resident_gb": peak.resident, "peak_anonymous_gb": peak.anonymous}


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(folder: Path, gigabytes: float) -> list[dict[str, Any]]:
    """All rows; `folder` is made and removed."""
    try:
        _alone(make_chunks, folder / "chunks", gigabytes)
        rows = [_alone(converting, folder / "chunks", folder / "set")]
        shutil.rmtree(folder / "chunks")
        for batch_size in BATCH_SIZES:
            for what in CASES:
                rows.append(_alone(sampling, folder / "set", batch_size, what))
                if what != COLD:
                    rows[-1]["of_memory"] = _alone(comparing, folder / "set", batch_size, what)
        return rows
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The table as CSV, numbers to three digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in row.items()}
            )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.datasets.measure")
    parser.add_argument("folder", type=Path, help="made, and removed afterwards")
    parser.add_argument("--gigabytes", type=float, default=6.0, help="of chunk files")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/speed/datasets.csv"))
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} is there already: name one to make")
    write(measure(arguments.folder, arguments.gigabytes), arguments.output)


if __name__ == "__main__":
    main()
