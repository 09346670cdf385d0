"""How many runs train as one fleet, and how many fleets side by side in one slot: as the sweep file asks, and no more
than the GPU's memory holds. What is not known is said, and then nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.devices import CONTEXT_GB
from bench.runspec import RunSpec
from sweeps import devices
from sweeps.measured import Measurement, sources
from sweeps.spec import EVERY, Resources

USABLE_SHARE = 0.9
"""Of a GPU's memory; the rest is lost to fragments."""


MOST_ENV_WORKERS = 16
"""Of one fleet, where nobody says: each takes some hundred MB."""


def env_workers(resources: Resources, device: str, cores: int) -> int:
    """Environment processes of one fleet that has so many cores: as asked, else see `Resources.env_workers`."""
    if resources.env_workers is not None:
        return resources.env_workers
    return max(1, min(cores - 1, MOST_ENV_WORKERS)) if device == "cuda" else 1


@dataclass(frozen=True)
class Size:
    """How the runs of one agent variant are grouped."""

    fleet: int
    """Most runs of a fleet."""
    pack: int
    """Fleets that a slot trains side by side."""
    why: str
    """One line for people: what decided it."""


@dataclass(frozen=True)
class Gpu:
    """The GPU that fleets must fit in."""

    memory_gb: float
    source: str


def gpu(resources: Resources) -> Gpu | None:
    """The GPU's memory by the sweep file, else the smallest of this machine's; None where neither says."""
    if resources.gpu_memory_gb is not None:
        return Gpu(resources.gpu_memory_gb, "sweep file")
    sizes = devices.cuda_memory_gb()
    chosen = sizes if resources.gpus is None else [sizes[index] for index in resources.gpus if index < len(sizes)]
    return Gpu(min(chosen), "this machine") if chosen else None


@dataclass(frozen=True)
class _Memory:
    """Peak GPU memory of a fleet, by its number of runs."""

    measured: dict[int, float]
    source: str

    def peak_gb(self, runs: int) -> float:
        """As measured; between measurements that of the next larger fleet, beyond them in proportion: never too little,
        since part of it does not grow with the runs."""
        larger = [size for size in self.measured if size >= runs]
        if larger:
            return self.measured[min(larger)]
        largest = max(self.measured)
        return self.measured[largest] * runs / largest


def _memory(spec: RunSpec, resources: Resources, measured: Sequence[Measurement]) -> _Memory | None:
    given = resources.run_gpu_gb.get(spec.agent, resources.run_gpu_gb.get(EVERY))
    if given is not None:
        return _Memory({1: given}, "sweep file")
    fitting = [m for m in measured if m.peak_gpu_gb and m.device == "cuda" and m.is_of(spec)]
    peaks: dict[int, float] = {}
    for m in fitting:
        peaks[m.fleet] = max(peaks.get(m.fleet, 0.0), m.peak_gpu_gb or 0.0)
    return _Memory(peaks, sources(fitting)) if peaks else None


def size(
    spec: RunSpec,
    count: int,
    max_fleet: int | None,
    resources: Resources,
    device: str,
    card: Gpu | None,
    measured: Sequence[Measurement],
) -> Size:
    """How to group runs that may train in lockstep.

    Args:
        spec: one of them.
        count: how many there are.
        max_fleet: the agent's; None for no limit.
        resources: what the sweep file asks for.
        device: cpu or cuda.
        card: the GPU, where it is known.
        measured: what is known of the agent's memory.
    """
    asked = resources.fleet.get(spec.agent, resources.fleet.get(EVERY, 1))
    pack = resources.pack.get(spec.agent, resources.pack.get(EVERY, 1) if max_fleet == 1 else 1)
    most = min(count, max_fleet or count)
    wanted = min(most, -(-count // resources.slots)) if asked == "auto" else min(most, asked)
    if device != "cuda":
        if asked == "auto":
            return Size(1, pack, "fleets of 1: on a CPU a fleet gains little")
        return Size(wanted, pack, "as the sweep file asks")
    memory = _memory(spec, resources, measured)
    if memory is None or card is None:
        missing = "its GPU memory was never measured" if memory is None else "the GPU's memory is not known"
        key = "run_gpu_gb" if memory is None else "gpu_memory_gb"
        how = "fleets of 1" if asked == "auto" else "as the sweep file asks, unchecked"
        return Size(1 if asked == "auto" else wanted, pack, f"{how}: {missing} (resources.{key})")
    return _fit(wanted, pack, memory, card)


def _fit(wanted: int, pack: int, memory: _Memory, card: Gpu) -> Size:
    """The largest fleet, and then the largest pack, that the GPU holds."""

    def holds(runs: int, processes: int) -> bool:
        return processes * (memory.peak_gb(runs) + CONTEXT_GB) <= USABLE_SHARE * card.memory_gb

    runs = next((runs for runs in range(wanted, 0, -1) if holds(runs, pack)), 1)
    processes = next((processes for processes in range(pack, 0, -1) if holds(runs, processes)), 1)
    need = f"{processes * (memory.peak_gb(runs) + CONTEXT_GB):.1f} of {card.memory_gb:.1f} GB"
    why = f"{need} ({memory.source}; GPU: {card.source})"
    if not holds(runs, processes):
        return Size(runs, processes, f"does not fit: {why}")
    return Size(runs, processes, f"fits: {why}" if (runs, processes) == (wanted, pack) else f"cut to fit: {why}")
