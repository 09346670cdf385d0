"""SimbaV2: soft actor-critic with networks on the unit sphere and a distributional critic, R runs in lockstep.

Lee et al. 2025 (arXiv 2502.15280): weights projected to norm 1 after each step, features on the sphere, observations
and rewards scaled by running statistics, learning rates that fall.

Differences from the authors' program:
- An observation enters the running statistics right after it was acted on, not right before.
- The learning rate falls over a million env steps, the authors' budget, and stays there: a longer budget is the same
  run further on, so the schedule cannot depend on it (`lr_decay_agent_steps` changes it).
- The action repeat is the task table's: 1 on MyoSuite, where the authors have 2. Meta-World and ManiSkill2, which they
  do not have, follow their rules: one update for each env step, discount by the length of an episode.
- Success is that of an episode's last step, as everywhere in this suite; theirs is that of any step.
- One step of returns only.

Shapes: R runs, N environments, B batch, O observation, A action, K critics, V bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.nn import (
    ema_update,
    load_module_states,
    load_optimizer_states,
    lockstep_count,
    module_state,
    optimizer_state,
)
from agents.noise import Noise
from agents.protocol import AgentSpec, Batch, ReplaySpec
from baselines.hyperparameters.simbav2 import SimbaV2 as SimbaV2Hyperparameters
from baselines.hyperspherical import Head, RunningMoments, body, initialise, project
from baselines.sac import sample_action
from bench.errors import UserError
from bench.seeding import derive_seed

VAR_EPS = 1e-8


class Actor(nn.Module):
    """A tanh-Gaussian policy on the sphere, `(R, M, O)` -> mean and log standard deviation, `(R, M, A)` each."""

    def __init__(self, runs: int, obs_size: int, action_size: int, hp: SimbaV2Hyperparameters) -> None:
        super().__init__()
        self.body = body(runs, obs_size, hp.actor_dim, hp.actor_blocks, hp.shift)
        self.mean = Head(runs, hp.actor_dim, action_size)
        self.log_std = Head(runs, hp.actor_dim, action_size)
        self.low, self.high = hp.log_std_min, hp.log_std_max

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        z = self.body(obs)
        return self.mean(z), self.low + 0.5 * (self.high - self.low) * (self.log_std(z).tanh() + 1)


class Critic(nn.Module):
    """K distributions of returns a run; members of a run are neighbours on the first axis."""

    def __init__(self, runs: int, members: int, inputs: int, hp: SimbaV2Hyperparameters) -> None:
        super().__init__()
        self.members = members
        self.body = body(runs * members, inputs, hp.critic_dim, hp.critic_blocks, hp.shift)
        self.head = Head(runs * members, hp.critic_dim, hp.num_bins)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(R, B, O), (R, B, A) -> log-probabilities (R, K, B, V)."""
        x = torch.cat([obs, action], -1).repeat_interleave(self.members, dim=0)
        return self.head(self.body(x)).unflatten(0, (-1, self.members)).log_softmax(-1)


def project_distribution(probs: Tensor, atoms: Tensor, vmax: float) -> Tensor:
    """Mass `probs` (..., V) at `atoms` (..., V), clipped to ±vmax, shared linearly by the neighbours of V even bins."""
    last = probs.shape[-1] - 1
    position = (atoms.clamp(-vmax, vmax) + vmax) * (last / (2 * vmax))
    lower = position.floor().clamp(0, last - 1)  # NaN stays NaN in the weight; its index is made valid below
    upper_weight = position - lower
    index = lower.nan_to_num().long()
    projected = torch.zeros_like(probs)
    projected.scatter_add_(-1, index, probs * (1 - upper_weight))
    return projected.scatter_add_(-1, index + 1, probs * upper_weight)


