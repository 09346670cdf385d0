"""The networks of TD-MPC2: encoder, latent dynamics, reward, policy prior and an ensemble of Q-functions.

Those of a multi-task agent take the embedding of a sample's task beside the observation or latent state.

Shapes: R runs, ... any batch, O observation, A action, L latent, T task embedding, V bins, K Q-functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from agents.nn import MLP, Linear, ema_update
from agents.noise import Noise
from agents.protocol import AgentSpec
from agents.tdmpc2.hyperparameters import Hyperparameters
from agents.tdmpc2.padding import Padding
from agents.tdmpc2.pixels import PixelEncoder
from agents.tdmpc2.tasks import TaskContext, TaskTable
from bench.seeding import derive_seed

INIT_STD = 0.02


class WorldModel(nn.Module):
    """R world models with the policy and Q-functions that belong to them.

    The Q-functions are one network of R * K members, those of a run next to each other; `target_q` is a slow copy.

    Args:
        spec: sizes of observations and actions, and the tasks of a multi-task agent.
        hp: architecture.
        seeds: the seed of each run; it alone decides the run's initial parameters.
        device: where the parameters live.
    """

    def __init__(self, spec: AgentSpec, hp: Hyperparameters, seeds: Sequence[int], device: torch.device) -> None:
        super().__init__()
        self.runs, self.num_q = len(seeds), hp.num_q
        self.dropout, self.mlp_dim = hp.dropout, hp.mlp_dim
        self.log_std_min, self.log_std_max = hp.log_std_min, hp.log_std_max
        runs, latent, hidden, action_size = self.runs, hp.latent_dim, [hp.mlp_dim, hp.mlp_dim], spec.action_size
        task_dim = hp.task_dim if spec.tasks else 0
        transition = [latent + task_dim + action_size, *hidden]
        values = hp.num_bins if hp.regression == "discrete" else 1
        simnorm_dim = hp.simnorm_dim if hp.simnorm else 0
        mlp = partial(MLP, device=device, layer_norm=hp.layer_norm)
        self.encoder: MLP | PixelEncoder
        if spec.obs_kind == "rgb":
            self.encoder = PixelEncoder(runs, spec, hp, device)
        else:
            encoder = [spec.obs_shape[0] + task_dim, *[hp.enc_dim] * max(hp.num_enc_layers - 1, 1), latent]
            self.encoder = mlp(runs, encoder, simnorm_dim=simnorm_dim)
        self.dynamics = mlp(runs, [*transition, latent], simnorm_dim=simnorm_dim)
        self.reward_head = mlp(runs, [*transition, values])
        self.policy_head = mlp(runs, [latent + task_dim, *hidden, 2 * action_size])
        self.online_q = mlp(runs * hp.num_q, [*transition, values])
        self.target_q = mlp(runs * hp.num_q, [*transition, values]).requires_grad_(False)
        self.padding = Padding(spec, hp, device) if spec.sizes else None
        self.tasks = TaskTable(runs, spec.tasks, action_size, hp, device) if spec.tasks else None
        self.termination_head: MLP | None = None
        if hp.episodic:
            self.termination_head = mlp(runs, [latent + task_dim, *hidden, 1])
        if device.type != "meta":
            if self.padding is None:
                self._initialise(seeds)
            else:
                self._initialise_padded(self.padding, hp, seeds)
        # Index of each run's first Q-function.
        self.register_buffer("first_q", torch.arange(runs, device=device)[:, None] * hp.num_q, persistent=False)
        self.first_q: Tensor

    @torch.no_grad()
    def _initialise(self, seeds: Sequence[int]) -> None:
        """Weights ~ N(0, 0.02), biases 0, no initial reward or Q.

        The authors cut the normal at 100 standard deviations, which no float32 draw reaches. Drawn on the CPU, so that
        a seed means the same parameters on every device.
        """
        generators = [torch.Generator().manual_seed(derive_seed("parameters", seed)) for seed in seeds]
        networks: list[nn.Module] = [self.dynamics, self.reward_head, self.policy_head, self.online_q]
        for net in (self.encoder, *networks, *([self.termination_head] if self.termination_head else [])):
            if isinstance(net, PixelEncoder):
                net.initialise(generators)
                continue
            for layer in net.modules():
                if isinstance(layer, Linear):
                    for part, generator in zip(layer.weight.chunk(self.runs), generators, strict=True):
                        part.copy_(torch.randn(part.shape, generator=generator) * INIT_STD)
        for net in (self.reward_head, self.online_q):
            assert isinstance(net.last, Linear)
            net.last.weight.zero_()
        if self.tasks is not None:
            self.tasks.initialise(generators)
        self.target_q.load_state_dict(self.online_q.state_dict())

    @torch.no_grad()
    def _initialise_padded(self, padding: Padding, hp: Hyperparameters, seeds: Sequence[int]) -> None:
        """Each run gets the parameters that it would have alone."""
        whole = self.state_dict()
        for run, seed in enumerate(seeds):
            alone = WorldModel(padding.alone(run), hp, [seed], torch.device("cpu"))
            for name, own in alone.state_dict().items():
                whole[name].chunk(self.runs)[run].copy_(padding.pad(name, own, run))

    @property
    def num_parameters(self) -> int:
        """Trainable parameters of one run; the target is not counted."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad) // self.runs

    def context(self, task: Tensor | None) -> TaskContext | None:
        """What conditions the networks on tasks (R, ...) int64; None for a model without task embeddings.

        A model with the embedding of one task (finetuned from one of several) need not be told: the context is then
        (R, 1), which holds for every sample. So is that of a padded fleet, which has no embedding.

        Raises:
            ValueError: an agent of several tasks was not told which.
        """
        if self.padding is not None:
            return self.padding.context
        if self.tasks is None:
            return None
        if task is None:
            if self.tasks.num_tasks > 1:
                raise ValueError("a multi-task agent has to be told the task of each sample")
            task = torch.zeros(self.runs, 1, dtype=torch.int64, device=self.first_q.device)
        context: TaskContext = self.tasks(task)
        return context

    def encode(self, obs: Tensor, noise: Noise, tasks: TaskContext | None = None) -> Tensor:
        """z (R, ..., L) of observations (R, ..., *obs_shape); images are shifted by draws of `noise`."""
        if isinstance(self.encoder, PixelEncoder):
            z: Tensor = self.encoder(obs, noise)
            return z
        return _apply(self.encoder, obs, tasks)

    def next(self, z: Tensor, action: Tensor, tasks: TaskContext | None = None) -> Tensor:
        """Latent state (R, ..., L) after `action` (R, ..., A) in `z` (R, ..., L).

        One `z` (R, ..., 1, L) may go with several actions (R, ..., S, A).
        """
        return _apply(self.dynamics, z, tasks, action)

    def reward(self, z: Tensor, action: Tensor, tasks: TaskContext | None = None) -> Tensor:
        """Logits (R, ..., V) of the reward for `action` in `z`; shapes as in `next`."""
        return _apply(self.reward_head, z, tasks, action)

    def termination(self, z: Tensor, tasks: TaskContext | None = None) -> Tensor:
        """Logits (R, ...) that the episode has ended in `z` (R, ..., L); only of an episodic model."""
        assert self.termination_head is not None
        return _apply(self.termination_head, z, tasks).squeeze(-1)

    def policy(self, z: Tensor, tasks: TaskContext | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation, each (R, ..., A), of the action before tanh; 0 beyond a task's own."""
        mean, raw = _apply(self.policy_head, z, tasks).chunk(2, -1)
        half_range = 0.5 * (self.log_std_max - self.log_std_min)
        log_std = self.log_std_min + half_range * (raw.tanh() + 1)
        if tasks is None:
            return mean, log_std
        return mean * tasks.action_mask, log_std * tasks.action_mask

    def sample_action(self, z: Tensor, noise: Noise, tasks: TaskContext | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """An action of the policy in `z` (R, ..., L), its standard normal noise and its log standard deviation.

        Each is (R, ..., A), and 0 where a task's action has no more dimensions.
        """
        mean, log_std = self.policy(z, tasks)
        eps = noise.normal(*mean.shape[1:])
        if tasks is not None:
            eps = eps * tasks.action_mask
        return (mean + eps * log_std.exp()).tanh(), eps, log_std

    def q(self, z: Tensor, action: Tensor, tasks: TaskContext | None = None, keep: Tensor | None = None) -> Tensor:
        """Logits (R, K, ..., V) of all Q-functions; `keep` (R, K, M, hidden) drops units, M the flattened batch."""
        return self._ensemble(self.online_q, None, self.num_q, z, tasks, action, keep)

    def q_heads(
        self,
        z: Tensor,
        action: Tensor,
        heads: Tensor,
        tasks: TaskContext | None = None,
        target: bool = False,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Logits (R, k, ..., V) of the Q-functions in `heads` (R, k) only; no gradient reaches their parameters.

        Copying the weights of k heads costs little beside the product with the heads that are left out.
        """
        net = self.target_q if target else self.online_q
        index = (self.first_q + heads).flatten()
        weights = {name: p.detach().index_select(0, index) for name, p in net.named_parameters()}
        return self._ensemble(net, weights, heads.shape[1], z, tasks, action, keep)

    def _ensemble(
        self,
        net: MLP,
        weights: dict[str, Tensor] | None,
        k: int,
        z: Tensor,
        tasks: TaskContext | None,
        action: Tensor,
        keep: Tensor | None,
    ) -> Tensor:
        x, beside = _inputs(z, tasks, action)
        x = _repeat(x, k)  # (R k, M, L + T) or (R k, M, L + T + A)
        keep = None if keep is None else keep.flatten(0, 1)
        arguments = (x, keep, None if beside is None else _repeat(beside, k))
        logits = net(*arguments) if weights is None else functional_call(net, weights, arguments)
        return logits.unflatten(0, (self.runs, k)).unflatten(2, action.shape[1:-1])

    def dropout_mask(self, noise: Noise, heads: int, z: Tensor) -> Tensor | None:
        """(R, heads, M, hidden) for the first layer of Q-functions at `z` (R, ..., L), M the flattened batch.

        None without dropout.
        """
        if self.dropout == 0:
            return None
        return noise.dropout_mask(self.dropout, heads, math.prod(z.shape[1:-1]), self.mlp_dim)

    def update_target(self, tau: float) -> None:
        """target <- target + tau (online - target)."""
        ema_update(self.target_q.parameters(), self.online_q.parameters(), tau)


def _repeat(x: Tensor, k: int) -> Tensor:
    """The inputs of k Q-functions of each run: (R, ...) -> (R k, ...)."""
    return x[:, None].expand(-1, k, *x.shape[1:]).flatten(0, 1)


def _inputs(x: Tensor, tasks: TaskContext | None, action: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """What a network takes: observation or latent state, task embedding and action, one after the other.

    The action is kept apart where that saves work in the first layer: where several actions (R, ..., S, A) share one
    state (R, ..., 1, L), and where only the action wants a gradient.

    Returns:
        (R, M, in) and None, or (R, M, in) without the action and the actions (R, M, S, A).
    """
    if tasks is not None and tasks.embedding.shape[-1] > 0:
        x = torch.cat([x, tasks.embedding.expand(*x.shape[:-1], -1)], -1)
    if action is None:
        return x.flatten(1, -2), None
    if x.shape[:-1] == action.shape[:-1]:
        if x.requires_grad or not action.requires_grad:
            return torch.cat([x, action], -1).flatten(1, -2), None
        return x.flatten(1, -2), action.flatten(1, -2).unsqueeze(2)
    return x.flatten(1, -2), action.flatten(1, -3)


def _apply(net: MLP, x: Tensor, tasks: TaskContext | None, action: Tensor | None = None) -> Tensor:
    """(R, ..., in) -> (R, ..., out)."""
    first, beside = _inputs(x, tasks, action)
    output: Tensor = net(first, None, beside)
    return output.unflatten(1, (x if action is None else action).shape[1:-1])
