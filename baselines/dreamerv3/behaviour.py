"""Actor and critic, learned from imagined trajectories.

Shapes: R runs, T time, B batch, N = T B starts, H horizon, F features, A action, V bins. Imagined states are numbered
0 (a replayed state) to H; action k leads from state k to k + 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from agents.distributions import gaussian_log_prob
from agents.nn import ema_update
from agents.noise import Noise
from baselines.dreamerv3.heads import Actor, gaussian_entropy, scalar_head, two_hot
from baselines.dreamerv3.hyperparameters import Hyperparameters
from baselines.dreamerv3.returns import ReturnScale, lambda_returns
from baselines.dreamerv3.rssm import State
from baselines.dreamerv3.world_model import Sequence, WorldModel


class Imagined(NamedTuple):
    """Trajectories of the policy in the model."""

    features: Tensor  # (R, H+1, N, F)
    action: Tensor  # (R, H, N, A)
    std: Tensor  # (R, H, N, A)


class Behaviour(nn.Module):
    """R actors and critics.

    Args:
        hp: hyperparameters.
        runs: R.
        action_size: A.
        device: where the scale of returns lives.
    """

    def __init__(self, hp: Hyperparameters, runs: int, action_size: int, device: torch.device) -> None:
        super().__init__()
        self.hp = hp
        self.actor = Actor(hp, runs, action_size)
        self.critic = scalar_head(hp, runs, hp.critic_layers)
        self.slow_critic = scalar_head(hp, runs, hp.critic_layers).requires_grad_(False)
        self.two_hot = two_hot(hp, device)
        self.return_scale = ReturnScale(runs, hp.return_rate, device)

    def value(self, features: Tensor) -> Tensor:
        """Expected return (R, ...) from states with these features (R, ..., F)."""
        return self.two_hot.decode(self.critic(features))

    def imagine(self, model: WorldModel, start: State, noise: Noise) -> Imagined:
        """Follow the policy from `start` (R, N, ...). The policy sees the features without gradient."""
        hp, count = self.hp, start.deter.shape[1]
        uniform = noise.uniform(hp.horizon, count, hp.stoch)
        state, features = start, [start.features]
        actions: list[Tensor] = []
        stds: list[Tensor] = []
        for k in range(hp.horizon):
            mean, std = self.actor(features[-1].detach())
            actions.append(mean + std * noise.normal(*mean.shape[1:]))
            stds.append(std)
            state = model.rssm.imagine(state, actions[-1], uniform[:, k])
            features.append(state.features)
        return Imagined(torch.stack(features, 1), torch.stack(actions, 1), torch.stack(stds, 1))

    def returns(self, model: WorldModel, features: Tensor, discount: Tensor, value: Tensor) -> Tensor:
        """Lambda-returns (R, H, N) of all states but the last, from features (R, H+1, N, F) and two of (R, H+1, N)."""
        reward = model.reward(features[:, 1:])
        return lambda_returns(reward, discount[:, 1:], value[:, 1:], value[:, -1], self.hp.return_lambda)

    def learn_by_backprop(
        self, model: WorldModel, sequence: Sequence, start: State, noise: Noise
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Losses of 2023: the gradient of the actor's goes through the model, the rewards and the values.

        Args:
            model: the world model, already updated.
            sequence: what `start` was inferred from.
            start: posterior states (R, T, B, ...).

        Returns:
            The actor's loss, to be differentiated for the actor alone, the critic's loss, and metrics, each (R,).
        """
        hp = self.hp
        imagined = self.imagine(model, start.detach().flatten(), noise)
        features = imagined.features
        value = self.value(features)
        with torch.no_grad():
            goes_on = hp.discount * (1 - sequence.terminal.flatten(1, 2))  # (R, N), of the replayed states
            discount = torch.cat([goes_on[:, None], model.discount(features[:, 1:])], 1)
            weight = discount[:, :-1].cumprod(1) / hp.discount  # (R, H, N)
        returns = self.returns(model, features, discount, value)
        scale = self.return_scale.update(returns)
        # The value is a baseline that is differentiated too, since earlier actions led to its state.
        advantage = (returns - value[:, :-1]) / scale[:, None, None]
        entropy = gaussian_entropy(imagined.std)
        actor_loss = (weight * (-advantage - hp.entropy_scale * entropy)).mean((1, 2))
        critic_loss = (weight * self.critic_losses(features[:, :-1].detach(), returns.detach())).mean((1, 2))
        return actor_loss, critic_loss, self._metrics(returns, value, entropy, scale)

    def learn_by_reinforce(
        self, model: WorldModel, sequence: Sequence, start: State, noise: Noise
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Losses of 2024: the actor's by likelihood ratio, the critic's on imagined and on replayed states.

        Args:
            model: the world model, not yet updated.
            sequence: what `start` was inferred from.
            start: posterior states (R, T, B, ...); the gradient of the critic's loss on them reaches the model.

        Returns:
            The actor's loss, the critic's on imagined and on replayed states, and metrics, each (R,).
        """
        hp = self.hp
        with torch.no_grad():
            imagined = self.imagine(model, start.flatten(), noise)
            features = imagined.features
            discount, value = model.discount(features), self.value(features)
            weight = discount[:, :-1].cumprod(1)  # (R, H, N)
            returns = self.returns(model, features, discount, value)
            scale = self.return_scale.update(returns)
            advantage = (returns - value[:, :-1]) / scale[:, None, None]
        mean, std = self.actor(features[:, :-1])
        log_prob = gaussian_log_prob((imagined.action - mean) / std, std.log())
        entropy = gaussian_entropy(std)
        actor_loss = (weight * -(log_prob * advantage + hp.entropy_scale * entropy)).mean((1, 2))
        critic_loss = (weight * self.critic_losses(features[:, :-1], returns)).mean((1, 2))
        replay_loss = self.replay_critic_loss(sequence, start.features, returns[:, 0])
        return actor_loss, critic_loss, replay_loss, self._metrics(returns, value, entropy, scale)

    def replay_critic_loss(self, sequence: Sequence, features: Tensor, imagined_return: Tensor) -> Tensor:
        """The critic's loss (R,) on replayed states but the last of a sequence and of an episode.

        Args:
            sequence: rewards and ends.
            features: (R, T, B, F) with gradient.
            imagined_return: (R, T B), what is bootstrapped from: the return imagined from each state.
        """
        bootstrap = imagined_return.view(sequence.reward.shape)
        goes_on = 1 - sequence.first[:, 1:].float()  # state t is not the last of its episode, t < T - 1
        # The reset that follows a last state is never led to; after the last state of the slice there is nothing.
        not_last = torch.cat([goes_on[:, 1:], torch.ones_like(goes_on[:, :1])], 1)
        target = lambda_returns(
            sequence.reward[:, 1:],
            self.hp.discount * (1 - sequence.terminal[:, 1:]),
            bootstrap[:, 1:],
            bootstrap[:, -1],
            self.hp.return_lambda * not_last,
        )
        return (goes_on * self.critic_losses(features[:, :-1], target)).mean((1, 2))

    def critic_losses(self, features: Tensor, target: Tensor) -> Tensor:
        """Cross-entropies (R, ...) with the target (R, ...) and with the slow critic's value, a mere regulariser."""
        logits = self.critic(features)
        with torch.no_grad():
            slow = self.two_hot.decode(self.slow_critic(features))
        cross_entropy = self.two_hot.cross_entropy
        return cross_entropy(logits, target) + self.hp.slow_scale * cross_entropy(logits, slow)

    def update_slow_critic(self, rate: float) -> None:
        """slow <- slow + rate (critic - slow)."""
        ema_update(self.slow_critic.parameters(), self.critic.parameters(), rate)

    def _metrics(self, returns: Tensor, value: Tensor, entropy: Tensor, scale: Tensor) -> dict[str, Tensor]:
        means = {"return": returns, "value": value, "entropy": entropy}
        return {f"imagined_{name}": x.detach().mean((1, 2)) for name, x in means.items()} | {"return_scale": scale}
