"""Planning of TD-MPC: model predictive path integral control (MPPI) with momentum in the latent space.

Shapes: R runs, N environments, h planning horizon, S sampled action sequences, P more from the policy, E elites,
A action, L latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.mppi import draw_first_action, refit
from agents.noise import Noise
from baselines.tdmpc.hyperparameters import Hyperparameters
from baselines.tdmpc.world_model import WorldModel


class Planner:
    """MPPI for all runs and environments at once.

    Args:
        model: R world models.
        hp: samples, elites, …
        action_size: A.
    """

    def __init__(self, model: WorldModel, hp: Hyperparameters, action_size: int) -> None:
        self.model, self.hp, self.action_size = model, hp, action_size

    def plan(self, obs: Tensor, start: Tensor, std_floor: float, noise: Noise, explore: bool) -> tuple[Tensor, Tensor]:
        """Plan an action for each environment.

        Args:
            obs: (R, N, *obs_shape).
            start: (R, h, N, A), the mean that the plan starts from; its size is the horizon.
            std_floor: lower bound of the plan's standard deviation.
            noise: all draws are taken from it.
            explore: whether to add noise to the action. Without it the action is still drawn among the elites.

        Returns:
            The actions (R, N, A) in [-1, 1], NaN where a run has diverged, and the mean (R, h, N, A) of the plan.
        """
        hp, (_, horizon, num_envs, _) = self.hp, start.shape
        z = self.model.encoder(obs)  # (R, N, L)
        policy_actions = self.policy_trajectories(z, horizon, noise)  # (R, h, N, P, A)
        z = z[:, :, None].expand(-1, -1, hp.num_samples + hp.num_pi_trajs, -1)  # (R, N, S + P, L)
        mean, std = start, torch.full_like(start, hp.max_std)
        for _ in range(hp.iterations):
            # Sample action sequences and evaluate them
            eps = noise.normal(horizon, num_envs, hp.num_samples, self.action_size)
            sampled = (mean[:, :, :, None] + std[:, :, :, None] * eps).clamp(-1, 1)
            actions = torch.cat([sampled, policy_actions], 3)  # (R, h, N, S + P, A)
            predicted = self.estimate_value(z, actions, noise)  # (R, N, S + P)
            value = predicted.nan_to_num(nan=0.0)

            # Refit mean and standard deviation to the elites; momentum is on the mean alone
            elites, weight, elite_mean, std = refit(actions, value, hp.num_elites, hp.temperature)
            std = std.clamp(std_floor, hp.max_std)
            mean = hp.momentum * mean + (1 - hp.momentum) * elite_mean

        action = draw_first_action(elites, weight, noise)  # (R, N, A)
        if explore:
            action = action + std[:, 0] * noise.normal(num_envs, self.action_size)
        # A model that knows no value at all has diverged; its elites are of no meaning and may look sound.
        has_diverged = predicted.isnan().all(2, keepdim=True)  # (R, N, 1)
        return action.clamp(-1, 1).masked_fill(has_diverged, torch.nan), mean

    def policy_trajectories(self, z: Tensor, horizon: int, noise: Noise) -> Tensor:
        """Action sequences (R, h, N, P, A) of the policy, rolled out in the model from `z` (R, N, L)."""
        z = z[:, :, None].expand(-1, -1, self.hp.num_pi_trajs, -1)  # (R, N, P, L)
        actions: list[Tensor] = []
        for t in range(horizon):
            z = self.model.next(z, actions[-1]) if t > 0 else z
            actions.append(self.model.policy(z, noise.normal(*z.shape[1:-1], self.action_size)))
        return torch.stack(actions, 1)

    def estimate_value(self, z: Tensor, actions: Tensor, noise: Noise) -> Tensor:
        """Predicted return (R, N, M) of action sequences (R, h, N, M, A) from `z` (R, N, M, L).

        Rewards of the model over the horizon, then the smaller Q.
        """
        value: Tensor | float = 0.0
        discount = 1.0
        for action in actions.unbind(1):
            value = value + discount * self.model.reward(z, action)
            z = self.model.next(z, action)
            discount *= self.hp.discount
        action = self.model.policy(z, noise.normal(*z.shape[1:-1], self.action_size))
        return value + discount * self.model.q(z, action).amin(1)
