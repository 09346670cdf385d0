"""DrQ-v2: an off-policy actor-critic on randomly shifted pixels with n-step returns, R runs in lockstep.

Yarats et al. 2021 (arXiv 2107.09645), with the networks, constants and order of updates of the authors' code. What
differs from it:
- an episode that the environment itself ended is not bootstrapped (theirs turns a discount of 0 into 1; it makes no
  difference on DMControl, where no episode ends before its time limit);
- evaluation has seeds of its own (theirs builds its environment with the training seed);
- one replay holds all finished episodes (theirs splits them over four loading processes, which draw whole batches from
  a quarter of the data and are a few updates behind);
- an update follows the environment's step instead of preceding it, as everywhere in this suite, and the action repeat
  is the task table's.

Shapes: R runs, N environments, B batch, n steps of a return, F features of the convolutions, A action, Q = 2 critics.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.augmentation import random_shift
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
from baselines.hyperparameters.drqv2 import DrQv2 as DrQv2Hyperparameters
from baselines.networks import CRITICS, PixelEncoder, Trunk, TwinCritic, mlp, orthogonal_init
from bench.errors import UserError
from bench.seeding import derive_seed

ACTION_EPS = 1e-6
"""Actions with noise stay this far from the ends of their range."""


def n_step_return(reward: Tensor, terminated: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Discounted sum of n rewards and the factor of the value that follows them.

    Args:
        reward: (R, n, B).
        terminated: (R, n, B), 1 where the environment ended by itself; nothing after it counts.
        discount: for each agent step.

    Returns:
        sum_i discount^i r_i and discount^n, both (R, B), with 0 for discount from a termination on.
    """
    total, factor = torch.zeros_like(reward[:, 0]), torch.ones_like(reward[:, 0])
    for step_reward, ended in zip(reward.unbind(1), terminated.unbind(1), strict=True):
        total = total + factor * step_reward
        factor = factor * discount * (1 - ended)
    return total, factor


def noisy_action(mean: Tensor, std: float, noise: Tensor, clip: float | None) -> Tensor:
    """mean + std * noise, kept within [-1, 1]; the gradient passes the bounds as if there were none.

    Args:
        mean: (..., A) in [-1, 1].
        std: standard deviation.
        noise: (..., A) standard normal.
        clip: largest size of std * noise; None: any.
    """
    eps = std * noise
    if clip is not None:
        eps = eps.clamp(-clip, clip)
    action = mean + eps
    return action + (action.clamp(-1 + ACTION_EPS, 1 - ACTION_EPS) - action).detach()


