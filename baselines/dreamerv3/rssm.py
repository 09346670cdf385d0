"""The recurrent state-space model: a deterministic recurrent state and categorical latents that explain the rest.

Shapes: R runs, T time, B batch, M any flattened batch, D deterministic state, S variables of C classes, A action,
E embedded observation, h hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.nn import Linear
from baselines.dreamerv3 import latent
from baselines.dreamerv3.hyperparameters import Hyperparameters
from baselines.dreamerv3.layers import BlockLinear, Dense, Head, Output, norm

UPDATE_BIAS = -1.0
"""Added to the update gate, so that the state changes slowly at first."""


class State(NamedTuple):
    """Recurrent states of any batch."""

    deter: Tensor  # (R, ..., D)
    stoch: Tensor  # (R, ..., S C), one-hot for each variable

    @property
    def features(self) -> Tensor:
        """What every head sees, (R, ..., D + S C)."""
        return torch.cat([self.deter, self.stoch], -1)

    def detach(self) -> State:
        """The same without gradient."""
        return State(self.deter.detach(), self.stoch.detach())

    def flatten(self) -> State:
        """All batch dimensions as one, (R, M, ...)."""
        return State(self.deter.flatten(1, -2), self.stoch.flatten(1, -2))


class Observed(NamedTuple):
    """A sequence as the model saw it."""

    state: State  # (R, T, B, ...)
    posterior: Tensor  # probabilities (R, T, B, S, C)


def gated_update(reset: Tensor, candidate: Tensor, update: Tensor, deter: Tensor) -> Tensor:
    """The next deterministic state from the gates before their nonlinearities, all (..., D)."""
    return torch.lerp(deter, torch.tanh(reset.sigmoid() * candidate), (update + UPDATE_BIAS).sigmoid())


class DenseCore(nn.Module):
    """The recurrent layer of 2023: a gated recurrent unit with LayerNorm over its gates."""

    def __init__(self, hp: Hyperparameters, runs: int, action_size: int) -> None:
        super().__init__()
        self.input = Dense(2023, runs, hp.stoch * hp.classes + action_size, hp.hidden)
        self.gates = Linear(runs, hp.deter + hp.hidden, 3 * hp.deter, bias=False)
        self.norm = norm(2023, runs, 3 * hp.deter)

    def forward(self, state: State, action: Tensor) -> Tensor:
        """The next deterministic state (R, M, D)."""
        x = self.input(torch.cat([state.stoch, action], -1))
        gates = self.norm(self.gates(torch.cat([state.deter, x], -1)))
        reset, candidate, update = gates.chunk(3, -1)
        return gated_update(reset, candidate, update, state.deter)


class BlockCore(nn.Module):
    """The recurrent layer of 2024: g blocks, each of which sees its part of the state and all of the inputs."""

    def __init__(self, hp: Hyperparameters, runs: int, action_size: int) -> None:
        super().__init__()
        self.blocks = hp.blocks
        block = hp.deter // hp.blocks
        inputs = (hp.deter, hp.stoch * hp.classes, action_size)
        self.inputs = nn.ModuleList([Dense(2024, runs, size, hp.hidden) for size in inputs])
        self.hidden = BlockLinear(runs, hp.blocks, block + 3 * hp.hidden, block)
        self.norm = norm(2024, runs, hp.deter)
        self.gates = BlockLinear(runs, hp.blocks, block, 3 * block)

    def forward(self, state: State, action: Tensor) -> Tensor:
        """The next deterministic state (R, M, D)."""
        parts = zip(self.inputs, (state.deter, state.stoch, action), strict=True)
        shared = torch.cat([layer(part) for layer, part in parts], -1)  # (R, M, 3 h)
        own = state.deter.unflatten(-1, (self.blocks, -1))  # (R, M, g, D / g)
        x = torch.cat([own, shared[:, :, None].expand(-1, -1, self.blocks, -1)], -1)
        x = F.silu(self.norm(self.hidden(x).flatten(-2)))
        gates = self.gates(x.unflatten(-1, (self.blocks, -1)))  # (R, M, g, 3 D / g)
        reset, candidate, update = (gate.flatten(-2) for gate in gates.chunk(3, -1))
        return gated_update(reset, candidate, update, state.deter)


class Posterior(nn.Module):
    """Logits of the latents given the deterministic state and the observation.

    The first layer takes both, side by side; its product with the observations needs no recurrence, so it is made for
    a whole sequence at once.
    """

    def __init__(self, hp: Hyperparameters, runs: int, embed_size: int) -> None:
        super().__init__()
        self.deter_size = hp.deter
        self.hidden = Dense(hp.generation, runs, hp.deter + embed_size, hp.hidden)
        self.output = Output(runs, hp.hidden, hp.stoch * hp.classes)

    def split(self, embed: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's part of the observations (R, T, B, E) -> (R, T, B, h), and its weight of the state."""
        linear = self.hidden.linear
        of_deter, of_embed = linear.weight.split([self.deter_size, embed.shape[-1]], 1)
        part = torch.bmm(embed.flatten(1, -2), of_embed)
        if linear.bias is not None:
            part = part + linear.bias
        return part.unflatten(1, embed.shape[1:-1]), of_deter

    def forward(self, deter: Tensor, part: Tensor, of_deter: Tensor) -> Tensor:
        """Logits (R, M, S C) from deter (R, M, D), and what `split` gave: part (R, M, h), of_deter (R, D, h)."""
        logits: Tensor = self.output(F.silu(self.hidden.norm(torch.baddbmm(part, deter, of_deter))))
        return logits


