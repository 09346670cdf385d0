"""The device of a process that learns: threads on a CPU, its share of the memory on a GPU. Loads torch late."""

from __future__ import annotations

from bench.errors import UserError

CONTEXT_GB = 0.6
"""What each process takes on a GPU besides its tensors: CUDA's context and the kernels."""


def prepare(device: str, threads: int, pack: int = 1) -> None:
    """Set up this process.

    Args:
        device: as torch names it.
        threads: of a learner on a CPU.
        pack: processes that share the GPU, this one included. Each then runs out of memory by itself where it would
            take more than its share, and takes none from the others.

    Raises:
        UserError: the device does not exist here, or is too small for so many processes.
    """
    import torch

    from bench.cpu import prepare_cpu

    prepare_cpu(threads)
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError(f"device {device} is not here: use --device cpu, or see `bench doctor`")
        if pack > 1:
            total_gb = torch.cuda.get_device_properties(device).total_memory / 1e9
            torch.cuda.set_per_process_memory_fraction(memory_share(total_gb, pack), device)
    elif device != "cpu":
        raise UserError(f"unknown device '{device}': valid are cpu, cuda, cuda:0, cuda:1, …")


def memory_share(total_gb: float, pack: int) -> float:
    """The share of a GPU's memory that the tensors of one of `pack` processes may take, so that all fit with their
    contexts.

    Raises:
        UserError: there is no room for tensors beside so many contexts.
    """
    share = 1 / pack - CONTEXT_GB / total_gb
    if share <= 0:
        raise UserError(f"{pack} processes do not fit side by side on a GPU of {total_gb:.1f} GB: lower resources.pack")
    return share