class SimbaV2:
    """SimbaV2 on the agent protocol. Raises UserError for observations that are no states."""

    Hyperparameters: ClassVar = SimbaV2Hyperparameters
    obs_kinds: ClassVar = ("state",)
    max_fleet: ClassVar = None

    def __init__(
        self, spec: AgentSpec, hyperparameters: SimbaV2Hyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        if spec.obs_kind not in self.obs_kinds:
            raise UserError(f"simbav2 learns from {', '.join(self.obs_kinds)} observations, not from {spec.obs_kind}")
        self.hp = hp = hyperparameters
        self.runs, self.device = len(seeds), device
        self.seed_agent_steps = hp.seed_agent_steps
        self.replay = ReplaySpec(hp.batch_size, 2, hp.replay_capacity, "transition", finished_episodes_only=False)
        self.gamma = hp.discount(spec.episode_agent_steps)
        self.target_entropy = hp.target_entropy * spec.action_size
        self.lr_decay_updates = hp.lr_decay_agent_steps * hp.updates_per_agent_step
        self.updates = 0
        obs_size, action_size = spec.obs_shape[0], spec.action_size

        members = 2 if hp.double_q else 1
        self.actor = Actor(self.runs, obs_size, action_size, hp)
        self.critic = Critic(self.runs, members, obs_size + action_size, hp)
        for run, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(derive_seed(seed, "init"))
            initialise(self.actor, [run], generator)
            initialise(self.critic, range(run * members, (run + 1) * members), generator)
        self.actor.to(device)
        self.critic.to(device)
        self.target = Critic(self.runs, members, obs_size + action_size, hp).to(device).requires_grad_(False)
        self.target.load_state_dict(self.critic.state_dict())
        self.log_alpha = nn.Parameter(torch.full((self.runs, 1), math.log(hp.init_temperature), device=device))
        self.bins = torch.linspace(-hp.vmax, hp.vmax, hp.num_bins, device=device)

        self.policy_parameters = [*self.actor.parameters(), self.log_alpha]
        self.policy_optimizer = torch.optim.Adam(self.policy_parameters, lr=hp.lr_start, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=hp.lr_start, fused=True)
        self.explore_noise = Noise(seeds, "explore", device)
        self.learn_noise = Noise(seeds, "learn", device)

        self.obs_moments = RunningMoments(self.runs, obs_size, device)
        self.return_moments = RunningMoments(self.runs, 1, device)
        # The discounted sum of rewards so far in each environment, and the largest that it has been.
        self.returns = torch.zeros(self.runs, spec.num_envs, dtype=torch.float64, device=device)
        self.largest_return = torch.zeros(self.runs, 1, dtype=torch.float64, device=device)

    # Running statistics

    @torch.no_grad()
    def observe(self, obs: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor) -> None:
        """Follow the observations acted on and the discounted sum of rewards.

        As the authors have it, the sum is cut by the end of the step that is taken in: the last reward of an episode
        begins the next one's sum.
        """
        self.obs_moments.add(obs)
        goes_on = ~(terminated | truncated)
        self.returns = self.gamma * goes_on * self.returns + reward
        self.return_moments.add(self.returns[..., None])
        self.largest_return = torch.maximum(self.largest_return, self.returns.abs().amax(1, keepdim=True))

    def normalise(self, obs: Tensor) -> Tensor:
        """(obs - mean) / sqrt(var + 1e-8), (R, ..., O)."""
        shape = (self.runs, *[1] * (obs.dim() - 2), -1)
        mean, var = (moment.view(shape).to(obs.dtype) for moment in (self.obs_moments.mean, self.obs_moments.var))
        return (obs - mean) * (var + VAR_EPS).rsqrt()

    def reward_scale(self) -> Tensor:
        """What rewards are divided by, (R, 1): the returns' deviation, or what brings the largest to vmax."""
        deviation = (self.return_moments.var + VAR_EPS).sqrt()
        return torch.maximum(deviation, self.largest_return / self.hp.vmax).float()

    # Acting and learning

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """(R, N, O) -> (R, N, A): a draw from the policy, or tanh of its mean where it does not explore."""
        mean, log_std = self.actor(self.normalise(obs))
        if not explore:
            return mean.tanh()
        return sample_action(mean, log_std, self.explore_noise.normal(*mean.shape[1:]))[0]

    def updates_due(self, before: int, after: int) -> int:
        """`updates_per_agent_step` for each agent step that was not random."""
        steps = max(0, after - self.seed_agent_steps) - max(0, before - self.seed_agent_steps)
        return steps * self.hp.updates_per_agent_step

    def learning_rate(self) -> float:
        """That of the next update."""
        done = min(self.updates / self.lr_decay_updates, 1.0)
        return self.hp.lr_start + (self.hp.lr_end - self.hp.lr_start) * done

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the actor, the temperature, the critic (with the two just updated) and the target critic."""
        for optimizer in (self.policy_optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
        obs, next_obs = self.normalise(batch.obs).unbind(1)  # (R, B, O)
        action, terminated = batch.action[:, 0], batch.terminated[:, 0]
        reward = batch.reward[:, 0] / self.reward_scale()

        # Actor and temperature; their losses share no parameter.
        mean, log_std = self.actor(obs)
        policy_action, log_prob = sample_action(mean, log_std, self.learn_noise.normal(*mean.shape[1:]))
        policy_q = (self.critic(obs, policy_action).exp() @ self.bins).amin(1)  # (R, B)
        actor_loss = (self.log_alpha.detach().exp() * log_prob - policy_q).mean(1)
        entropy = -log_prob.detach().mean(1)
        alpha_loss = self.log_alpha.squeeze(1).exp() * (entropy - self.target_entropy)
        self.policy_optimizer.zero_grad()
        (actor_loss + alpha_loss).sum().backward(inputs=self.policy_parameters)
        self.policy_optimizer.step()
        project(self.actor)

        # Critic
        target = self.target_distribution(next_obs, reward, terminated)  # (R, B, V)
        log_probs = self.critic(obs, action)  # (R, K, B, V)
        critic_loss = -(target[:, None] * log_probs).sum(-1).mean(2).sum(1)  # (R,)
        self.critic_optimizer.zero_grad()
        critic_loss.sum().backward()
        self.critic_optimizer.step()
        project(self.critic)

        ema_update(self.target.parameters(), self.critic.parameters(), self.hp.tau)
        self.updates += 1
        return {
            "critic_loss": critic_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "alpha_loss": alpha_loss.detach(),
            "alpha": self.log_alpha.detach().exp().squeeze(1),
            "entropy": entropy,
            "q": (log_probs.detach().exp() @ self.bins).mean((1, 2)),
        }

    @torch.no_grad()
    def target_distribution(self, next_obs: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """The distribution of r + gamma (Z - alpha log pi(a')), a' ~ pi(s'), or of r where the episode terminated.

        Z is the target critic's at (s', a'); of two, the whole distribution with the smaller mean. A time limit is no
        termination: it bootstraps. Shapes (R, B, O), (R, B) scaled, (R, B) -> (R, B, V).
        """
        mean, log_std = self.actor(next_obs)
        action, log_prob = sample_action(mean, log_std, self.learn_noise.normal(*mean.shape[1:]))
        probs = self.target(next_obs, action).exp()  # (R, K, B, V)
        smaller = (probs @ self.bins).argmin(1)  # (R, B)
        probs = probs.gather(1, smaller[:, None, :, None].expand(-1, 1, -1, probs.shape[-1])).squeeze(1)
        value = self.bins - (self.log_alpha.exp() * log_prob)[..., None]
        atoms = reward[..., None] + self.gamma * (1 - terminated[..., None]) * value
        return project_distribution(probs, atoms, self.hp.vmax)

    # States

    def state_dict(self, run: int) -> dict[str, Any]:
        """All that one run needs to go on, alone or in another fleet."""
        return {
            **{name: module_state(getattr(self, name), run, self.runs) for name in ("actor", "critic", "target")},
            "log_alpha": self.log_alpha[run].detach().cpu().clone(),
            "policy_optimizer": optimizer_state(self.policy_optimizer, run, self.runs),
            "critic_optimizer": optimizer_state(self.critic_optimizer, run, self.runs),
            "explore_noise": self.explore_noise.state(run),
            "learn_noise": self.learn_noise.state(run),
            "obs_moments": self.obs_moments.state(run),
            "return_moments": self.return_moments.state(run),
            "returns": self.returns[run].cpu().clone(),
            "largest_return": self.largest_return[run].cpu().clone(),
            "updates": self.updates,
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order.

        Raises:
            ValueError: as many states as runs are needed, and all after the same number of updates.
        """
        self.updates = lockstep_count(states, self.runs)
        for name in ("actor", "critic", "target"):
            load_module_states(getattr(self, name), [state[name] for state in states])
        with torch.no_grad():
            self.log_alpha.copy_(torch.stack([state["log_alpha"] for state in states]))
        for name in ("policy_optimizer", "critic_optimizer"):
            load_optimizer_states(getattr(self, name), [state[name] for state in states])
        for name in ("explore_noise", "learn_noise", "obs_moments", "return_moments"):
            getattr(self, name).load([state[name] for state in states])
        for name in ("returns", "largest_return"):
            setattr(self, name, torch.stack([state[name] for state in states]).to(self.device))
