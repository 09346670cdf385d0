"""Soft actor-critic with a learned temperature, R runs in lockstep.

Haarnoja et al. 2018 (arXiv 1812.05905), with the networks, constants and order of updates of pytorch_sac.
Shapes: R runs, N environments, B batch, O observation, A action, Q = 2 critics, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.nn import (
    Linear,
    ema_update,
    load_module_states,
    load_optimizer_states,
    module_state,
    optimizer_state,
)
from agents.noise import Noise
from agents.protocol import AgentSpec, Batch, ReplaySpec
from baselines.hyperparameters.sac import SAC as SACHyperparameters
from bench.errors import UserError
from bench.seeding import derive_seed

CRITICS = 2


def mlp(runs: int, inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """R networks of linear layers with ReLU in between, `(R, M, inputs) -> (R, M, outputs)`."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [Linear(runs, before, after), nn.ReLU()]
    return nn.Sequential(*layers, Linear(runs, sizes[-1], outputs))


@torch.no_grad()
def orthogonal_init(network: nn.Module, members: slice, generator: torch.Generator) -> None:
    """Draw the weights of some members of the run axis: orthogonal with gain 1, one member after the other."""
    for member in range(members.start, members.stop):
        for layer in network.modules():
            if isinstance(layer, Linear):
                # (out, in), as a single network would be drawn, turned to our (in, out).
                weight = torch.empty(layer.weight.shape[2], layer.weight.shape[1])
                layer.weight[member] = nn.init.orthogonal_(weight, generator=generator).T


class TanhGaussianActor(nn.Module):
    """A policy a = tanh(u), u ~ N(mean, std), for each run.

    Args:
        runs: R.
        obs_size: O.
        action_size: A.
        hidden: widths of the hidden layers.
        log_std_bounds: the log standard deviation lies between these, by a tanh.
    """

    def __init__(
        self, runs: int, obs_size: int, action_size: int, hidden: Sequence[int], log_std_bounds: tuple[float, float]
    ) -> None:
        super().__init__()
        self.net = mlp(runs, obs_size, hidden, 2 * action_size)
        self.log_std_min, self.log_std_max = log_std_bounds

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(R, M, O) -> mean and log standard deviation of u, each (R, M, A)."""
        mean, raw = self.net(obs).chunk(2, dim=-1)
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


class TwinCritic(nn.Module):
    """Two independent Q-functions a run; members of a run are neighbours on the first axis, (R * Q, ...)."""

    def __init__(self, runs: int, obs_size: int, action_size: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp(runs * CRITICS, obs_size + action_size, hidden, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(R, B, O), (R, B, A) -> (R, Q, B)."""
        x = torch.cat([obs, action], dim=-1).repeat_interleave(CRITICS, dim=0)  # (R * Q, B, O + A)
        return self.net(x).view(obs.shape[0], CRITICS, obs.shape[1])


