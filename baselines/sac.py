"""Soft actor-critic with a learned temperature, R runs in lockstep, from states or from pixels.

Haarnoja et al. 2018 (arXiv 1812.05905), with the networks, constants and order of updates of pytorch_sac. From pixels
it is the agent that CURL builds upon, without crops and contrastive loss: convolutions that actor and critics share and
only the critics' loss trains, and a linear trunk with LayerNorm for each of the two.

What differs from pytorch_sac:
- batches of 512, as the TD-MPC2 paper says of its SAC (`preset=authors` has their 1024);
- the action repeat is the task table's (theirs has none), and so are the steps; replay keeps a million transitions
  whatever the budget;
- evaluation has environments of its own, and comes at fixed agent steps, the first and the last included (theirs
  evaluates in the training environment, between episodes only);
- an update follows the environment's step instead of preceding it, as everywhere in this suite;
- from pixels, which theirs cannot: the settings of CURL.

Shapes: R runs, N environments, B batch, O observation, F features, A action, Q = 2 critics, H hidden.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.nn import (
    ema_update,
    load_module_states,
    load_optimizer_states,
    lockstep_count,
    module_state,
    optimizer_state,
)
from agents.noise import Noise
from agents.precision import Products, in_own_precision
from agents.protocol import AgentSpec, Batch, ReplaySpec
from baselines.hyperparameters.sac import SAC as SACHyperparameters
from baselines.networks import CRITICS, PixelEncoder, Trunk, TwinCritic, delta_orthogonal_kernel, mlp, orthogonal_init
from bench.errors import UserError
from bench.seeding import derive_seed


class TanhGaussianActor(nn.Module):
    """A policy a = tanh(u), u ~ N(mean, std), for each run.

    Args:
        runs: R.
        obs_size: O, or the outputs of the trunk.
        action_size: A.
        hidden: widths of the hidden layers.
        log_std_bounds: the log standard deviation lies between these, by a tanh.
        trunk: what the policy sees the observation through.
    """

    def __init__(
        self,
        runs: int,
        obs_size: int,
        action_size: int,
        hidden: Sequence[int],
        log_std_bounds: tuple[float, float],
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.trunk = nn.Identity() if trunk is None else trunk
        self.net = mlp(runs, obs_size, hidden, 2 * action_size)
        self.log_std_min, self.log_std_max = log_std_bounds

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(R, M, O) -> mean and log standard deviation of u, each (R, M, A)."""
        mean, raw = self.net(self.trunk(obs)).chunk(2, dim=-1)
        log_std = self.log_std_min + 0.5 * (self.log_std_max - self.log_std_min) * (torch.tanh(raw) + 1)
        return mean, log_std


