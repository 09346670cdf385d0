"""The networks of TD-MPC: encoder, latent dynamics, reward, policy and twin Q-functions.

Shapes: R runs, ... any batch, O observation, A action, L latent, Q = 2 Q-functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from agents.conv import ConvLayer, ConvStack
from agents.nn import LayerNorm, Linear, ema_update
from baselines.networks import orthogonal_init
from baselines.tdmpc.hyperparameters import Hyperparameters
from bench.seeding import derive_seed

NUM_Q = 2
NOISE_CLIP = 0.3
"""Largest size of the policy's noise."""
ACTION_LIMIT = 1 - 1e-6
"""Largest size of the policy's action."""
KERNELS_AND_STRIDES = ((7, 2), (5, 2), (3, 2), (3, 2))


def elu_mlp(runs: int, sizes: Sequence[int]) -> nn.Sequential:
    """R networks of linear layers with ELU in between, `(R, M, sizes[0]) -> (R, M, sizes[-1])`."""
    layers: list[nn.Module] = []
    for size in pairwise(sizes):
        layers += [Linear(runs, *size), nn.ELU()]
    return nn.Sequential(*layers[:-1])


class Encoder(nn.Module):
    """R encoders: a network with one hidden layer for state vectors, convolutions and a linear layer for images."""

    def __init__(self, runs: int, obs_shape: tuple[int, ...], hp: Hyperparameters) -> None:
        super().__init__()
        self.convs: ConvStack | None = None
        if len(obs_shape) == 1:
            self.net = elu_mlp(runs, [*obs_shape, hp.enc_dim, hp.latent_dim])
        else:
            layers = [ConvLayer(hp.num_channels, kernel, stride) for kernel, stride in KERNELS_AND_STRIDES]
            self.convs = ConvStack(runs, obs_shape, layers)
            self.net = elu_mlp(runs, [self.convs.features, hp.latent_dim])

    def forward(self, obs: Tensor) -> Tensor:
        """z (R, ..., L) of state vectors (R, ..., O) or of uint8 images (R, ..., C, H, W)."""
        return _apply(self.net, obs if self.convs is None else self.convs(obs.float() / 255))


class WorldModel(nn.Module):
    """R world models with the policies and Q-functions that belong to them.

    The Q-functions are one network of R * Q members, those of a run next to each other. Encoder and Q-functions have
    slow copies, the target.

    Args:
        obs_shape: (O,) or (C, H, W).
        action_size: A.
        hp: architecture, and the policy's noise.
        seeds: the seed of each run; it alone decides the run's initial parameters.
        device: where the parameters live.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        action_size: int,
        hp: Hyperparameters,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.runs, self.policy_std = len(seeds), hp.min_std
        runs, latent, hidden = self.runs, hp.latent_dim, hp.mlp_dim
        self.encoder = Encoder(runs, obs_shape, hp)
        self.dynamics = elu_mlp(runs, [latent + action_size, hidden, hidden, latent])
        self.reward_head = elu_mlp(runs, [latent + action_size, hidden, hidden, 1])
        self.policy_head = elu_mlp(runs, [latent, hidden, hidden, action_size])
        self.q_heads = self._q_network(latent + action_size, hidden)
        self.target_encoder = Encoder(runs, obs_shape, hp)
        self.target_q_heads = self._q_network(latent + action_size, hidden)
        self._initialise(seeds)
        for target, online in self._targets():
            target.load_state_dict(online.state_dict())
            target.requires_grad_(False)
        self.to(device)

    def _q_network(self, inputs: int, hidden: int) -> nn.Sequential:
        members = NUM_Q * self.runs
        first = [Linear(members, inputs, hidden), LayerNorm(members, hidden), nn.Tanh()]
        return nn.Sequential(*first, Linear(members, hidden, hidden), nn.ELU(), Linear(members, hidden, 1))

    @torch.no_grad()
    def _initialise(self, seeds: Sequence[int]) -> None:
        """Orthogonal weights (gain 1, convolutions sqrt 2), biases 0, no initial reward or Q."""
        for run, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(derive_seed(seed, "init"))
            for net in (self.encoder, self.dynamics, self.reward_head, self.policy_head):
                orthogonal_init(net, slice(run, run + 1), generator)
            orthogonal_init(self.q_heads, slice(NUM_Q * run, NUM_Q * (run + 1)), generator)
        for net in (self.reward_head, self.q_heads):
            last = net[-1]
            assert isinstance(last, Linear)
            last.weight.zero_()

    def _targets(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return (self.target_encoder, self.encoder), (self.target_q_heads, self.q_heads)

    def model_parameters(self) -> list[nn.Parameter]:
        """Everything that the model's loss trains: all but the policy and the target."""
        nets = (self.encoder, self.dynamics, self.reward_head, self.q_heads)
        return [parameter for net in nets for parameter in net.parameters()]

    @property
    def num_parameters(self) -> int:
        """Trainable parameters of one run; the target is not counted."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad) // self.runs

    def next(self, z: Tensor, action: Tensor) -> Tensor:
        """Latent state (R, ..., L) after `action` (R, ..., A) in `z` (R, ..., L)."""
        return _apply(self.dynamics, torch.cat([z, action], -1))

    def reward(self, z: Tensor, action: Tensor) -> Tensor:
        """Reward (R, ...) for `action` in `z`."""
        return _apply(self.reward_head, torch.cat([z, action], -1)).squeeze(-1)

    def policy(self, z: Tensor, eps: Tensor) -> Tensor:
        """Actions (R, ..., A) with standard normal noise `eps` of that shape: tanh of the network, plus short noise.

        Cutting the action to its range leaves the gradient as it is.
        """
        noisy = _apply(self.policy_head, z).tanh() + (self.policy_std * eps).clamp(-NOISE_CLIP, NOISE_CLIP)
        return noisy.clamp(-ACTION_LIMIT, ACTION_LIMIT).detach() + (noisy - noisy.detach())

    def q(self, z: Tensor, action: Tensor, target: bool = False) -> Tensor:
        """Both Q-functions, or those of the target, (R, Q, ...)."""
        x = torch.cat([z, action], -1)
        batch = x.shape[1:-1]
        x = x.flatten(1, -2)[:, None].expand(-1, NUM_Q, -1, -1).flatten(0, 1)  # (R Q, M, L + A)
        q: Tensor = (self.target_q_heads if target else self.q_heads)(x)
        return q.view(self.runs, NUM_Q, *batch)

    def update_target(self, tau: float) -> None:
        """target <- target + tau (online - target)."""
        for target, online in self._targets():
            ema_update(target.parameters(), online.parameters(), tau)


def _apply(net: nn.Module, x: Tensor) -> Tensor:
    """(R, ..., in) -> (R, ..., out)."""
    output: Tensor = net(x.flatten(1, -2))
    return output.unflatten(1, x.shape[1:-1])
