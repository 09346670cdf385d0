"""Network parts with a leading run axis: R independent networks trained by one batched matrix product.

Every parameter is `(R, ...)`. A layer takes `(R, M, in)` and gives `(R, M, out)`; M is any flattened batch. Gradients
of different runs never mix, so the losses of the runs are summed and each run is clipped by its own norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from agents.activations import layer_norm, mish, norm_mish, simnorm

LAYER_NORM_EPS = 1e-5


class Linear(nn.Module):
    """R affine maps, `(R, M, in) -> (R, M, out)`, as one batched matrix product.

    Args:
        runs: R. An ensemble of K members a run passes R * K and keeps members of one run next to each other.
        inputs: size of the input.
        outputs: size of the output.
        bias: whether to add one; without it the maps are linear.
    """

    bias: nn.Parameter | None
    in_bf16: bool = False
    """Whether it multiplies in bfloat16; takes and gives float32 all the same. See `agents.precision`."""

    def __init__(
        self, runs: int, inputs: int, outputs: int, device: torch.device | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(runs, inputs, outputs, device=device))
        zeros = nn.Parameter(torch.zeros(runs, 1, outputs, device=device)) if bias else None
        self.register_parameter("bias", zeros)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return self._product(x, self.weight)
        if self.in_bf16:
            return self._product(x, self.weight).add_(self.bias)
        return torch.baddbmm(self.bias, x, self.weight)

    def of_pairs(self, x: Tensor, y: Tensor) -> Tensor:
        """The map of [x, y] for S different y beside each x, without forming the pairs.

        The share of x is computed once for its S pairs, and no gradient is computed for x where it needs none.

        Args:
            x: (R, M, in_x), the first inputs.
            y: (R, M, S, in_y), the others.

        Returns:
            (R, M S, out).
        """
        size = x.shape[-1]
        shared = self._product(x, self.weight[:, :size])
        if self.bias is not None:
            shared = shared + self.bias
        own = self._product(y.flatten(1, 2), self.weight[:, size:]).unflatten(1, y.shape[1:3])
        return own.add_(shared.unsqueeze(2)).flatten(1, 2)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.in_bf16:
            return torch.bmm(x.bfloat16(), weight.bfloat16()).to(x.dtype)
        return torch.bmm(x, weight)


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension with a scale and shift for each run, `(R, M, size)`."""

    def __init__(self, runs: int, size: int, device: torch.device | None = None, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        self.size, self.eps = size, eps
        self.weight = nn.Parameter(torch.ones(runs, 1, size, device=device))
        self.bias = nn.Parameter(torch.zeros(runs, 1, size, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class NormedLinear(nn.Module):
    """Linear, LayerNorm, then Mish, or SimNorm with groups of `simnorm_dim`; `(R, M, in) -> (R, M, out)`.

    `simnorm_dim=0` leaves out the activation, `layer_norm=False` the LayerNorm.
    """

    def __init__(
        self,
        runs: int,
        inputs: int,
        outputs: int,
        simnorm_dim: int | None = None,
        device: torch.device | None = None,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.simnorm_dim = simnorm_dim
        self.linear = Linear(runs, inputs, outputs, device)
        self.norm = LayerNorm(runs, outputs, device) if layer_norm else None

    def forward(self, x: Tensor, keep: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (R, M, in).
            keep: (R, M, out), a dropout mask (0 or 1/(1-p)) between Linear and LayerNorm.
            beside: where given, the rest of the input as in `Linear.of_pairs`; the output then has its M S rows.
        """
        x = self.linear(x) if beside is None else self.linear.of_pairs(x, beside)
        if keep is not None:
            x = x * keep
        if self.simnorm_dim is None and self.norm is not None:
            return norm_mish(x, self.norm.weight, self.norm.bias, self.norm.eps)
        if self.norm is not None:
            x = self.norm(x)
        if self.simnorm_dim is None:
            return mish(x)
        return simnorm(x, self.simnorm_dim) if self.simnorm_dim > 0 else x


class MLP(nn.Module):
    """NormedLinear layers with Mish, then a plain Linear, or a NormedLinear with SimNorm where `simnorm_dim` is given.

    Args:
        runs: R.
        sizes: input, hidden layers, output.
        simnorm_dim: group size of the output's SimNorm; 0: no activation there.
        layer_norm: whether there are LayerNorms.
    """

    def __init__(
        self,
        runs: int,
        sizes: Sequence[int],
        simnorm_dim: int | None = None,
        device: torch.device | None = None,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        *hidden, last = pairwise(sizes)
        self.hidden = nn.ModuleList([NormedLinear(runs, *s, device=device, layer_norm=layer_norm) for s in hidden])
        self.last: nn.Module
        if simnorm_dim is None:
            self.last = Linear(runs, *last, device=device)
        else:
            self.last = NormedLinear(runs, *last, simnorm_dim=simnorm_dim, device=device, layer_norm=layer_norm)

    def forward(self, x: Tensor, keep: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """`(R, M, in) -> (R, M, out)`; `keep` and `beside` are for the first layer, see `NormedLinear`."""
        for layer in self.hidden:
            x = layer(x, keep, beside)
            keep = beside = None
        output: Tensor = self.last(x)
        return output


def clip_grad_norms(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of each run so that its own global norm is at most `max_norm`.

    The same rule as `torch.nn.utils.clip_grad_norm_` (factor max_norm / (norm + 1e-6), at most 1), for each run apart.
    Parameters with an ensemble axis folded into the first are `(R * K, ...)`: R is the smallest first size.

    Returns:
        (R,) norms before clipping.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    runs = min(grad.shape[0] for grad in grads)
    norms = torch.stack([torch.linalg.vector_norm(grad.reshape(runs, -1), dim=1) for grad in grads])
    norms = torch.linalg.vector_norm(norms, dim=0)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.view(runs, -1).mul_(factors[:, None])
    return norms


@torch.no_grad()
def ema_update(targets: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """target <- target + tau (online - target), for all tensors in one call."""
    torch._foreach_lerp_(list(targets), [tensor.detach() for tensor in online], tau)


# States of single runs. A tensor is cut along its first axis: (R, ...) or (R * K, ...) into R equal parts.


def _part(tensor: Tensor, run: int, runs: int) -> Tensor:
    size = tensor.shape[0] // runs
    return tensor[run * size : (run + 1) * size].detach().cpu().clone()


def module_state(module: nn.Module, run: int, runs: int) -> dict[str, Tensor]:
    """Parameters and buffers of one run."""
    return {name: _part(tensor, run, runs) for name, tensor in module.state_dict().items()}


def load_module_states(module: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> None:
    """Put the states of single runs together and load them, strictly."""
    module.load_state_dict({name: torch.cat([state[name] for state in states]) for name in states[0]})


def optimizer_state(optimizer: torch.optim.Optimizer, run: int, runs: int) -> list[dict[str, Any]]:
    """State of one run, in the order of the parameters: Adam's moments are cut, its step count is shared."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [
        {
            key: _part(value, run, runs) if value.dim() > 0 else value.detach().cpu().clone()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        for parameter in parameters
    ]


def lockstep_count(
    states: Sequence[Mapping[str, Any]], runs: int, key: str = "updates", counted: str = "updates"
) -> int:
    """The count that the states of a fleet's runs hold under `key` and have in common; `counted` names it for people.

    Raises:
        ValueError: there are not as many states as runs, or their counts differ, so they cannot train in lockstep.
    """
    if len(states) != runs:
        raise ValueError(f"a fleet of {runs} needs as many states, not {len(states)}")
    counts = {int(state[key]) for state in states}
    if len(counts) > 1:
        raise ValueError(f"runs with different numbers of {counted} cannot form one fleet")
    return counts.pop()


def load_optimizer_states(optimizer: torch.optim.Optimizer, states: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Put the optimiser states of single runs together.

    Raises:
        ValueError: the runs have taken different numbers of steps, so they cannot train in lockstep.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    for index, parameter in enumerate(parameters):
        parts = [state[index] for state in states]
        merged: dict[str, Tensor] = {}
        for key in parts[0]:
            if parts[0][key].dim() > 0:
                merged[key] = torch.cat([part[key] for part in parts]).to(parameter.device)
            else:
                if len({float(part[key]) for part in parts}) > 1:
                    raise ValueError("runs with different numbers of updates cannot form one fleet")
                # Fused and capturable optimisers keep the step count on the parameter's device.
                on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
                merged[key] = parts[0][key].clone().to(parameter.device if on_device else "cpu")
        if merged:
            optimizer.state[parameter] = merged
