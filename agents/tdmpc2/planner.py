"""Planning of TD-MPC2: model predictive path integral control (MPPI) in the latent space of the world model.

Shapes: R runs, N environments, H horizon, S sampled action sequences, P of them from the policy, E elites, A action,
L latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.distributions import SymlogScalar, TwoHot
from agents.mppi import draw_first_action, refit
from agents.noise import Noise
from agents.tdmpc2.hyperparameters import Hyperparameters
from agents.tdmpc2.tasks import TaskContext
from agents.tdmpc2.world_model import WorldModel


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

        # Policy trajectories
        policy_actions = self.policy_trajectories(z, noise, tasks)  # (R, H, N, P, A)

        mean = start
        std = torch.full_like(mean, hp.max_std)

        # Iterate MPPI
        z = z[:, :, None].expand(-1, -1, hp.num_samples, -1)  # (R, N, S, L)
        mask = None if tasks is None else tasks.action_mask[:, None]  # (R, 1, N, 1, A)
        for _ in range(self.iterations):
            # Sample action sequences and evaluate them
            eps = noise.normal(hp.horizon, num_envs, hp.num_samples - hp.num_pi_trajs, self.action_size)
            sampled = (mean[:, :, :, None] + std[:, :, :, None] * eps).clamp(-1, 1)
            if mask is not None:
                sampled = sampled * mask
            actions = torch.cat([policy_actions, sampled], 3)  # (R, H, N, S, A)
            value = self.estimate_value(z, actions, noise, tasks)  # (R, N, S)

            # Refit mean and standard deviation to the elites
            elites, weight, mean, std = refit(actions, value, hp.num_elites, hp.temperature)
            std = std.clamp(hp.min_std, hp.max_std)
            if mask is not None:
                std = std * mask[:, :, :, 0]  # the mean is 0 there already

        action = draw_first_action(elites, weight, noise)  # (R, N, A)
        if explore:
            action = action + std[:, 0] * noise.normal(num_envs, self.action_size)
        return action.clamp(-1, 1), mean

    def policy_trajectories(self, z: Tensor, noise: Noise, tasks: TaskContext | None = None) -> Tensor:
        """Action sequences (R, H, N, P, A) of the policy, rolled out in the model from `z` (R, N, L)."""
        z = z[:, :, None].expand(-1, -1, self.hp.num_pi_trajs, -1)  # (R, N, P, L)
        actions = []
        for t in range(self.hp.horizon):
            actions.append(self.model.sample_action(z, noise, tasks)[0])
            if t + 1 < self.hp.horizon:
                z = self.model.next(z, actions[-1], tasks)
        return torch.stack(actions, 1)

    def estimate_value(self, z: Tensor, actions: Tensor, noise: Noise, tasks: TaskContext | None = None) -> Tensor:
        """Predicted return (R, N, S) of action sequences (R, H, N, S, A) from `z` (R, N, S, L).

        Rewards of the model over the horizon, then the mean of two of the Q-functions: one pair for each run and call.
        In an episodic model nothing counts after the episode is predicted to have ended; the reward that it ends with
        still does.
        """
        gamma = self.gamma if tasks is None else tasks.discount
        value: Tensor | float = 0.0
        discount: Tensor | float = 1.0
        for t in range(self.hp.horizon):
            reward = self.scalars.decode(self.model.reward(z, actions[:, t], tasks))
            if self.hp.uncertainty_coef > 0:
                reward = reward - self.hp.uncertainty_coef * self.uncertainty(z, actions[:, t], tasks)
            value = value + discount * reward
            z = self.model.next(z, actions[:, t], tasks)
            discount = discount * gamma
            if self.hp.episodic:  # sigmoid above one half
                discount = torch.where(self.model.termination(z, tasks) > 0, 0.0, discount)
        action = self.model.sample_action(z, noise, tasks)[0]
        heads = noise.choose(2, self.hp.num_q)
        keep = self.model.dropout_mask(noise, 2, z) if self.hp.lasting_dropout else None
        q = self.scalars.decode(self.model.q_heads(z, action, heads, tasks, keep=keep))  # (R, 2, N, S)
        return (value + discount * q.mean(1)).nan_to_num(nan=0.0)

    def uncertainty(self, z: Tensor, action: Tensor, tasks: TaskContext | None) -> Tensor:
        """Mean of all Q-functions times their standard deviation, (R, N, S).

        What an offline model has not seen scatters, and is avoided by planning against it (the paper's appendix on
        test-time regularisation; the authors' branch `uncertainty-regularization`).
        """
        q = self.scalars.decode(self.model.q(z, action, tasks))  # (R, K, N, S)
        return q.mean(1) * q.std(1)