class DrQv2:
    """DrQ-v2 on the agent protocol."""

    Hyperparameters: ClassVar = DrQv2Hyperparameters
    obs_kinds: ClassVar[tuple[str, ...]] = ("rgb",)
    max_fleet: ClassVar = None

    def __init__(
        self, spec: AgentSpec, hyperparameters: DrQv2Hyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        self.hyperparameters = hp = hyperparameters
        _check(spec, hp)
        self.seed_agent_steps = hp.seed_agent_steps
        self.replay = ReplaySpec(
            batch_size=hp.batch_size,
            length=hp.n_step + 1,
            capacity=hp.replay_capacity,
            draw="episode",
            finished_episodes_only=True,
        )
        self.runs = runs = len(seeds)
        self.num_envs, self.action_size = spec.num_envs, spec.action_size
        self.acted = 0
        """Calls of `act` in training, each one agent step of every environment."""

        hidden = [hp.hidden_dim, hp.hidden_dim]
        self.encoder = PixelEncoder(runs, spec.obs_shape, hp.num_channels, centre=0.5)
        trunks = [Trunk(runs, self.encoder.features, hp.feature_dim, tanh=True) for _ in range(2)]
        self.actor = nn.Sequential(trunks[0], mlp(runs, hp.feature_dim, hidden, spec.action_size), nn.Tanh())
        self.critic = TwinCritic(runs, hp.feature_dim, spec.action_size, hidden, trunks[1])
        for run, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(derive_seed(seed, "init"))
            for network in (self.encoder, self.actor, self.critic.trunk):
                orthogonal_init(network, slice(run, run + 1), generator)
            orthogonal_init(self.critic.net, slice(run * CRITICS, (run + 1) * CRITICS), generator)
        for network in (self.encoder, self.actor, self.critic):
            network.to(device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self.products = Products(hp.precision, device, self._modules().values())

        self.actor_parameters = list(self.actor.parameters())
        # The encoder learns from the critics' loss alone, so one step of one optimiser serves both.
        critic_parameters = [*self.encoder.parameters(), *self.critic.parameters()]
        self.critic_optimizer = torch.optim.Adam(critic_parameters, lr=hp.lr, fused=True)
        self.actor_optimizer = torch.optim.Adam(self.actor_parameters, lr=hp.lr, fused=True)
        self.explore_noise = Noise(seeds, "explore", device)
        self.learn_noise = Noise(seeds, "learn", device)

    # Acting

    @torch.no_grad()
    @in_own_precision
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """(R, N, C, H, W) -> (R, N, A): the mean action, and noise that becomes less where it explores."""
        mean = self.actor(self.encoder(obs))
        if not explore:
            return mean
        action = noisy_action(mean, self.std, self.explore_noise.normal(*mean.shape[1:]), clip=None)
        self.acted += 1
        return action

    @property
    def agent_steps(self) -> int:
        """Of one run over its N environments, those of the seed phase included."""
        seeding = -(-self.seed_agent_steps // self.num_envs)  # calls that the random actions spared
        return (seeding + self.acted) * self.num_envs

    @property
    def std(self) -> float:
        """Standard deviation of the exploration noise at the present agent step."""
        hp = self.hyperparameters
        progress = min(self.agent_steps / hp.std_decay_agent_steps, 1.0)
        return hp.std_start + progress * (hp.std_end - hp.std_start)

    # Learning

    def updates_due(self, before: int, after: int) -> int:
        """One update every `update_every` agent steps after the random ones."""
        return self._updates_by(after) - self._updates_by(before)

    def _updates_by(self, agent_steps: int) -> int:
        return max(0, agent_steps - self.seed_agent_steps) // self.hyperparameters.update_every

    @in_own_precision
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics with the encoder, of the actor, and of the target critics."""
        hp, std = self.hyperparameters, self.std

        # Augment, each observation with a shift of its own
        obs = random_shift(batch.obs[:, 0], hp.shift_pad, self.learn_noise)  # (R, B, C, H, W)
        next_obs = random_shift(batch.obs[:, -1], hp.shift_pad, self.learn_noise)
        features = self.encoder(obs)  # (R, B, F)

        # Critics
        target_q = self.td_target(next_obs, batch.reward, batch.terminated, std)  # (R, B)
        q = self.critic(features, batch.action[:, 0])  # (R, Q, B)
        critic_loss = (q - target_q[:, None]).square().mean(2).sum(1)  # (R,)
        self.critic_optimizer.zero_grad()
        critic_loss.sum().backward()
        self.critic_optimizer.step()

        # Actor, with the critics just updated, on the features of before
        features = features.detach()
        mean = self.actor(features)  # (R, B, A)
        action = noisy_action(mean, std, self.learn_noise.normal(*mean.shape[1:]), hp.std_clip)
        actor_loss = -self.critic(features, action).amin(1).mean(1)  # (R,)
        self.actor_optimizer.zero_grad()
        actor_loss.sum().backward(inputs=self.actor_parameters)
        self.actor_optimizer.step()

        ema_update(self.target.parameters(), self.critic.parameters(), hp.tau)
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "q": q.detach().mean((1, 2)),
            "target_q": target_q.mean(1),
            "std": torch.full_like(actor_loss.detach(), std),
        }

    @torch.no_grad()
    def td_target(self, next_obs: Tensor, reward: Tensor, terminated: Tensor, std: float) -> Tensor:
        """The n-step return plus what min Q_target promises after it, at the policy's noisy action there.

        Shapes (R, B, C, H, W), (R, n, B), (R, n, B) -> (R, B).
        """
        features = self.encoder(next_obs)
        mean = self.actor(features)
        action = noisy_action(mean, std, self.learn_noise.normal(*mean.shape[1:]), self.hyperparameters.std_clip)
        total, factor = n_step_return(reward, terminated, self.hyperparameters.discount)
        return total + factor * self.target(features, action).amin(1)

    # States

    def _modules(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "actor": self.actor, "critic": self.critic, "target": self.target}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"critic_optimizer": self.critic_optimizer, "actor_optimizer": self.actor_optimizer}

    def state_dict(self, run: int) -> dict[str, Any]:
        """All that one run needs to go on, alone or in another fleet."""
        return {
            **{name: module_state(module, run, self.runs) for name, module in self._modules().items()},
            **{name: optimizer_state(optimizer, run, self.runs) for name, optimizer in self._optimizers().items()},
            "explore_noise": self.explore_noise.state(run),
            "learn_noise": self.learn_noise.state(run),
            "acted": self.acted,
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order.

        Raises:
            ValueError: as many states as runs are needed, and all after the same number of agent steps.
        """
        self.acted = lockstep_count(states, self.runs, "acted", "agent steps")
        for name, module in self._modules().items():
            load_module_states(module, [state[name] for state in states])
        for name, optimizer in self._optimizers().items():
            load_optimizer_states(optimizer, [state[name] for state in states])
        self.explore_noise.load([state["explore_noise"] for state in states])
        self.learn_noise.load([state["learn_noise"] for state in states])


def _check(spec: AgentSpec, hp: DrQv2Hyperparameters) -> None:
    if spec.obs_kind not in DrQv2.obs_kinds:
        raise UserError(
            f"drqv2 learns from {', '.join(DrQv2.obs_kinds)} observations, not {spec.obs_kind}: use obs=rgb"
        )
    if hp.n_step > spec.episode_agent_steps:
        raise UserError(
            f"n_step {hp.n_step} is longer than an episode ({spec.episode_agent_steps} agent steps): shorten it"
        )
    shortest = spec.num_envs * spec.episode_agent_steps
    if hp.seed_agent_steps < shortest:
        raise UserError(
            f"seed_agent_steps {hp.seed_agent_steps} ends before every environment has finished an episode: give at "
            f"least {shortest} ({spec.num_envs} x {spec.episode_agent_steps} agent steps)"
        )
