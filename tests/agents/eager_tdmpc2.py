"""One run of TD-MPC2 for one task in ordinary torch, as one would write it first: the measure of the agent's speed.

Same algorithm, same noise, one batch at a time (`plain_tdmpc2` goes sample by sample, as no one would train). Every
Q-function is a network of its own and all of them are evaluated where two are used, as the authors' code does; the
losses go over time and heads one by one; layers, Mish, Adam and clipping are torch's own with default settings.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from agents.noise import Noise

CPU = torch.device("cpu")


class SimNorm(nn.Module):
    def __init__(self, group):
        super().__init__()
        self.group = group

    def forward(self, x):
        return x.view(*x.shape[:-1], -1, self.group).softmax(-1).view(x.shape)


def network(sizes, last=None, dropout=0.0):
    """Linear, LayerNorm and Mish, then a Linear, or a last NormedLinear that ends with `last`."""
    layers = []
    *hidden, (inputs, outputs) = pairwise(sizes)
    for index, (before, after) in enumerate(hidden):
        layers.append(nn.Linear(before, after))
        if dropout and index == 0:
            layers.append(nn.Dropout(dropout))
        layers += [nn.LayerNorm(after), nn.Mish()]
    layers.append(nn.Linear(inputs, outputs))
    if last is not None:
        layers += [nn.LayerNorm(outputs), last]
    return nn.Sequential(*layers)


def symlog(x):
    return x.sign() * torch.log(1 + x.abs())


class EagerTDMPC2:
    """Starts with the parameters of run `run` of an agent; the noise is that of a fresh agent with this seed.

    Dropout draws from torch's global generator, so results equal the agent's only where it is 0.
    """

    def __init__(self, agent, seed, run=0):
        self.hp = hp = agent.hp
        self.gamma = agent.gamma
        a, obs = agent.action_size, agent.spec.obs_shape[0]
        latent, m = hp.latent_dim, hp.mlp_dim
        simnorm = SimNorm(hp.simnorm_dim)
        scalar = [latent + a, m, m, hp.num_bins]
        self.action_size, self.iterations = a, hp.plan_iterations(a)
        self.encoder = network([obs, *[hp.enc_dim] * max(hp.num_enc_layers - 1, 1), latent], simnorm)
        self.dynamics = network([latent + a, m, m, latent], simnorm)
        self.reward = network(scalar)
        self.policy = network([latent, m, m, 2 * a])
        self.q = nn.ModuleList([network(scalar, dropout=hp.dropout) for _ in range(hp.num_q)])
        self.target_q = nn.ModuleList([network(scalar) for _ in range(hp.num_q)]).requires_grad_(False)
        model, k = agent.model, hp.num_q
        parts = ("encoder", "dynamics", "reward_head", "policy_head")
        for ours, name in zip((self.encoder, self.dynamics, self.reward, self.policy), parts, strict=True):
            copy_member(ours, getattr(model, name), run)
        for heads, ensemble in ((self.q, model.online_q), (self.target_q, model.target_q)):
            for index, head in enumerate(heads):
                copy_member(head, ensemble, run * k + index)
        self.bins = torch.linspace(hp.vmin, hp.vmax, hp.num_bins)
        self.scale = torch.ones(())
        self.noise = {stream: Noise([seed], stream, CPU) for stream in ("learn", "explore", "evaluate")}
        self.mean = torch.zeros(hp.horizon, a)
        rest = [*self.dynamics.parameters(), *self.reward.parameters(), *self.q.parameters()]
        self.world = [*self.encoder.parameters(), *rest]
        groups = [{"params": self.encoder.parameters(), "lr": hp.lr * hp.enc_lr_scale}, {"params": rest}]
        self.optimizer = torch.optim.Adam(groups, lr=hp.lr)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=hp.lr, eps=1e-5)

    # Parts

    def decode(self, logits):
        y = (logits.softmax(-1) * self.bins).sum(-1)
        return y.sign() * (y.abs().exp() - 1)

    def cross_entropy(self, logits, x):
        """Mean over the batch of the cross-entropy between (B, V) logits and the two-hot distributions of x (B,)."""
        hp = self.hp
        width = (hp.vmax - hp.vmin) / (hp.num_bins - 1)
        position = (symlog(x).clamp(hp.vmin, hp.vmax) - hp.vmin) / width
        low = position.floor().long().clamp(max=hp.num_bins - 2)
        weight = (position - low)[:, None]
        two_hot = torch.zeros_like(logits).scatter_(1, low[:, None], 1 - weight).scatter_(1, low[:, None] + 1, weight)
        return -(two_hot * logits.log_softmax(-1)).sum(-1).mean()

    def sample(self, z, noise):
        """Action, noise and log standard deviation."""
        hp = self.hp
        mean, raw = self.policy(z).chunk(2, -1)
        log_std = hp.log_std_min + 0.5 * (hp.log_std_max - hp.log_std_min) * (raw.tanh() + 1)
        eps = noise.normal(*mean.shape)[0]
        return torch.tanh(mean + eps * log_std.exp()), eps, log_std

    def pair(self, heads, z, action, noise):
        """Scalars (2, ...) of two heads at random, after all have been evaluated."""
        chosen = noise.choose(2, len(heads))[0]
        za = torch.cat([z, action], -1)
        return self.decode(torch.stack([head(za) for head in heads])[chosen])

    # Learning

    def update(self, batch):
        hp, noise = self.hp, self.noise["learn"]
        obs, actions, rewards = batch.obs[0], batch.action[0], batch.reward[0]
        with torch.no_grad():
            self.q.eval()
            next_z = self.encoder(obs[1:])
            action = self.sample(next_z, noise)[0]
            q = self.pair(self.target_q, next_z, action, noise).amin(0)
            target = rewards + self.gamma * (1 - batch.terminated[0]) * q
        self.q.train()
        zs, consistency = [self.encoder(obs[0])], 0.0
        for t in range(hp.horizon):
            zs.append(self.dynamics(torch.cat([zs[-1], actions[t]], -1)))
            consistency = consistency + hp.rho**t * F.mse_loss(zs[-1], next_z[t]) / hp.horizon
        za = torch.cat([torch.stack(zs[:-1]), actions], -1)
        logits, heads = self.reward(za), [head(za) for head in self.q]
        reward = value = 0.0
        for t in range(hp.horizon):
            reward = reward + hp.rho**t * self.cross_entropy(logits[t], rewards[t]) / hp.horizon
            for head in heads:
                value = value + hp.rho**t * self.cross_entropy(head[t], target[t]) / (hp.horizon * hp.num_q)
        total = hp.consistency_coef * consistency + hp.reward_coef * reward + hp.value_coef * value
        total.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.world, hp.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        pi_loss = self.update_policy(torch.stack(zs).detach())
        with torch.no_grad():
            for slow, fast in zip(self.target_q.parameters(), self.q.parameters(), strict=True):
                slow.lerp_(fast, hp.tau)
        return {
            "consistency_loss": consistency.detach(),
            "reward_loss": reward.detach(),
            "value_loss": value.detach(),
            "total_loss": total.detach(),
            "grad_norm": grad_norm,
            "pi_loss": pi_loss,
        }

    def update_policy(self, zs):
        hp, noise = self.hp, self.noise["learn"]
        self.q.requires_grad_(False)
        action, eps, log_std = self.sample(zs, noise)
        q = self.pair(self.q, zs, action, noise).mean(0)
        low, high = torch.quantile(q[0].detach(), torch.tensor([0.05, 0.95]))
        self.scale = self.scale.lerp((high - low).clamp(min=1), hp.tau)
        log_prob = (-0.5 * eps.square() - log_std - 0.9189385332046727).sum(-1)
        objective = hp.entropy_coef * -self.action_size * log_prob + q / self.scale
        loss = -(objective.mean(1) * hp.rho ** torch.arange(len(zs))).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), hp.grad_clip_norm)
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad()
        self.q.requires_grad_(True)
        return loss.detach()

    # Acting

    @torch.no_grad()
    def act(self, obs, first, explore):
        hp, noise = self.hp, self.noise["explore" if explore else "evaluate"]
        self.q.eval()
        z = self.encoder(obs[0])  # (1, L)
        states, policy_actions = z.repeat(hp.num_pi_trajs, 1), []
        for t in range(hp.horizon):
            policy_actions.append(self.sample(states[None], noise)[0][0])
            if t + 1 < hp.horizon:
                states = self.dynamics(torch.cat([states, policy_actions[-1]], -1))
        mean = torch.zeros(hp.horizon, self.action_size)
        if not bool(first[0, 0]):
            mean[:-1] = self.mean[1:]
        std = torch.full_like(mean, hp.max_std)
        z = z.repeat(hp.num_samples, 1)
        for _ in range(self.iterations):
            eps = noise.normal(hp.horizon, 1, hp.num_samples - hp.num_pi_trajs, self.action_size)[0, :, 0]
            sampled = (mean[:, None] + std[:, None] * eps).clamp(-1, 1)
            actions = torch.cat([torch.stack(policy_actions), sampled], 1)  # (H, S, A)
            value = self.value(z, actions, noise)
            best = value.topk(hp.num_elites).indices
            elites = actions[:, best]
            weight = (hp.temperature * (value[best] - value.max())).exp()
            weight = (weight / weight.sum())[:, None]
            mean = (weight * elites).sum(1) / (weight.sum() + 1e-9)
            variance = (weight * (elites - mean[:, None]).square()).sum(1) / (weight.sum() + 1e-9)
            std = variance.sqrt().clamp(hp.min_std, hp.max_std)
        pick = (weight[:, 0].log() + noise.gumbel(1, hp.num_elites)[0, 0]).argmax()
        self.mean, action = mean, elites[0, pick]
        if explore:
            action = action + std[0] * noise.normal(1, self.action_size)[0, 0]
        return action.clamp(-1, 1)[None, None]

    def value(self, z, actions, noise):
        total, discount = 0.0, 1.0
        for action in actions:
            za = torch.cat([z, action], -1)
            total = total + discount * self.decode(self.reward(za))
            z = self.dynamics(za)
            discount = discount * self.gamma
        action = self.sample(z[None], noise)[0][0]
        return (total + discount * self.pair(self.q, z, action, noise).mean(0)).nan_to_num(nan=0.0)


def copy_member(ours, batched, index):
    """Parameters of one member of a batched network."""
    for layer, (name, tensor) in zip(
        [p for module in ours if isinstance(module, nn.Linear | nn.LayerNorm) for p in module.parameters()],
        batched.named_parameters(),
        strict=True,
    ):
        member = tensor.detach()[index]
        layer.data.copy_(member.T if name.endswith("weight") and "norm" not in name else member[0])
