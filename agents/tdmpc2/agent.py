"""TD-MPC2 (Hansen, Su and Wang, ICLR 2024) for one task from state observations.

Shapes: R runs, N environments, B batch, H horizon, S sampled action sequences, P of them from the policy, E elites,
O observation, A action, L latent, K Q-functions, V bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.distributions import TwoHot, gaussian_log_prob, squash_log_det
from agents.nn import clip_grad_norms, load_module_states, load_optimizer_states, module_state, optimizer_state
from agents.noise import Noise
from agents.protocol import AgentSpec, Batch, ReplaySpec
from agents.tdmpc2.hyperparameters import Hyperparameters as TDMPC2Hyperparameters
from agents.tdmpc2.scale import RunningScale
from agents.tdmpc2.world_model import WorldModel
from bench.errors import UserError

POLICY_ADAM_EPS = 1e-5


class TDMPC2:
    """MPPI planning in the latent space of a decoder-free world model, with a policy prior and a terminal value.

    Args:
        spec: sizes of the environments.
        hyperparameters: see `Hyperparameters`.
        seeds: the seed of each run.
        device: where to compute.

    Raises:
        UserError: pixels, a horizon longer than an episode, or a seed phase that ends before the first episode does.
    """

    Hyperparameters: ClassVar[type[TDMPC2Hyperparameters]] = TDMPC2Hyperparameters
    obs_kinds: ClassVar[tuple[str, ...]] = ("state",)
    max_fleet: ClassVar[int | None] = None

    def __init__(
        self, spec: AgentSpec, hyperparameters: TDMPC2Hyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        self.hp = hp = hyperparameters
        self.runs, self.action_size, self.device = len(seeds), spec.action_size, device
        if spec.obs_kind not in self.obs_kinds:
            raise UserError(f"tdmpc2 learns from {', '.join(self.obs_kinds)} observations, not from {spec.obs_kind}")
        if hp.horizon > spec.episode_agent_steps:
            raise UserError(
                f"horizon {hp.horizon} is longer than an episode ({spec.episode_agent_steps} agent steps): shorten it"
            )
        self.seed_phase = hp.seed_phase(spec.num_envs, spec.episode_agent_steps)
        # The authors act at random once more after the seed phase; the burst of updates follows that action.
        self.seed_agent_steps = self.seed_phase + 1
        self.replay = ReplaySpec(hp.batch_size, hp.horizon + 1, hp.buffer_size, "episode", finished_episodes_only=True)

        self.gamma = hp.discount(spec.episode_agent_steps)
        self.iterations = hp.plan_iterations(spec.action_size)
        self.model = WorldModel(spec.obs_shape[0], spec.action_size, hp, seeds, device)
        self.two_hot = TwoHot(hp.num_bins, hp.vmin, hp.vmax, device)
        self.scale = RunningScale(self.runs, hp.tau, device)
        self.rho = hp.rho ** torch.arange(hp.horizon + 1, device=device)  # (H+1,)
        self.noise = {stream: Noise(seeds, stream, device) for stream in ("learn", "explore", "evaluate")}
        # Means of the last plans, (R, H, N, A); evaluation has a memory of its own, and any number of environments.
        self.plan_means = {
            stream: torch.zeros(self.runs, hp.horizon, spec.num_envs, spec.action_size, device=device)
            for stream in ("explore", "evaluate")
        }

        model = self.model
        others = [*model.dynamics.parameters(), *model.reward_head.parameters(), *model.online_q.parameters()]
        self.model_parameters = [*model.encoder.parameters(), *others]
        self.policy_parameters = list(model.policy_head.parameters())
        groups = [{"params": list(model.encoder.parameters()), "lr": hp.lr * hp.enc_lr_scale}, {"params": others}]
        self.optimizer = torch.optim.Adam(groups, lr=hp.lr, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy_parameters, lr=hp.lr, eps=POLICY_ADAM_EPS, fused=True)

    # Acting

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """Plan an action for each environment, or take the policy's where `mpc` is off.

        A run whose parameters have diverged gives NaN actions; the others are not touched by it.
        """
        if self.hp.mpc:
            return self.plan(obs, first, explore)
        mean, log_std = self.model.policy(self.model.encode(obs))  # (R, N, A)
        if explore:
            mean = mean + self.noise["explore"].normal(*mean.shape[1:]) * log_std.exp()
        return mean.tanh()

    def plan(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """Model predictive path integral control (MPPI) in latent space, for all runs and environments at once.

        Args:
            obs: (R, N, O).
            first: (R, N) bool; there the plan starts from zero instead of the previous plan.
            explore: whether to add noise to the action. Without it the action is still drawn among the elites.

        Returns:
            (R, N, A) in [-1, 1].
        """
        hp, stream = self.hp, "explore" if explore else "evaluate"
        noise = self.noise[stream]
        num_envs = obs.shape[1]
        z = self.model.encode(obs)  # (R, N, L)

        # Policy trajectories
        policy_actions = self.policy_trajectories(z, noise)  # (R, H, N, P, A)

        # Warm start
        mean = self.warm_start(stream, first)  # (R, H, N, A)
        std = torch.full_like(mean, hp.max_std)

        # Iterate MPPI
        z = z[:, :, None].expand(-1, -1, hp.num_samples, -1)  # (R, N, S, L)
        for _ in range(self.iterations):
            # Sample action sequences and evaluate them
            eps = noise.normal(hp.horizon, num_envs, hp.num_samples - hp.num_pi_trajs, self.action_size)
            sampled = (mean[:, :, :, None] + std[:, :, :, None] * eps).clamp(-1, 1)
            actions = torch.cat([policy_actions, sampled], 3)  # (R, H, N, S, A)
            value = self.estimate_value(z, actions, noise)  # (R, N, S)

            # Refit mean and standard deviation to the elites
            elite_value, index = value.topk(hp.num_elites, dim=2)  # (R, N, E)
            index = index[:, None, :, :, None].expand(-1, hp.horizon, -1, -1, self.action_size)
            elites = actions.gather(3, index)  # (R, H, N, E, A)
            weight = (hp.temperature * elite_value).softmax(2)  # (R, N, E)
            w = weight[:, None, :, :, None]
            mean = (w * elites).sum(3)  # (R, H, N, A)
            std = (w * (elites - mean[:, :, :, None]).square()).sum(3).sqrt().clamp(hp.min_std, hp.max_std)
        self.plan_means[stream] = mean

        # Draw an elite by its weight (Gumbel-max) and take its first action
        pick = (weight.log() + noise.gumbel(num_envs, hp.num_elites)).argmax(2)  # (R, N)
        index = pick[:, :, None, None].expand(-1, -1, 1, self.action_size)
        action = elites[:, 0].gather(2, index).squeeze(2)  # (R, N, A)
        if explore:
            action = action + std[:, 0] * noise.normal(num_envs, self.action_size)
        return action.clamp(-1, 1)

    def policy_trajectories(self, z: Tensor, noise: Noise) -> Tensor:
        """Action sequences (R, H, N, P, A) of the policy, rolled out in the model from `z` (R, N, L)."""
        z = z[:, :, None].expand(-1, -1, self.hp.num_pi_trajs, -1)  # (R, N, P, L)
        actions = []
        for t in range(self.hp.horizon):
            actions.append(self.sample_action(z, noise))
            if t + 1 < self.hp.horizon:
                z = self.model.next(z, actions[-1])
        return torch.stack(actions, 1)

    def warm_start(self, stream: str, first: Tensor) -> Tensor:
        """The previous plan's mean moved on by one agent step, zero where an episode starts (R, H, N, A)."""
        previous = self.plan_means[stream]
        if previous.shape[2] != first.shape[1]:
            # Other environments than last time: there is nothing to go on from.
            previous = previous.new_zeros(self.runs, self.hp.horizon, first.shape[1], self.action_size)
        shifted = torch.cat([previous[:, 1:], torch.zeros_like(previous[:, :1])], 1)
        return torch.where(first[:, None, :, None], 0.0, shifted)

    def estimate_value(self, z: Tensor, actions: Tensor, noise: Noise) -> Tensor:
        """Predicted return (R, N, S) of action sequences (R, H, N, S, A) from `z` (R, N, S, L).

        Rewards of the model over the horizon, then the mean of two of the Q-functions: one pair for each run and call.
        """
        value: Tensor | float = 0.0
        discount = 1.0
        for t in range(self.hp.horizon):
            value = value + discount * self.two_hot.decode(self.model.reward(z, actions[:, t]))
            z = self.model.next(z, actions[:, t])
            discount *= self.gamma
        action = self.sample_action(z, noise)
        q = self.two_hot.decode(self.model.q_heads(z, action, noise.choose(2, self.hp.num_q)))  # (R, 2, N, S)
        return (value + discount * q.mean(1)).nan_to_num(nan=0.0)

    def sample_action(self, z: Tensor, noise: Noise) -> Tensor:
        """An action (R, ..., A) of the policy in `z` (R, ..., L)."""
        mean, log_std = self.model.policy(z)
        return (mean + noise.normal(*mean.shape[1:]) * log_std.exp()).tanh()

    # Learning

    def updates_due(self, before: int, after: int) -> int:
        """Updates owed between two counts of agent steps.

        After `seed_agent_steps` (one more than the seed phase) comes a burst of as many updates as the seed phase had
        agent steps; each further agent step owes one.
        """
        return self._updates_by(after) - self._updates_by(before)

    def _updates_by(self, agent_steps: int) -> int:
        return agent_steps - 1 if agent_steps > self.seed_phase else 0

    def update(self, batch: Batch) -> Mapping[str, Tensor]:
        """One step of the world model, the policy and the target Q-functions of every run."""
        hp, model = self.hp, self.model
        rho = self.rho[: hp.horizon] / hp.horizon  # (H,)

        # Targets
        with torch.no_grad():
            next_z = model.encode(batch.obs[:, 1:])  # (R, H, B, L)
            td_target = self.td_target(next_z, batch.reward, batch.terminated)  # (R, H, B)

        # Latent rollout
        latents = [model.encode(batch.obs[:, 0])]
        for t in range(hp.horizon):
            latents.append(model.next(latents[-1], batch.action[:, t]))
        zs = torch.stack(latents, 1)  # (R, H+1, B, L)

        # Losses, each (R,)
        consistency = (zs[:, 1:] - next_z).square().mean((2, 3)) @ rho
        reward_logits = model.reward(zs[:, :-1], batch.action)  # (R, H, B, V)
        reward = self.two_hot.cross_entropy(reward_logits, batch.reward).mean(2) @ rho
        q_logits = model.q(zs[:, :-1], batch.action, self._dropout_mask(hp.num_q, zs[:, :-1]))  # (R, K, H, B, V)
        value = self.two_hot.cross_entropy(q_logits, td_target[:, None]).mean((1, 3)) @ rho
        total = hp.consistency_coef * consistency + hp.reward_coef * reward + hp.value_coef * value

        # World model step
        total.sum().backward()
        grad_norm = clip_grad_norms(self.model_parameters, hp.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        policy_metrics = self.update_policy(zs.detach())
        model.update_target(hp.tau)
        losses = {"consistency": consistency, "reward": reward, "value": value, "total": total}
        return {
            **{f"{name}_loss": loss.detach() for name, loss in losses.items()},
            "grad_norm": grad_norm,
            **policy_metrics,
        }

    @torch.no_grad()
    def td_target(self, next_z: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """r + gamma (1 - terminated) min over two target Q-functions, one pair for each run; all (R, H, B)."""
        noise = self.noise["learn"]
        action = self.sample_action(next_z, noise)
        heads = noise.choose(2, self.hp.num_q)
        q = self.two_hot.decode(self.model.q_heads(next_z, action, heads, target=True))  # (R, 2, H, B)
        return reward + self.gamma * (1 - terminated) * q.amin(1)

    def update_policy(self, zs: Tensor) -> dict[str, Tensor]:
        """Maximise scaled Q and entropy along the latent rollout `zs` (R, H+1, B, L)."""
        hp, noise = self.hp, self.noise["learn"]
        mean, log_std = self.model.policy(zs)  # (R, H+1, B, A)
        eps = noise.normal(*mean.shape[1:])
        action = (mean + eps * log_std.exp()).tanh()
        heads = noise.choose(2, hp.num_q)
        keep = self._dropout_mask(2, zs)
        q = self.two_hot.decode(self.model.q_heads(zs, action, heads, keep=keep)).mean(1)  # (R, H+1, B)
        self.scale.update(q[:, 0].detach())

        # The entropy in the loss is that of the Gaussian before tanh, times the size of the action.
        log_prob = gaussian_log_prob(eps, log_std)  # (R, H+1, B)
        scaled_entropy = -self.action_size * log_prob
        objective = hp.entropy_coef * scaled_entropy + q / self.scale.value[:, None, None]
        loss = -objective.mean(2) @ (self.rho / (hp.horizon + 1))  # (R,)

        loss.sum().backward()
        grad_norm = clip_grad_norms(self.policy_parameters, hp.grad_clip_norm)
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad(set_to_none=True)
        return {
            "pi_loss": loss.detach(),
            "pi_grad_norm": grad_norm,
            "pi_entropy": (squash_log_det(action.detach()) - log_prob.detach()).mean((1, 2)),
            "pi_scaled_entropy": scaled_entropy.detach().mean((1, 2)),
            "pi_scale": self.scale.value,
        }

    def _dropout_mask(self, heads: int, z: Tensor) -> Tensor | None:
        """(R, heads, M, hidden) for the first layer of Q-functions at `z` (R, T, B, L), M = T B; None if p = 0."""
        if self.hp.dropout == 0:
            return None
        return self.noise["learn"].dropout_mask(self.hp.dropout, heads, z.shape[1] * z.shape[2], self.hp.mlp_dim)

    # State

    def state_dict(self, run: int) -> dict[str, Any]:
        """Everything that run `run` needs to go on; see the protocol."""
        return {
            "model": module_state(self.model, run, self.runs),
            "optimizer": optimizer_state(self.optimizer, run, self.runs),
            "policy_optimizer": optimizer_state(self.policy_optimizer, run, self.runs),
            "scale": self.scale.value[run].cpu().clone(),
            "plan_means": {stream: mean[run].cpu().clone() for stream, mean in self.plan_means.items()},
            "noise": {stream: noise.state(run) for stream, noise in self.noise.items()},
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order."""
        load_module_states(self.model, [state["model"] for state in states])
        load_optimizer_states(self.optimizer, [state["optimizer"] for state in states])
        load_optimizer_states(self.policy_optimizer, [state["policy_optimizer"] for state in states])
        self.scale.value = torch.stack([state["scale"] for state in states]).to(self.device)
        for stream in self.plan_means:
            means = [state["plan_means"][stream] for state in states]
            self.plan_means[stream] = torch.stack(means).to(self.device)
        for stream, noise in self.noise.items():
            noise.load([state["noise"][stream] for state in states])
