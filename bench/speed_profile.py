"""Where the time of a call goes, by kinds of operations: from torch's profiler."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

REPLAY = "replay sample"
"""Label of what draws a batch; put around it with `torch.profiler.record_function`."""

OPTIMISER = "optimiser and targets"
OTHER = "other"

# The first that matches a name decides; names are those of operations on a CPU and of kernels on a GPU.
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        (REPLAY, REPLAY),
        (OPTIMISER, r"Optimizer\.|multi_tensor|fused_adam|foreach|_lerp"),
        ("host copies", r"memcpy|memset|pin_memory"),
        ("matrix products", r"\bmm\b|bmm|addmm|baddbmm|matmul|gemm|cutlass|xmma|cublas|convolution|conv2d|conv_|nvjet"),
        ("normalisation", r"layer_?norm|batch_?norm|group_?norm|rms_?norm|addcmul\b|AddcmulBackward"),
        ("activations", r"mish|softmax|tanh|silu|relu|elu|sigmoid|softplus|\bexp_?\b|log_softmax"),
        ("random draws", r"normal|uniform|bernoulli|random|dropout|distribution"),
        ("gather, sort and copies", r"index|gather|scatter|cat|stack|copy|sort|topk|select|slice"),
        ("reductions", r"\bsum\b|mean|amin|amax|argmax|norm|reduce"),
    )
)


def kind_of(names: Iterator[str] | list[str]) -> str:
    """The kind of an operation, from its own name and then those of what called it, up to the outermost.

    Labels (a draw from replay, an optimiser's step) hold for all within them; else the innermost name that is known.
    """
    found = [next((kind for kind, pattern in KINDS if pattern.search(name)), None) for name in names]
    for label in (REPLAY, OPTIMISER):
        if label in found:
            return label
    return next((kind for kind in found if kind is not None), OTHER)


def shares(call: Callable[[], Any], calls: int, device: torch.device) -> dict[str, float]:
    """Share of each kind of operations in the time of some calls, the largest first; they sum to 1.

    On a CPU of the time of all operations, on a GPU of the time of all kernels and copies there.
    """
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    spent: Counter[str] = Counter()
    for event in profiler.events():
        if on_gpu:
            labelled = getattr(event, "is_user_annotation", False)  # spans kernels that count themselves
            if event.device_type == torch.autograd.DeviceType.CUDA and not labelled:
                spent[kind_of([event.name])] += event.self_device_time_total
        else:
            spent[kind_of(_names(event))] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: round(time / total, 4) for kind, time in spent.most_common()} if total else {}


def _names(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent
