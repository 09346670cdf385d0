"""How this process computes on a CPU: threads, memory of large tensors, and which library multiplies matrices.

None of it changes a result beyond float32 rounding. `docs/speed.md` has what each gives.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import torch

from bench.errors import UserError

MATMUL_VARIABLE = "BENCH_MATMUL"
MATMUL_CHOICES = ("auto", "mkl", "onednn")
LARGEST_RELATIVE_ERROR = 1e-6
"""Of a float32 product of 256 x 256 matrices; 4e-7 is usual, products in bfloat16 have 2e-3."""

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30


SMALLEST_FOR_ONEDNN = 384 * 384
"""Numbers in an agent's largest matrix. oneDNN is slow to start: smaller networks are faster with MKL everywhere."""


def prepare_cpu(threads: int) -> None:
    """Threads and memory of this process; `choose_matmul` is for each agent."""
    torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor.

    It gives large blocks back to the system at once, which then clears each page anew when the next tensor of the same
    size is written: 20,000 pages an update of TD-MPC2. Elsewhere than under glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEEP_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)


def choose_matmul(agent: object) -> str:
    """Choose the library for this process's float32 matrix products by the agent's size, and say which: mkl or onednn.

    On AMD's CPUs with AVX-512, MKL takes its slower kernels and oneDNN does not, which pays for large matrices. PyTorch
    sends float32 products to oneDNN only under the name of reduced precision, which some CPUs really reduce; so the
    precision is measured first, and where it is not float32's the choice is undone. The environment variable
    `BENCH_MATMUL` may say mkl or onednn.

    Raises:
        UserError: the variable says something else, or asks for oneDNN where that is not float32.
    """
    choice = os.environ.get(MATMUL_VARIABLE, "auto")
    if choice not in MATMUL_CHOICES:
        raise UserError(f"{MATMUL_VARIABLE}={choice} is unknown: valid are {', '.join(MATMUL_CHOICES)}")
    _set_onednn_precision("ieee")
    is_small = largest_matrix(agent) < SMALLEST_FOR_ONEDNN
    if choice == "mkl" or (choice == "auto" and (is_small or not _mkl_is_slow(_cpu_facts()))):
        return "mkl"
    _set_onednn_precision("bf16")
    error = matmul_error()
    if error <= LARGEST_RELATIVE_ERROR:
        return "onednn"
    _set_onednn_precision("ieee")
    if choice == "onednn":
        raise UserError(
            f"{MATMUL_VARIABLE}=onednn: its products are not float32 on this CPU (relative error {error:.0e}); leave "
            "the variable out"
        )
    return "mkl"


def largest_matrix(agent: object) -> int:
    """Numbers in the largest weight matrix (R, in, out) of one member of the agent's networks; 0 without any."""
    networks = [part for part in vars(agent).values() if isinstance(part, torch.nn.Module)]
    weights = [p for network in networks for p in network.parameters() if p.dim() == 3]
    return max((p.shape[1] * p.shape[2] for p in weights), default=0)


def matmul_error() -> float:
    """Relative error of a float32 matrix product as this process computes it now."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float((torch.bmm(a, b).double() - exact).norm() / exact.norm())


def _set_onednn_precision(precision: str) -> None:
    onednn: Any = torch.backends.mkldnn  # built at run time: a type checker sees no attributes
    onednn.matmul.fp32_precision = precision


def _cpu_facts() -> str:
    """/proc/cpuinfo, empty where there is none."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _mkl_is_slow(facts: str) -> bool:
    return "AuthenticAMD" in facts and "avx512f" in facts
