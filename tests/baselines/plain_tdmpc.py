"""One run of TD-MPC written the slow, obvious way: ordinary torch layers, loops over time, slices and candidates.

It shares no code with the agent. Noise comes from a record of what the agent drew.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from agents.conv import Conv2d
from agents.nn import LayerNorm, Linear
from agents.noise import Noise
from agents.protocol import AgentSpec, Batch
from baselines.tdmpc.agent import TDMPC
from baselines.tdmpc.hyperparameters import Hyperparameters

CPU = torch.device("cpu")
SPEC = AgentSpec(obs_shape=(5,), obs_kind="state", action_size=2, episode_agent_steps=10, budget_agent_steps=1000)
PIXELS = replace(SPEC, obs_shape=(6, 41, 41), obs_kind="rgb", frame_stack=2)
SMALL = {
    "enc_dim": 12,
    "mlp_dim": 16,
    "latent_dim": 8,
    "num_channels": 3,
    "image_size": 41,
    "frame_stack": 2,
    "batch_size": 6,
    "horizon": 3,
    "num_samples": 20,
    "num_elites": 5,
    "mixture_coef": 0.15,
    "iterations": 3,
    "seed_agent_steps": 20,
    "schedule_agent_steps": 60,
}
NETS = ("encoder", "dynamics", "reward_head", "policy_head", "q_heads", "target_encoder", "target_q_heads")


def make_agent(seeds=(1, 2, 3), num_envs=1, jitter=0.1, spec=SPEC, **overrides):
    """A small agent whose parameters are moved at random (by the run's seed), so that nothing is zero by chance."""
    agent = TDMPC(replace(spec, num_envs=num_envs), Hyperparameters(**(SMALL | overrides)), list(seeds), CPU)
    for index, parameter in enumerate(agent.model.parameters()):
        for part, seed in zip(parameter.data.chunk(len(seeds)), seeds, strict=True):
            part += jitter * torch.randn(part.shape, generator=torch.Generator().manual_seed(1000 * seed + index))
    return agent


def make_batch(seeds=(1, 2, 3), spec=SPEC, horizon=3, size=6, scale=3.0):
    """Random slices, the same for a seed whatever the fleet."""
    parts = []
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        shape = (horizon + 1, size, *spec.obs_shape)
        pixels = spec.obs_kind == "rgb"
        obs = torch.randint(256, shape, dtype=torch.uint8, generator=g) if pixels else torch.randn(shape, generator=g)
        parts.append(
            (
                obs,
                torch.rand(horizon, size, spec.action_size, generator=g) * 2 - 1,
                torch.randn(horizon, size, generator=g) * scale,
                (torch.rand(horizon, size, generator=g) < 0.2).to(torch.get_default_dtype()),
                torch.rand(size, generator=g) + 0.1,
            )
        )
    obs, action, reward, terminated, weight = (torch.stack(field) for field in zip(*parts, strict=True))
    return Batch(obs, action, reward, terminated, weight=weight)


class Recorder(Noise):
    """Noise that keeps what it gave."""

    def __init__(self, noise):
        self.__dict__.update(noise.__dict__)
        self.drawn = []

    def _keep(self, value):
        self.drawn.append(value.clone())
        return value

    def normal(self, *shape):
        return self._keep(super().normal(*shape))

    def integers(self, count, *shape):
        return self._keep(super().integers(count, *shape))

    def gumbel(self, *shape):
        return self._keep(super().gumbel(*shape))

    def of_run(self, run):
        """An iterator over this run's draws, in order."""
        return iter([draw[run] for draw in self.drawn])


def record(agent, stream):
    agent.noise[stream] = recorder = Recorder(agent.noise[stream])
    return recorder


def plain_layers(network, member):
    """Torch's own layers with the parameters of one member of a batched network."""
    layers = []
    for layer in network.modules():
        if isinstance(layer, Linear):
            plain = nn.Linear(*layer.weight.shape[1:])
            plain.weight.data = layer.weight[member].detach().T.clone()
            plain.bias.data = layer.bias[member, 0].detach().clone()
        elif isinstance(layer, LayerNorm):
            plain = nn.LayerNorm(layer.size)
            plain.weight.data = layer.weight[member, 0].detach().clone()
            plain.bias.data = layer.bias[member, 0].detach().clone()
        elif isinstance(layer, Conv2d):
            _, outputs, inputs, kernel, _ = layer.weight.shape
            plain = nn.Conv2d(inputs, outputs, kernel, layer.stride)
            plain.weight.data = layer.weight[member].detach().clone()
            plain.bias.data = layer.bias[member].detach().clone()
        elif isinstance(layer, nn.ELU | nn.Tanh):
            plain = type(layer)()
        else:
            continue
        layers.append(plain)
        if isinstance(plain, nn.Conv2d):
            layers.append(nn.ReLU())
    last_conv = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    if last_conv:
        layers.insert(last_conv[-1] + 2, nn.Flatten(0))
    return nn.Sequential(*layers)


def parameters_of(network, member):
    """The parameters of a member of a batched network, in the layout of `plain_layers`."""
    return list(plain_layers(network, member).parameters())


class PlainRun:
    """Run `run` of an agent."""

    def __init__(self, agent, run):
        hp = self.hp = agent.hp
        m = agent.model
        self.encoder, self.dynamics, self.reward, self.policy = (plain_layers(getattr(m, n), run) for n in NETS[:4])
        self.q = nn.ModuleList([plain_layers(m.q_heads, 2 * run + k) for k in range(2)])
        self.target_encoder = plain_layers(m.target_encoder, run)
        self.target_q = nn.ModuleList([plain_layers(m.target_q_heads, 2 * run + k) for k in range(2)])
        self.model = nn.ModuleList([self.encoder, self.dynamics, self.reward, self.q])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=hp.lr)
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=hp.lr)
        self.pixels = any(isinstance(layer, nn.Conv2d) for layer in self.encoder)

    def nets(self):
        """In the order of `NETS`."""
        return self.encoder, self.dynamics, self.reward, self.policy, self.q, self.target_encoder, self.target_q

    # Parts

    def shifted(self, image, offset, pad):
        """The image within its padded self, `offset` pixels from the upper left corner."""
        size = image.shape[-1]
        padded = F.pad(image[None].float(), (pad,) * 4, mode="replicate")[0]
        down, right = offset.tolist()
        return padded[:, down : down + size, right : right + size]

    def see(self, obs):
        return obs / 255 if self.pixels else obs

    def sample(self, z, eps):
        action = torch.tanh(self.policy(z)) + (self.hp.min_std * eps).clip(-0.3, 0.3)
        return action + (action.clip(-1 + 1e-6, 1 - 1e-6) - action).detach()

    def smaller_q(self, networks, z, action):
        return torch.minimum(*(network(torch.cat([z, action])) for network in networks)).squeeze()

    # Update

    def update(self, batch, run, draws, move_target):
        """One update, slice by slice. Returns metrics and the priorities (B,)."""
        hp, horizon, size = self.hp, self.hp.horizon, batch.obs.shape[2]
        obs, next_obs = list(batch.obs[run, 0]), [list(x) for x in batch.obs[run, 1:]]
        if self.pixels:
            pad, first, rest = obs[0].shape[-1] // 21, next(draws), next(draws)
            obs = [self.shifted(image, first[b], pad) for b, image in enumerate(obs)]
            next_obs = [[self.shifted(x, rest[t, b], pad) for b, x in enumerate(xs)] for t, xs in enumerate(next_obs)]
        eps, policy_eps = next(draws), next(draws)
        losses, priorities, latents = [], [], []
        parts = {"consistency": [], "reward": [], "value": []}
        for b in range(size):
            z = self.encoder(self.see(obs[b]))
            latents.append([z])
            consistency = reward = value = priority = 0.0
            for t in range(horizon):
                weight, za = hp.rho**t, torch.cat([z, batch.action[run, t, b]])
                with torch.no_grad():
                    seen = self.see(next_obs[t][b])
                    target_z, next_z = self.target_encoder(seen), self.encoder(seen)
                    y = batch.reward[run, t, b].clone()
                    if not batch.terminated[run, t, b]:
                        y += hp.discount * self.smaller_q(self.target_q, next_z, self.sample(next_z, eps[t, b]))
                for q in self.q:
                    error = q(za).squeeze() - y
                    value += weight * error**2
                    priority += weight * float(error.detach().abs())
                reward += weight * (self.reward(za).squeeze() - batch.reward[run, t, b]) ** 2
                z = self.dynamics(za)
                latents[b].append(z)
                consistency += weight * ((z - target_z) ** 2).mean()
            for name, part in (("consistency", consistency), ("reward", reward), ("value", value)):
                parts[name].append(float(part.detach()))
            capped = [torch.minimum(part, torch.tensor(1e4)) for part in (consistency, reward, value)]
            coefs = hp.consistency_coef, hp.reward_coef, hp.value_coef
            losses.append(batch.weight[run, b] * sum(c * part for c, part in zip(coefs, capped, strict=True)))
            priorities.append(min(priority, 1e4) + 1e-6)
        loss = sum(losses) / size
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.model.parameters():
            parameter.grad /= horizon
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), hp.grad_clip_norm)
        self.optimizer.step()

        pi_loss = 0.0
        frozen = copy.deepcopy(self.q)
        for b in range(size):
            for t, z in enumerate(latents[b]):
                z = z.detach()
                pi_loss -= hp.rho**t * self.smaller_q(frozen, z, self.sample(z, policy_eps[t, b])) / size
        self.policy_optimizer.zero_grad()
        pi_loss.backward()
        pi_grad_norm = nn.utils.clip_grad_norm_(self.policy.parameters(), hp.grad_clip_norm)
        self.policy_optimizer.step()

        if move_target:
            with torch.no_grad():
                for slow, fast in ((self.target_encoder, self.encoder), (self.target_q, self.q)):
                    for p, online in zip(slow.parameters(), fast.parameters(), strict=True):
                        p.copy_(hp.tau * online + (1 - hp.tau) * p)
        metrics = {f"{name}_loss": sum(values) / size for name, values in parts.items()} | {
            "total_loss": float(loss.detach()),
            "grad_norm": float(grad_norm),
            "priority": sum(priorities) / size,
            "pi_loss": float(pi_loss.detach()),
            "pi_grad_norm": float(pi_grad_norm),
        }
        return metrics, priorities

    # Planning

    @torch.no_grad()
    def value_of(self, z, sequence, eps):
        """Predicted return of one action sequence (h, A)."""
        total = 0.0
        for t, action in enumerate(sequence):
            za = torch.cat([z, action])
            total += self.hp.discount**t * float(self.reward(za))
            z = self.dynamics(za)
        return total + self.hp.discount ** len(sequence) * float(self.smaller_q(self.q, z, self.sample(z, eps)))

    @torch.no_grad()
    def plan(self, obs, start, std_floor, env, draws, explore):
        """Action and final mean (h, A) for one observation, candidate by candidate, from a first mean (h, A)."""
        hp, (horizon, a) = self.hp, start.shape
        z0 = self.encoder(self.see(obs))
        count = math.floor(hp.mixture_coef * hp.num_samples)
        policy_sequences, latents = [[] for _ in range(count)], [z0] * count
        for _ in range(horizon):
            eps = next(draws)[env]
            for i in range(count):
                action = self.sample(latents[i], eps[i])
                policy_sequences[i].append(action)
                latents[i] = self.dynamics(torch.cat([latents[i], action]))
        mean, std = start.clone(), torch.full((horizon, a), hp.max_std)
        for _ in range(hp.iterations):
            eps = next(draws)[:, env]  # (h, S, A)
            candidates = [torch.clamp(mean + std * eps[:, i], -1, 1) for i in range(hp.num_samples)]
            candidates += [torch.stack(sequence) for sequence in policy_sequences]
            value_eps = next(draws)[env]
            values = [self.value_of(z0, c, value_eps[i]) for i, c in enumerate(candidates)]
            order = sorted(range(len(values)), key=lambda i: -values[i])[: hp.num_elites]
            scores = [math.exp(hp.temperature * (values[i] - values[order[0]])) for i in order]
            scores = [score / sum(scores) for score in scores]
            m = sum(s * candidates[i] for s, i in zip(scores, order, strict=True))
            variance = sum(s * (candidates[i] - m) ** 2 for s, i in zip(scores, order, strict=True))
            std = variance.sqrt().clamp(std_floor, hp.max_std)
            mean = hp.momentum * mean + (1 - hp.momentum) * m
        gumbel = next(draws)[env]
        drawn = [math.log(s) + float(g) for s, g in zip(scores, gumbel, strict=True)]
        action = candidates[order[drawn.index(max(drawn))]][0]
        if explore:
            action = action + next(draws)[env] * std[0]
        return action.clamp(-1, 1), mean
