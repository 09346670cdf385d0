"""The world model: what it predicts of a replayed sequence, and its loss.

Shapes: R runs, T time, B batch, L = T + burn-in slice, O observation, A action, S variables of C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.protocol import AgentSpec, Batch
from baselines.dreamerv3 import latent
from baselines.dreamerv3.codec import ImageDecoder, ImageEncoder, VectorDecoder, VectorEncoder
from baselines.dreamerv3.heads import scalar_head, two_hot
from baselines.dreamerv3.hyperparameters import Hyperparameters
from baselines.dreamerv3.layers import Head
from baselines.dreamerv3.rssm import RSSM, Observed, State


class Sequence(NamedTuple):
    """The part of a batch that is learned from: what led to each observation lies at the observation's own index."""

    obs: Tensor  # (R, T, B, *obs_shape)
    action: Tensor  # (R, T, B, A); zero where the observation is the first of an episode
    reward: Tensor  # (R, T, B); likewise
    terminal: Tensor  # (R, T, B) 1 where the environment ended by itself
    first: Tensor  # (R, T, B) bool
    start: State  # (R, B, ...) the state before it


class WorldModel(nn.Module):
    """R world models: encoder, recurrent state-space model, decoder, reward and continue heads."""

    def __init__(self, spec: AgentSpec, hp: Hyperparameters, runs: int, device: torch.device) -> None:
        super().__init__()
        self.hp, self.runs = hp, runs
        encoder, decoder = (VectorEncoder, VectorDecoder) if spec.obs_kind == "state" else (ImageEncoder, ImageDecoder)
        self.encoder: VectorEncoder | ImageEncoder = encoder(hp, runs, spec.obs_shape)
        self.rssm = RSSM(hp, runs, self.encoder.size, spec.action_size)
        self.decoder: VectorDecoder | ImageDecoder = decoder(hp, runs, spec.obs_shape)
        self.reward_head = scalar_head(hp, runs, hp.reward_layers)
        features = hp.deter + hp.stoch * hp.classes
        self.continue_head = Head(hp.generation, runs, features, [hp.units] * hp.continue_layers, 1)
        self.two_hot = two_hot(hp, device)

    def initial_states(self, batch: int) -> State:
        """The states (R, batch, ...) before any observation."""
        return State(*(part.expand(-1, batch, -1) for part in self.rssm.initial()))

    def sequence(self, batch: Batch, uniform: Tensor) -> Sequence:
        """What is learned from, and the state before it: built up over the burn-in, or the initial one.

        Args:
            batch: slices of T + max(1, burn-in) observations.
            uniform: (R, L, B, S) draws for the latents of the burn-in, at the front.
        """
        assert batch.first is not None  # draws are streams
        burn_in, length = self.hp.burn_in, self.hp.batch_length
        obs, first = batch.obs[:, -length:], batch.first[:, -length:]
        action, reward, terminal = (x[:, -length:] for x in (batch.action, batch.reward, batch.terminated))
        start = self.initial_states(obs.shape[2])
        if burn_in == 0:
            first = first.clone()
            first[:, 0] = True
        else:
            with torch.no_grad():
                lead = batch.obs[:, :burn_in]
                before = torch.cat([torch.zeros_like(action[:, :1]), batch.action[:, : burn_in - 1]], 1)
                seen = self.rssm.observe(
                    self.encoder(lead), before, batch.first[:, :burn_in], start, uniform[:, :burn_in]
                )
                start = State(seen.state.deter[:, -1], seen.state.stoch[:, -1])
        return Sequence(obs, action, reward, terminal, first, start)

    def observe(self, sequence: Sequence, uniform: Tensor) -> Observed:
        """Posterior states along a sequence; uniform (R, T, B, S)."""
        return self.rssm.observe(self.encoder(sequence.obs), sequence.action, sequence.first, sequence.start, uniform)

    def losses(self, sequence: Sequence, observed: Observed) -> dict[str, Tensor]:
        """Each part of the loss, (R,), as it enters the sum (equation 5 of the Nature article).

        The free nats are granted to each time step, after the sum over the S variables.
        """
        hp, state = self.hp, observed.state
        features = state.features
        prior, posterior = self.rssm.prior(state.deter), observed.posterior
        dyn = latent.kl_divergence(posterior.detach(), prior).clamp(min=hp.free_nats)
        rep = latent.kl_divergence(posterior, prior.detach()).clamp(min=hp.free_nats)
        goes_on = (1 - sequence.terminal) * (1.0 if hp.generation == 2023 else hp.discount)
        parts = {
            "reconstruction": self.decoder.loss(state, sequence.obs),
            "reward": self.two_hot.cross_entropy(self.reward_head(features), sequence.reward),
            "continue": F.binary_cross_entropy_with_logits(
                self.continue_head(features).squeeze(-1), goes_on, reduction="none"
            ),
            "dyn": hp.dyn_scale * dyn,
            "rep": hp.rep_scale * rep,
        }
        return {name: part.mean((1, 2)) for name, part in parts.items()}

    def reward(self, features: Tensor) -> Tensor:
        """Expected reward (R, ...) on arriving in states with these features (R, ..., F)."""
        return self.two_hot.decode(self.reward_head(features))

    def discount(self, features: Tensor) -> Tensor:
        """Discount (R, ...) of states with these features: gamma and whether the episode goes on, in one.

        2023: gamma where the continue head says so more likely than not. 2024: the head's probability, which gamma is
        part of.
        """
        logit = self.continue_head(features).squeeze(-1)
        return self.hp.discount * (logit > 0) if self.hp.generation == 2023 else logit.sigmoid()