def sample_action(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action by the reparameterisation trick, and its log-density.

    Args:
        mean: (..., A) of u.
        log_std: (..., A) of u.
        noise: (..., A) standard normal.

    Returns:
        a = tanh(u), (..., A), and log pi(a), (...).
    """
    u = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2) without cancellation where tanh saturates.
    log_jacobian = 2 * (math.log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), (log_normal - log_jacobian).sum(-1)


class SAC:
    """Soft actor-critic on the agent protocol."""

    name: ClassVar = "sac"
    Hyperparameters: ClassVar = SACHyperparameters
    obs_kinds: ClassVar[tuple[str, ...]] = ("state", "rgb")
    max_fleet: ClassVar = None

    def __init__(
        self, spec: AgentSpec, hyperparameters: SACHyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        if spec.obs_kind not in self.obs_kinds:
            raise UserError(
                f"{self.name} learns from {', '.join(self.obs_kinds)} observations, not {spec.obs_kind}: "
                f"use obs={self.obs_kinds[0]}"
            )
        self.hyperparameters = hp = hyperparameters
        self.seed_agent_steps = hp.seed_agent_steps
        self.replay = ReplaySpec(
            batch_size=hp.batch_size,
            length=2,
            capacity=hp.replay_capacity,
            draw="transition",
            finished_episodes_only=False,
        )
        self.runs = runs = len(seeds)
        self.device = device
        self.action_size = spec.action_size
        self.target_entropy = -float(spec.action_size)
        self.updates = 0

        self._build(spec, seeds)
        self.products = Products(hp.precision, device, self._modules().values())
        self.log_alpha = nn.Parameter(torch.full((runs, 1), math.log(hp.init_temperature), device=device))
        self.critic_optimizer = torch.optim.Adam(
            [*self.encoder.parameters(), *self.critic.parameters()], lr=hp.critic_lr, fused=True
        )
        self.policy_parameters = [*self.actor.parameters(), self.log_alpha]
        # The actor's and the temperature's losses share no parameter, so one step of one optimiser serves both.
        self.policy_optimizer = torch.optim.Adam(
            [
                {"params": list(self.actor.parameters()), "lr": hp.actor_lr},
                {"params": [self.log_alpha], "lr": hp.alpha_lr, "betas": (hp.alpha_beta1, 0.999)},
            ],
            fused=True,
        )
        self.policy_metrics: dict[str, Tensor] = {}
        self.explore_noise = Noise(seeds, "explore", device)
        self.learn_noise = Noise(seeds, "learn", device)

    def _build(self, spec: AgentSpec, seeds: Sequence[int]) -> None:
        """Networks and their initial weights. From states, encoders and trunks are the identity."""
        hp, runs = self.hyperparameters, self.runs
        hidden, bounds = [hp.hidden_dim] * hp.hidden_layers, (hp.log_std_min, hp.log_std_max)
        size = spec.obs_shape[0]
        self.encoder: nn.Module = nn.Identity()
        trunks: list[nn.Module] = [nn.Identity(), nn.Identity()]
        if spec.obs_kind == "rgb":
            size = hp.feature_dim
            self.encoder = convs = PixelEncoder(runs, spec.obs_shape, hp.num_channels, centre=0.0)
            trunks = [Trunk(runs, convs.features, size, tanh=False) for _ in trunks]
        self.actor = TanhGaussianActor(runs, size, spec.action_size, hidden, bounds, trunks[0])
        self.critic = TwinCritic(runs, size, spec.action_size, hidden, trunks[1])
        for run, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(derive_seed(seed, "init"))
            for network in (self.actor, self.encoder, self.critic.trunk):
                orthogonal_init(network, slice(run, run + 1), generator, kernel=delta_orthogonal_kernel)
            orthogonal_init(self.critic.net, slice(run * CRITICS, (run + 1) * CRITICS), generator)
        for network in (self.encoder, self.actor, self.critic):
            network.to(self.device)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        # What the critics see through; it has a slow copy with a rate of its own.
        self.encoder_parameters = [*self.encoder.parameters(), *self.critic.trunk.parameters()]
        self.target_encoder_parameters = [*self.target_encoder.parameters(), *self.target.trunk.parameters()]

    @torch.no_grad()
    @in_own_precision
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """(R, N, ...) -> (R, N, A): a draw from the policy, or tanh of its mean where it does not explore."""
        mean, log_std = self.actor(self.encoder(obs))
        if not explore:
            return torch.tanh(mean)
        return sample_action(mean, log_std, self.explore_noise.normal(*mean.shape[1:]))[0]

    def updates_due(self, before: int, after: int) -> int:
        """One update for each agent step that was not random."""
        return max(0, after - self.seed_agent_steps) - max(0, before - self.seed_agent_steps)

    @in_own_precision
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics, and of the actor, the temperature and the target critics when they are due."""
        obs, next_obs = batch.obs.unbind(1)  # (R, B, ...)
        return self.learn(obs, next_obs, batch)

    def learn(self, obs: Tensor, next_obs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The update on observations (R, B, ...) before and after the first transitions of `batch`."""
        hp = self.hyperparameters
        action, reward, terminated = batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0]
        alpha = self.log_alpha.detach().exp()  # (R, 1), of before this update

        # Critics
        target_q = self.td_target(next_obs, reward, terminated, alpha)  # (R, B)
        q = self.critic(self.encoder(obs), action)  # (R, Q, B)
        critic_loss = (q - target_q[:, None]).square().mean(2).sum(1)  # (R,)
        self.critic_optimizer.zero_grad()
        critic_loss.sum().backward()
        self.critic_optimizer.step()

        if self.updates % hp.actor_every == 0:
            self.policy_metrics = self.update_policy(obs, alpha)
        if self.updates % hp.target_every == 0:
            ema_update(self.target.net.parameters(), self.critic.net.parameters(), hp.tau)
            if self.encoder_parameters:
                ema_update(self.target_encoder_parameters, self.encoder_parameters, hp.encoder_tau)
        self.updates += 1
        return {
            "critic_loss": critic_loss.detach(),
            **self.policy_metrics,
            "alpha": alpha.squeeze(1),
            "q": q.detach().mean((1, 2)),
        }

    def update_policy(self, obs: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """One step of the actor and the temperature, with the critics just updated; the convolutions stay."""
        with torch.no_grad():
            features = self.encoder(obs)  # (R, B, F)
        mean, log_std = self.actor(features)
        policy_action, log_prob = sample_action(mean, log_std, self.learn_noise.normal(*mean.shape[1:]))
        policy_q = self.critic(features, policy_action).amin(1)  # (R, B)
        actor_loss = (alpha * log_prob - policy_q).mean(1)

        # Temperature, on the same actions. The exponential is part of the loss, so its gradient carries a factor alpha.
        entropy = -log_prob.detach().mean(1)
        alpha_loss = self.log_alpha.squeeze(1).exp() * (entropy - self.target_entropy)
        self.policy_optimizer.zero_grad()
        (actor_loss + alpha_loss).sum().backward(inputs=self.policy_parameters)
        self.policy_optimizer.step()
        return {"actor_loss": actor_loss.detach(), "alpha_loss": alpha_loss.detach(), "entropy": entropy}

    @torch.no_grad()
    def td_target(self, next_obs: Tensor, reward: Tensor, terminated: Tensor, alpha: Tensor) -> Tensor:
        """r + discount * (min Q_target(s', a') - alpha log pi(a')), a' ~ pi(s'); only r where the episode terminated.

        A time limit is no termination: it bootstraps. Shapes (R, B, ...), (R, B), (R, B), (R, 1) -> (R, B).
        """
        mean, log_std = self.actor(self.encoder(next_obs))
        next_action, next_log_prob = sample_action(mean, log_std, self.learn_noise.normal(*mean.shape[1:]))
        next_value = self.target(self.target_encoder(next_obs), next_action).amin(1) - alpha * next_log_prob
        return reward + (1 - terminated) * self.hyperparameters.discount * next_value

    # States

    def _modules(self) -> dict[str, nn.Module]:
        names = ("encoder", "target_encoder", "actor", "critic", "target")
        return {name: getattr(self, name) for name in names}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {name: getattr(self, name) for name in ("critic_optimizer", "policy_optimizer")}

    def state_dict(self, run: int) -> dict[str, Any]:
        """All that one run needs to go on, alone or in another fleet."""
        return {
            **{name: module_state(module, run, self.runs) for name, module in self._modules().items()},
            **{name: optimizer_state(optimizer, run, self.runs) for name, optimizer in self._optimizers().items()},
            "log_alpha": self.log_alpha[run].detach().cpu().clone(),
            "explore_noise": self.explore_noise.state(run),
            "learn_noise": self.learn_noise.state(run),
            "updates": self.updates,
            # Reported until the actor's next step, which may not be the next update.
            "policy_metrics": {name: values[run].cpu().clone() for name, values in self.policy_metrics.items()},
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order.

        Raises:
            ValueError: as many states as runs are needed, and all after the same number of updates.
        """
        self.updates = lockstep_count(states, self.runs)
        for name, module in self._modules().items():
            load_module_states(module, [state[name] for state in states])
        for name, optimizer in self._optimizers().items():
            load_optimizer_states(optimizer, [state[name] for state in states])
        with torch.no_grad():
            self.log_alpha.copy_(torch.stack([state["log_alpha"] for state in states]))
        self.explore_noise.load([state["explore_noise"] for state in states])
        self.learn_noise.load([state["learn_noise"] for state in states])
        self.policy_metrics = {
            name: torch.stack([state["policy_metrics"][name] for state in states]).to(self.device)
            for name in states[0]["policy_metrics"]
        }
