import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from agents.nn import MLP
from bench import cpu
from bench.errors import UserError

AMD, INTEL = "vendor_id : AuthenticAMD\nflags : avx2 avx512f", "vendor_id : GenuineIntel\nflags : avx2 avx512f amx_bf16"


def agent_of(width):
    """Something with a network of this width, 3 runs."""
    return SimpleNamespace(model=MLP(3, [4, width, width, 2]), seed_agent_steps=1)


@pytest.fixture(autouse=True)
def _as_before():
    yield
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"


@pytest.mark.parametrize(
    ("wanted", "facts", "chosen"),
    [
        ("auto", AMD, "onednn"),
        ("auto", INTEL, "mkl"),
        ("auto", "vendor_id : AuthenticAMD\nflags : avx2", "mkl"),
        ("auto", "", "mkl"),
        ("mkl", AMD, "mkl"),
    ],
)
def test_the_library_by_cpu(monkeypatch, wanted, facts, chosen):
    monkeypatch.setenv("BENCH_MATMUL", wanted)
    monkeypatch.setattr(cpu, "_cpu_facts", lambda: facts)
    monkeypatch.setattr(cpu, "matmul_error", lambda: 4e-7)
    assert cpu.choose_matmul(agent_of(512)) == chosen
    assert torch.backends.mkldnn.matmul.fp32_precision == ("bf16" if chosen == "onednn" else "ieee")


def test_small_networks_stay_with_mkl(monkeypatch):
    monkeypatch.delenv("BENCH_MATMUL", raising=False)
    monkeypatch.setattr(cpu, "_cpu_facts", lambda: AMD)
    monkeypatch.setattr(cpu, "matmul_error", lambda: 4e-7)
    assert [cpu.choose_matmul(agent_of(width)) for width in (128, 512, 128)] == ["mkl", "onednn", "mkl"]
    assert cpu.largest_matrix(agent_of(128)) == 128 * 128
    assert cpu.largest_matrix(SimpleNamespace()) == 0


def test_products_that_are_not_float32_are_refused(monkeypatch):
    monkeypatch.setattr(cpu, "_cpu_facts", lambda: AMD)
    monkeypatch.setattr(cpu, "matmul_error", lambda: 2e-3)
    monkeypatch.setenv("BENCH_MATMUL", "auto")
    assert cpu.choose_matmul(agent_of(512)) == "mkl"
    monkeypatch.setenv("BENCH_MATMUL", "onednn")
    with pytest.raises(UserError, match="not float32 on this CPU"):
        cpu.choose_matmul(agent_of(512))
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    monkeypatch.setenv("BENCH_MATMUL", "fast")
    with pytest.raises(UserError, match="valid are auto, mkl, onednn"):
        cpu.choose_matmul(agent_of(512))


def test_whatever_is_chosen_here_is_float32(monkeypatch):
    monkeypatch.delenv("BENCH_MATMUL", raising=False)
    cpu.choose_matmul(agent_of(512))
    assert cpu.matmul_error() < cpu.LARGEST_RELATIVE_ERROR


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept_for_the_next_tensor():
    """In a process of its own: afterwards large tensors, freed and made anew, cost no new pages."""
    code = """
import resource, torch
from bench.cpu import keep_freed_memory
torch.set_num_threads(1)
def work():
    small = torch.ones(5_000_000)
    large = [torch.ones(10_000_000) for _ in range(3)]
def faults():
    for _ in range(5):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
keep_freed_memory()
print(given_back, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 10
