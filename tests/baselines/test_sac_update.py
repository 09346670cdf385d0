"""One update of SAC against torch's own modules, distributions and optimisers, run by run."""

from __future__ import annotations

import copy
import math

import torch
from sac_cases import CPU, A, B, agent, assert_close, batch, of_run
from torch import distributions as D
from torch import nn

from agents.nn import Linear
from agents.noise import Noise


class PlainSAC:
    """One run, with torch's own modules, distributions and optimisers."""

    def __init__(self, fleet, run, seed):
        hp = self.hp = fleet.hyperparameters
        self.actor = self.plain(fleet.actor, run)
        self.critics = nn.ModuleList(self.plain(fleet.critic, 2 * run + k) for k in range(2))
        self.targets = copy.deepcopy(self.critics)
        self.log_alpha = torch.tensor(math.log(hp.init_temperature), requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=hp.actor_lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=hp.critic_lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=hp.alpha_lr)
        self.noise = Noise([seed], "learn", CPU)
        self.updates = 0

    @staticmethod
    def plain(network, member):
        layers = []
        for layer in network.net:
            if isinstance(layer, Linear):
                plain = nn.Linear(*layer.weight.shape[1:])
                plain.weight.data = layer.weight[member].detach().T.clone()
                plain.bias.data = layer.bias[member, 0].detach().clone()
                layers.append(plain)
            else:
                layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    def policy(self, obs):
        mean, raw = self.actor(obs).chunk(2, -1)
        log_std = -5 + 3.5 * (torch.tanh(raw) + 1)
        normal = D.Normal(mean, log_std.exp())
        u = mean + log_std.exp() * self.noise.normal(B, A)[0]
        action = torch.tanh(u)
        jacobian = torch.log(1 - action.double() ** 2).float()
        return action, (normal.log_prob(u) - jacobian).sum(-1)

    def q(self, critics, obs, action):
        return [critic(torch.cat([obs, action], -1)).squeeze(-1) for critic in critics]

    def update(self, data):
        obs, next_obs, action = data.obs[0, 0], data.obs[0, 1], data.action[0, 0]
        reward, terminated = data.reward[0, 0], data.terminated[0, 0]
        with torch.no_grad():
            alpha = self.log_alpha.exp()
            next_action, next_log_prob = self.policy(next_obs)
            next_q = self.q(self.targets, next_obs, next_action)
            target = torch.empty(B)
            for i in range(B):
                target[i] = reward[i]
                if not terminated[i]:
                    target[i] += self.hp.discount * (min(next_q[0][i], next_q[1][i]) - alpha * next_log_prob[i])
        self.critic_optimizer.zero_grad()
        critic_loss = sum(nn.functional.mse_loss(q, target) for q in self.q(self.critics, obs, action))
        critic_loss.backward()
        critic_grads = [p.grad.clone() for p in self.critics.parameters()]
        self.critic_optimizer.step()

        new_action, log_prob = self.policy(obs)
        actor_loss = (alpha * log_prob - torch.minimum(*self.q(self.critics, obs, new_action))).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        self.alpha_optimizer.zero_grad()
        alpha_loss = (self.log_alpha.exp() * (-log_prob.detach() + A)).mean()
        alpha_loss.backward()
        self.alpha_optimizer.step()

        if self.updates % 2 == 0:
            for slow, fast in zip(self.targets.parameters(), self.critics.parameters(), strict=True):
                slow.data = 0.005 * fast.data + 0.995 * slow.data
        self.updates += 1
        actor_grads = [p.grad for p in self.actor.parameters()]
        return (
            {"critic_loss": critic_loss, "actor_loss": actor_loss, "alpha_loss": alpha_loss},
            critic_grads,
            actor_grads,
        )


def same_parameter(batched, plain):
    """One member's parameter of ours as torch's Linear has it."""
    return batched.squeeze(0) if plain.dim() == 1 else batched.T


def test_update_equals_the_plain_one():
    seeds = (1, 2, 3)
    fleet = agent(seeds)
    plain = [PlainSAC(fleet, run, seed) for run, seed in enumerate(seeds)]
    for number in range(5):
        data = batch(seed=number)
        metrics = fleet.update(data)
        for run, one in enumerate(plain):
            expected, critic_grads, actor_grads = one.update(of_run(data, run))
            for name, value in expected.items():
                assert_close(metrics[name][run], value.detach(), rtol=1e-4, atol=1e-5)
            critics = list(fleet.critic.parameters())
            targets = list(fleet.target.parameters())
            for k in range(2):
                triples = zip(critics, targets, one.critics[k].parameters(), one.targets[k].parameters(), strict=True)
                for i, (ours, our_target, theirs, their_target) in enumerate(triples):
                    member = 2 * run + k
                    assert_close(same_parameter(ours[member], theirs), theirs, rtol=1e-4, atol=1e-5)
                    assert_close(same_parameter(our_target[member], theirs), their_target, rtol=1e-4, atol=1e-5)
                    grad = critic_grads[k * len(critics) + i]
                    assert_close(same_parameter(ours.grad[member], theirs), grad, rtol=1e-3, atol=1e-5)
            for ours, theirs, grad in zip(fleet.actor.parameters(), one.actor.parameters(), actor_grads, strict=True):
                assert_close(same_parameter(ours[run], theirs), theirs, rtol=1e-4, atol=1e-5)
                assert_close(same_parameter(ours.grad[run], theirs), grad, rtol=1e-3, atol=1e-5)
            assert_close(fleet.log_alpha[run, 0], one.log_alpha, rtol=1e-4, atol=1e-5)
