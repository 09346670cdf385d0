"""In which precision an agent multiplies: its hyperparameter `precision`. Loads torch late.

Only matrix products and convolutions change; parameters, optimiser states, normalisation, activations, losses, targets
and replay are float32 in every one. `docs/speed.md` has what each gives, in time and in learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from bench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

Precision = Literal["float32", "tf32", "bf16"]
"""float32; TF32, which rounds what is multiplied to 10 bits of mantissa and exists on NVIDIA's GPUs only; bfloat16,
which rounds what is multiplied, and the product, to 7, and adds up in float32."""


P = ParamSpec("P")
T = TypeVar("T")


class Products:
    """How one agent multiplies. Its layers know of bfloat16; CUDA's switches, which the process shares, are set only
    while the agent computes (`in_own_precision`), so that two agents of one process do not meet in them.

    Args:
        precision: of all layers.
        device: the agent's.
        networks: the agent's, slow copies included.

    Raises:
        UserError: TF32 on a CPU, which has none.
    """

    def __init__(self, precision: Precision, device: torch.device, networks: Iterable[nn.Module]) -> None:
        from agents.conv import Convolution
        from agents.nn import Linear

        if precision == "tf32" and device.type == "cpu":
            raise UserError("precision=tf32 needs an NVIDIA GPU (--device cuda): a CPU has float32 and bf16")
        self.precision, self.on_cuda = precision, device.type == "cuda"
        for network in networks:
            for layer in network.modules():
                if isinstance(layer, Linear | Convolution):
                    layer.in_bf16 = precision == "bf16"

    @contextmanager
    def switched(self) -> Iterator[None]:
        """CUDA's switches as this precision wants them, and as they were afterwards. Nothing on a CPU.

        float32 is float32: PyTorch alone would take TF32 for convolutions.
        """
        if not self.on_cuda:
            yield
            return
        import torch

        cudnn: Any = torch.backends.cudnn  # built at run time: a type checker sees no attributes
        matmul, conv = torch.backends.cuda.matmul, cudnn.conv
        before = matmul.fp32_precision, conv.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
        matmul.fp32_precision = conv.fp32_precision = "tf32" if self.precision == "tf32" else "ieee"
        matmul.allow_bf16_reduced_precision_reduction = False
        try:
            yield
        finally:
            matmul.fp32_precision, conv.fp32_precision, matmul.allow_bf16_reduced_precision_reduction = before


def in_own_precision(method: Callable[P, T]) -> Callable[P, T]:
    """A method of an agent that computes, backward pass included, with the switches of its `products`."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        agent: Any = args[0]
        with agent.products.switched():
            return method(*args, **kwargs)

    return call
