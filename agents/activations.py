"""Activations of TD-MPC2 with a leading run axis: SimNorm, Mish, and LayerNorm followed by Mish in one step.

On a CPU these cost nearly as much as the matrix products beside them, since each pass over a large tensor goes to
memory: here they take as few as possible. On a GPU they are torch's own kernels. `docs/speed.md` has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

EXP_LIMIT = 20.0
"""From here on tanh(softplus(x)) is 1 to float32: the exponential is cut, and never overflows."""


def simnorm(x: Tensor, group: int) -> Tensor:
    """Simplicial normalisation (SimNorm): a softmax within each `group` neighbours of the last dimension.

    A softmax over a short last dimension is not vectorised on a CPU; over the one before it is, about eight times
    faster.
    """
    return x.unflatten(-1, (-1, group)).transpose(-1, -2).softmax(-2).transpose(-1, -2).flatten(-2)


def _mish(x: Tensor, out: Tensor, slope: Tensor | None) -> None:
    """Write Mish of `x` to `out`, and its derivative to `slope` if there is one; `x` is kept.

    By one exponential: tanh(softplus(x)) = n / (n + 2) with e = exp(x) and n = e (e + 2); its derivative is
    4 e (e + 1) / (n + 2)^2. That is half the time of torch's own.
    """
    e = x.clamp(max=EXP_LIMIT).exp_()
    n = (e + 2).mul_(e)
    if slope is None:
        torch.mul(n.div_(n + 2), x, out=out)
        return
    d = (n + 2).reciprocal_()
    tanh = n.mul_(d)
    torch.mul(tanh, x, out=out)
    torch.addcmul(tanh, (e + 1).mul_(e).mul_(d).mul_(d), x, value=4, out=slope)


class _Mish(torch.autograd.Function):
    """The derivative is computed going forward, while the exponential is there, so that going back is one product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out, slope = torch.empty_like(x), torch.empty_like(x)
        _mish(x, out, slope)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope


def _norm_mish(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """LayerNorm, then Mish, of one network after the other, so that each stays in the cache.

    Returns:
        (R, M, size), and the mean and reciprocal standard deviation of each network.
    """
    out, moments = torch.empty_like(x), []
    for member in range(len(x)):
        own = weight[member, 0], bias[member, 0]
        normed, mean, reciprocal_std = torch.native_layer_norm(x[member], x.shape[-1:], *own, eps)
        moments += [mean, reciprocal_std]
        _mish(normed, out[member], None if slope is None else slope[member])
    return out, moments


class _NormMish(torch.autograd.Function):
    """`_norm_mish` with a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        slope = torch.empty_like(x)
        out, moments = _norm_mish(x, weight, bias, eps, slope)
        ctx.save_for_backward(x, weight, bias, slope, *moments)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, slope, *moments = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        results: tuple[Tensor | None, ...] = tuple(
            torch.empty_like(of) if wanted else None for of, wanted in zip((x, weight, bias), needed, strict=True)
        )
        for member in range(len(x)):
            own = torch.ops.aten.native_layer_norm_backward(
                grads[0][member] * slope[member],
                x[member],
                x.shape[-1:],
                moments[2 * member],
                moments[2 * member + 1],
                weight[member, 0],
                bias[member, 0],
                needed,
            )
            for result, part in zip(results, own, strict=True):
                if result is not None:
                    result[member] = part
        return *results, None


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x))."""
    if x.device.type != "cpu":
        return nn.functional.mish(x)
    if _learns(x):
        activation: Tensor = _Mish.apply(x)
        return activation
    out = torch.empty_like(x)
    _mish(x, out, None)
    return out


def norm_mish(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Mish of the LayerNorm of each of R networks, (R, M, size) -> (R, M, size).

    Args:
        x: (R, M, size).
        weight: (R, 1, size), scale of the LayerNorm.
        bias: (R, 1, size), its shift.
        eps: added to the variance.
    """
    if x.device.type != "cpu":
        return mish(layer_norm(x, weight, bias, eps))
    if _learns(x, weight, bias):
        activation: Tensor = _NormMish.apply(x, weight, bias, eps)
        return activation
    return _norm_mish(x, weight, bias, eps)[0]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension of each of R networks; shapes as in `norm_mish`."""
    size = x.shape[-1:]
    if len(x) == 1:
        return nn.functional.layer_norm(x, size, weight[0, 0], bias[0, 0], eps)
    return torch.addcmul(bias, nn.functional.layer_norm(x, size, eps=eps), weight)
