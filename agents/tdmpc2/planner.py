"""Planning of TD-MPC2: model predictive path integral control (MPPI) in the latent space of the world model.

Shapes: R runs, N environments, H horizon, S sampled action sequences, P of them from the policy, E elites, A action,
L latent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from agents.distributions import SymlogScalar, TwoHot
from agents.mppi import draw_first_action, refit
from agents.noise import Noise
from agents.tdmpc2.hyperparameters import Hyperparameters
from agents.tdmpc2.tasks import TaskContext
from agents.tdmpc2.world_model import WorldModel


class Rollout(NamedTuple):
    """What the model predicts for some action sequences."""

    reward: Tensor
    """(R, N, S), discounted and summed over the horizon."""
    discount: Tensor
    """(R, N, S), of what follows the horizon; 0 where the episode has ended."""
    z: Tensor
    """(R, N, S, L), latent state at the horizon."""

    def followed_by(self, other: Rollout) -> Rollout:
        """Both side by side."""
        return Rollout(*(torch.cat(parts, 2) for parts in zip(self, other, strict=True)))


class Planner:
    """MPPI for all runs and environments at once.

    Args:
        model: R world models.
        scalars: how rewards and values are predicted.
        hp: horizon, samples, elites, …
        gamma: discount of an agent of one task; the tasks of a batch bring their own.
        action_size: A.
    """

    def __init__(
        self, model: WorldModel, scalars: TwoHot | SymlogScalar, hp: Hyperparameters, gamma: float, action_size: int
    ) -> None:
        self.model, self.scalars, self.hp, self.gamma, self.action_size = model, scalars, hp, gamma, action_size
        self.iterations = hp.plan_iterations(action_size)

    def plan(
        self, obs: Tensor, start: Tensor, noise: Noise, explore: bool, tasks: TaskContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """Plan an action for each environment.

        Args:
            obs: (R, N, O).
            start: (R, H, N, A), the mean that the plan starts from.
            noise: all draws are taken from it.
            explore: whether to add noise to the action. Without it the action is still drawn among the elites.
            tasks: (R, N), of a multi-task agent.

        Returns:
            The actions (R, N, A) in [-1, 1], and the mean (R, H, N, A) of the plan.
        """
        hp, num_envs = self.hp, obs.shape[1]
        z = self.model.encode(obs, noise, tasks)  # (R, N, L)
        tasks = None if tasks is None else tasks.unsqueeze(2)  # (R, N, 1), for samples

        # Policy trajectories: they are the same in every iteration, and so is what the model says of them
        z = z.unsqueeze(2)  # (R, N, 1, L)
        policy_actions, known = self.policy_trajectories(z, noise, tasks)  # (R, H, N, P, A)

        mean = start
        std = torch.full_like(mean, hp.max_std)

        # Iterate MPPI
        mask = None if tasks is None else tasks.action_mask[:, None]  # (R, 1, N, 1, A)
        for _ in range(self.iterations):
            # Sample action sequences and evaluate them
            eps = noise.normal(hp.horizon, num_envs, hp.num_samples - hp.num_pi_trajs, self.action_size)
            sampled = (mean[:, :, :, None] + std[:, :, :, None] * eps).clamp(-1, 1)
            if mask is not None:
                sampled = sampled * mask
            actions = torch.cat([policy_actions, sampled], 3)  # (R, H, N, S, A)
            value = self.estimate_value(z, actions, noise, tasks, known)  # (R, N, S)

            # Refit mean and standard deviation to the elites
            elites, weight, mean, std = refit(actions, value, hp.num_elites, hp.temperature)
            std = std.clamp(hp.min_std, hp.max_std)
            if mask is not None:
                std = std * mask[:, :, :, 0]  # the mean is 0 there already

        action = draw_first_action(elites, weight, noise)  # (R, N, A)
        if explore:
            action = action + std[:, 0] * noise.normal(num_envs, self.action_size)
        return action.clamp(-1, 1), mean

    def policy_trajectories(
        self, z: Tensor, noise: Noise, tasks: TaskContext | None = None
    ) -> tuple[Tensor, Rollout | None]:
        """Action sequences (R, H, N, P, A) of the policy from `z` (R, N, 1, L), and how the model follows them."""
        if self.hp.num_pi_trajs == 0:
            return z.new_empty(z.shape[0], self.hp.horizon, z.shape[1], 0, self.action_size), None
        actions: list[Tensor] = []

        def choose(t: int, z: Tensor) -> Tensor:
            actions.append(self.model.sample_action(z, noise, tasks)[0])
            return actions[-1]

        rollout = self.rollout(z.expand(-1, -1, self.hp.num_pi_trajs, -1), choose, tasks)
        return torch.stack(actions, 1), rollout

    def estimate_value(
        self,
        z: Tensor,
        actions: Tensor,
        noise: Noise,
        tasks: TaskContext | None = None,
        known: Rollout | None = None,
    ) -> Tensor:
        """Predicted return (R, N, S) of action sequences (R, H, N, S, A) from `z` (R, N, 1, L).

        Rewards of the model over the horizon, then the mean of two of the Q-functions: one pair for each run and call.
        The first sequences need not be rolled out where that is `known`.
        """
        new = actions if known is None else actions[:, :, :, known.reward.shape[2] :]
        rollout = self.rollout(z, lambda t, z: new[:, t], tasks)
        reward, discount, z = rollout if known is None else known.followed_by(rollout)
        action = self.model.sample_action(z, noise, tasks)[0]
        heads = noise.choose(2, self.hp.num_q)
        keep = self.model.dropout_mask(noise, 2, z) if self.hp.lasting_dropout else None
        q = self.scalars.decode(self.model.q_heads(z, action, heads, tasks, keep=keep))  # (R, 2, N, S)
        return (reward + discount * q.mean(1)).nan_to_num(nan=0.0)

    def rollout(self, z: Tensor, choose: Callable[[int, Tensor], Tensor], tasks: TaskContext | None = None) -> Rollout:
        """Follow action sequences in the model over the horizon.

        In an episodic model nothing counts after the episode is predicted to have ended; the reward that it ends with
        still does.

        Args:
            z: (R, N, S, L), or (R, N, 1, L) where all sequences start from.
            choose: the actions (R, N, S, A) at agent step t in the latent states (R, N, S, L) reached by then.
            tasks: (R, N, 1), of a multi-task agent.
        """
        gamma = self.gamma if tasks is None else tasks.discount
        total: Tensor | float = 0.0
        discount = torch.ones_like(z[..., 0])
        for t in range(self.hp.horizon):
            action = choose(t, z)
            reward = self.scalars.decode(self.model.reward(z, action, tasks))
            if self.hp.uncertainty_coef > 0:
                reward = reward - self.hp.uncertainty_coef * self.uncertainty(z, action, tasks)
            total = total + discount * reward
            z = self.model.next(z, action, tasks)
            discount = (discount * gamma).expand_as(reward)
            if self.hp.episodic:  # sigmoid above one half
                discount = torch.where(self.model.termination(z, tasks) > 0, 0.0, discount)
        assert isinstance(total, Tensor)
        return Rollout(total, discount, z)

    def uncertainty(self, z: Tensor, action: Tensor, tasks: TaskContext | None) -> Tensor:
        """Mean of all Q-functions times their standard deviation, (R, N, S).

        What an offline model has not seen scatters, and is avoided by planning against it (the paper's appendix on
        test-time regularisation; the authors' branch `uncertainty-regularization`).
        """
        q = self.scalars.decode(self.model.q(z, action, tasks))  # (R, K, N, S)
        return q.mean(1) * q.std(1)