class SAC:
    """Soft actor-critic on the agent protocol."""

    Hyperparameters: ClassVar = SACHyperparameters
    obs_kinds: ClassVar = ("state",)
    max_fleet: ClassVar = None

    def __init__(
        self, spec: AgentSpec, hyperparameters: SACHyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        if spec.obs_kind not in self.obs_kinds:
            raise UserError(
                f"sac learns from {', '.join(self.obs_kinds)} observations, not {spec.obs_kind}: use obs=state"
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

        obs_size, hidden = spec.obs_shape[0], [hp.hidden_dim] * hp.hidden_layers
        self.actor = TanhGaussianActor(runs, obs_size, spec.action_size, hidden, (hp.log_std_min, hp.log_std_max))
        self.critic = TwinCritic(runs, obs_size, spec.action_size, hidden)
        for run, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(derive_seed(seed, "init"))
            orthogonal_init(self.actor, slice(run, run + 1), generator)
            orthogonal_init(self.critic, slice(run * CRITICS, (run + 1) * CRITICS), generator)
        self.actor.to(device)
        self.critic.to(device)
        self.target = TwinCritic(runs, obs_size, spec.action_size, hidden).to(device).requires_grad_(False)
        self.target.load_state_dict(self.critic.state_dict())
        self.log_alpha = nn.Parameter(torch.full((runs, 1), math.log(hp.init_temperature), device=device))

        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=hp.critic_lr, fused=True)
        self.policy_parameters = [*self.actor.parameters(), self.log_alpha]
        # The actor's and the temperature's losses share no parameter, so one step of one optimiser serves both.
        self.policy_optimizer = torch.optim.Adam(
            [
                {"params": list(self.actor.parameters()), "lr": hp.actor_lr},
                {"params": [self.log_alpha], "lr": hp.alpha_lr},
            ],
            fused=True,
        )
        self.explore_noise = Noise(seeds, "explore", device)
        self.learn_noise = Noise(seeds, "learn", device)

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """(R, N, O) -> (R, N, A): a draw from the policy, or tanh of its mean where it does not explore."""
        mean, log_std = self.actor(obs)
        if not explore:
            return torch.tanh(mean)
        return sample_action(mean, log_std, self.explore_noise.normal(*mean.shape[1:]))[0]

    def updates_due(self, before: int, after: int) -> int:
        """One update for each agent step that was not random."""
        return max(0, after - self.seed_agent_steps) - max(0, before - self.seed_agent_steps)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics, the actor and the temperature, and of the target critics when it is due."""
        obs, next_obs = batch.obs.unbind(1)  # (R, B, O)
        action, reward, terminated = batch.action[:, 0], batch.reward[:, 0], batch.terminated[:, 0]
        alpha = self.log_alpha.detach().exp()  # (R, 1), of before this update

        # Critics
        target_q = self.td_target(next_obs, reward, terminated, alpha)  # (R, B)
        q = self.critic(obs, action)  # (R, Q, B)
        critic_loss = (q - target_q[:, None]).square().mean(2).sum(1)  # (R,)
        self.critic_optimizer.zero_grad()
        critic_loss.sum().backward()
        self.critic_optimizer.step()

        # Actor, with the critics just updated
        mean, log_std = self.actor(obs)
        policy_action, log_prob = sample_action(mean, log_std, self.learn_noise.normal(*mean.shape[1:]))
        policy_q = self.critic(obs, policy_action).amin(1)  # (R, B)
        actor_loss = (alpha * log_prob - policy_q).mean(1)

        # Temperature, on the same actions. The exponential is part of the loss, so its gradient carries a factor alpha.
        entropy = -log_prob.detach().mean(1)
        alpha_loss = self.log_alpha.squeeze(1).exp() * (entropy - self.target_entropy)
        self.policy_optimizer.zero_grad()
        (actor_loss + alpha_loss).sum().backward(inputs=self.policy_parameters)
        self.policy_optimizer.step()

        if self.updates % self.hyperparameters.target_every == 0:
            ema_update(self.target.parameters(), self.critic.parameters(), self.hyperparameters.tau)
        self.updates += 1
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "alpha_loss": alpha_loss.detach(),
            "alpha": alpha.squeeze(1),
            "entropy": entropy,
            "q": q.detach().mean((1, 2)),
        }

    @torch.no_grad()
    def td_target(self, next_obs: Tensor, reward: Tensor, terminated: Tensor, alpha: Tensor) -> Tensor:
        """r + discount * (min Q_target(s', a') - alpha log pi(a')), a' ~ pi(s'); only r where the episode terminated.

        A time limit is no termination: it bootstraps. Shapes (R, B, O), (R, B), (R, B), (R, 1) -> (R, B).
        """
        mean, log_std = self.actor(next_obs)
        next_action, next_log_prob = sample_action(mean, log_std, self.learn_noise.normal(*mean.shape[1:]))
        next_value = self.target(next_obs, next_action).amin(1) - alpha * next_log_prob
        return reward + (1 - terminated) * self.hyperparameters.discount * next_value

    def state_dict(self, run: int) -> dict[str, Any]:
        """All that one run needs to go on, alone or in another fleet."""
        return {
            "actor": module_state(self.actor, run, self.runs),
            "critic": module_state(self.critic, run, self.runs),
            "target": module_state(self.target, run, self.runs),
            "log_alpha": self.log_alpha[run].detach().cpu().clone(),
            "critic_optimizer": optimizer_state(self.critic_optimizer, run, self.runs),
            "policy_optimizer": optimizer_state(self.policy_optimizer, run, self.runs),
            "explore_noise": self.explore_noise.state(run),
            "learn_noise": self.learn_noise.state(run),
            "updates": self.updates,
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order.

        Raises:
            ValueError: as many states as runs are needed, and all after the same number of updates.
        """
        if len(states) != self.runs:
            raise ValueError(f"a fleet of {self.runs} needs as many states, not {len(states)}")
        if len({state["updates"] for state in states}) > 1:
            raise ValueError("runs with different numbers of updates cannot form one fleet")
        load_module_states(self.actor, [state["actor"] for state in states])
        load_module_states(self.critic, [state["critic"] for state in states])
        load_module_states(self.target, [state["target"] for state in states])
        with torch.no_grad():
            self.log_alpha.copy_(torch.stack([state["log_alpha"] for state in states]))
        load_optimizer_states(self.critic_optimizer, [state["critic_optimizer"] for state in states])
        load_optimizer_states(self.policy_optimizer, [state["policy_optimizer"] for state in states])
        self.explore_noise.load([state["explore_noise"] for state in states])
        self.learn_noise.load([state["learn_noise"] for state in states])
        self.updates = states[0]["updates"]