class RSSM(nn.Module):
    """R recurrent state-space models.

    Args:
        hp: architecture.
        runs: R.
        embed_size: E.
        action_size: A.
    """

    initial_deter: nn.Parameter | None

    def __init__(self, hp: Hyperparameters, runs: int, embed_size: int, action_size: int) -> None:
        super().__init__()
        self.hp, self.runs = hp, runs
        is_2023 = hp.generation == 2023
        self.core: nn.Module = (DenseCore if is_2023 else BlockCore)(hp, runs, action_size)
        prior_layers = 1 if is_2023 else 2
        self.prior_head = Head(hp.generation, runs, hp.deter, [hp.hidden] * prior_layers, hp.stoch * hp.classes)
        self.posterior_head = Posterior(hp, runs, embed_size)
        initial = nn.Parameter(torch.zeros(runs, 1, hp.deter)) if is_2023 else None
        self.register_parameter("initial_deter", initial)

    def initial(self) -> State:
        """The state before the first observation, (R, 1, ...): learned in 2023, zero in 2024."""
        if self.initial_deter is None:
            zeros = self.prior_head.output.weight.new_zeros
            return State(zeros(self.runs, 1, self.hp.deter), zeros(self.runs, 1, self.hp.stoch * self.hp.classes))
        deter = self.initial_deter.tanh()
        return State(deter, latent.mode(self.prior(deter)))

    def prior(self, deter: Tensor) -> Tensor:
        """Probabilities (R, ..., S, C) of the latents before the observation, from deter (R, ..., D)."""
        return latent.unimix(self.prior_head(deter), self.hp.classes, self.hp.unimix)

    def observe(self, embed: Tensor, action: Tensor, first: Tensor, start: State, uniform: Tensor) -> Observed:
        """Follow a sequence of observations.

        Args:
            embed: (R, T, B, E).
            action: (R, T, B, A) in [-1, 1], what led to each observation.
            first: (R, T, B) bool; there the state before is the initial one and the action zero.
            start: (R, B, ...) the state before the sequence.
            uniform: (R, T, B, S) draws for the latents.
        """
        action = action.masked_fill(first[..., None], 0.0)
        part, of_deter = self.posterior_head.split(embed)
        initial, state = self.initial(), start
        states, posteriors = [], []
        for t in range(embed.shape[1]):
            reset = first[:, t, :, None]
            state = State(*(torch.where(reset, fresh, old) for fresh, old in zip(initial, state, strict=True)))
            deter = self.core(state, action[:, t])
            logits = self.posterior_head(deter, part[:, t], of_deter)
            probs = latent.unimix(logits, self.hp.classes, self.hp.unimix)
            state = State(deter, latent.sample(probs, uniform[:, t]))
            states.append(state)
            posteriors.append(probs)
        deters, stochs = zip(*states, strict=True)
        return Observed(State(torch.stack(deters, 1), torch.stack(stochs, 1)), torch.stack(posteriors, 1))

    def imagine(self, state: State, action: Tensor, uniform: Tensor) -> State:
        """The state (R, M, ...) that an action (R, M, A) leads to, by the prior; uniform (R, M, S).

        Actions beyond 1 count as 1 and pass their gradient on, so that a Gaussian policy may be differentiated.
        """
        deter = self.core(state, action / action.detach().abs().clamp(min=1.0))
        return State(deter, latent.sample(self.prior(deter), uniform))
