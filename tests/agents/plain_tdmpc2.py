"""One run of TD-MPC2 written the slow, obvious way: ordinary torch layers, loops over time, heads and candidates.

It shares no code with the agent. Noise comes from a record of what the agent drew.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import tee

import torch
from torch import nn

from agents.noise import Noise
from agents.protocol import AgentSpec, Batch, TaskSpec
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import Hyperparameters

CPU = torch.device("cpu")
SPEC = AgentSpec(obs_shape=(5,), obs_kind="state", action_size=2, episode_agent_steps=100, budget_agent_steps=1000)
MULTITASK_SPEC = replace(
    SPEC,
    obs_shape=(5,),
    action_size=3,
    tasks=(TaskSpec("a", 5, 1, 500), TaskSpec("b", 3, 3, 100), TaskSpec("c", 4, 2, 250), TaskSpec("d", 5, 2, 100)),
)
SMALL = {
    "task_dim": 6,
    "enc_dim": 12,
    "mlp_dim": 16,
    "latent_dim": 8,
    "simnorm_dim": 4,
    "num_q": 4,
    "num_bins": 21,
    "dropout": 0.2,
    "batch_size": 6,
    "num_samples": 20,
    "num_elites": 5,
    "num_pi_trajs": 3,
    "iterations": 3,
}


def make_agent(seeds=(1, 2, 3), num_envs=1, jitter=0.3, spec=SPEC, **overrides) -> TDMPC2:
    """A small agent whose parameters are moved at random (by the run's seed), so that nothing is zero by chance."""
    agent = TDMPC2(replace(spec, num_envs=num_envs), Hyperparameters(**(SMALL | overrides)), list(seeds), CPU)
    for index, parameter in enumerate(agent.model.parameters()):
        for part, seed in zip(parameter.data.chunk(len(seeds)), seeds, strict=True):
            part += jitter * torch.randn(part.shape, generator=torch.Generator().manual_seed(1000 * seed + index))
    return agent


def make_batch(seeds=(1, 2, 3), spec=SPEC, horizon=3, size=6) -> Batch:
    """Random slices, the same for a seed whatever the fleet."""
    parts = []
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        parts.append(
            (
                torch.randn(horizon + 1, size, *spec.obs_shape, generator=g),
                torch.rand(horizon, size, spec.action_size, generator=g) * 2 - 1,
                torch.randn(horizon, size, generator=g) * 3,
                (torch.rand(horizon, size, generator=g) < 0.2).to(torch.get_default_dtype()),
                torch.randint(max(len(spec.tasks), 1), (size,), generator=g),
            )
        )
    *fields, task = (torch.stack(field) for field in zip(*parts, strict=True))
    return Batch(*fields, task=task if spec.tasks else None)


class Recorder(Noise):
    """Noise that keeps what it gave."""

    def __init__(self, noise: Noise) -> None:
        self.__dict__.update(noise.__dict__)
        self.drawn: list[torch.Tensor] = []

    def _keep(self, value):
        self.drawn.append(value.clone())
        return value

    def normal(self, *shape):
        return self._keep(super().normal(*shape))

    def gumbel(self, *shape):
        return self._keep(super().gumbel(*shape))

    def choose(self, count, members):
        return self._keep(super().choose(count, members))

    def integers(self, *arguments):
        return self._keep(super().integers(*arguments))

    def dropout_mask(self, p, *shape):
        return self._keep(super().dropout_mask(p, *shape))

    def of_run(self, run):
        """An iterator over this run's draws, in order."""
        return iter([draw[run] for draw in self.drawn])


def record(agent, stream):
    agent.noise[stream] = recorder = Recorder(agent.noise[stream])
    return recorder


class PlainMLP(nn.Module):
    """Copy of member `index` of a batched MLP."""

    def __init__(self, mlp, index):
        super().__init__()
        self.linears, self.norms = nn.ModuleList(), nn.ModuleList()
        self.group = getattr(mlp.last, "simnorm_dim", None)  # 0: no activation
        for layer in [*mlp.hidden, mlp.last]:
            has_norm = getattr(layer, "norm", None) is not None
            source = getattr(layer, "linear", layer)
            _, inputs, outputs = source.weight.shape
            linear = nn.Linear(inputs, outputs)
            linear.weight.data.copy_(source.weight.data[index].T)
            linear.bias.data.copy_(source.bias.data[index, 0])
            self.linears.append(linear)
            if has_norm:
                norm = nn.LayerNorm(outputs)
                norm.weight.data.copy_(layer.norm.weight.data[index, 0])
                norm.bias.data.copy_(layer.norm.bias.data[index, 0])
                self.norms.append(norm)
            elif layer is not mlp.last:
                self.norms.append(nn.Identity())

    def forward(self, x, keep=None):
        for i, linear in enumerate(self.linears):
            x = linear(x)
            if i == 0 and keep is not None:
                x = x * keep
            last = i == len(self.linears) - 1
            if i < len(self.norms):
                x = self.norms[i](x)
            if not last:
                x = x * torch.tanh(nn.functional.softplus(x))
            elif self.group:
                pieces = [piece.exp() / piece.exp().sum(-1, keepdim=True) for piece in x.split(self.group, -1)]
                x = torch.cat(pieces, -1)
        return x

    def flat(self, attribute=None):
        """Tensors in the layout of the batched network; `attribute` maps a parameter to what to show of it."""
        show = attribute or (lambda p: p.data)
        out = []
        for i, linear in enumerate(self.linears):
            out += [show(linear.weight).T, show(linear.bias)[None]]
            if i < len(self.norms) and isinstance(self.norms[i], nn.LayerNorm):
                out += [show(self.norms[i].weight)[None], show(self.norms[i].bias)[None]]
        return out


class PlainConv(nn.Module):
    """Copy of one run's encoder of images: (B, C, size, size) -> (B, L)."""

    def __init__(self, encoder, index):
        super().__init__()
        self.group, self.layers = encoder.simnorm_dim, nn.ModuleList()
        for layer in encoder.convs.layers:
            _, outputs, inputs, kernel, _ = layer.weight.shape
            conv = nn.Conv2d(inputs, outputs, kernel, layer.stride)
            conv.weight.data.copy_(layer.weight.data[index])
            conv.bias.data.copy_(layer.bias.data[index])
            self.layers.append(conv)

    def forward(self, images):
        x = images / 255 - 0.5
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        x = self.layers[-1](x).reshape(len(images), -1)
        pieces = [piece.exp() / piece.exp().sum(-1, keepdim=True) for piece in x.split(self.group, -1)]
        return torch.cat(pieces, -1)

    def flat(self, attribute=None):
        show = attribute or (lambda p: p.data)
        return [show(p) for layer in self.layers for p in (layer.weight, layer.bias)]


def shifted(images, offsets, pad=3):
    """Each image (C, size, size) of a batch padded by repetition, then cut out at an offset in 0 .. 2 pad."""
    out = []
    for image, (down, right) in zip(images, offsets.tolist(), strict=True):
        size = image.shape[-1]
        wide = nn.functional.pad(image[None].double(), (pad,) * 4, mode="replicate")[0]
        out.append(wide[:, down : down + size, right : right + size])
    return torch.stack(out)


def join(x, embedding, action=None):
    """Observation or latent state, then the embedding of its task if there are several, then the action."""
    return torch.cat([part for part in (x, embedding, action) if part is not None], -1)


class PlainRun:
    """Run `run` of an agent."""

    def __init__(self, agent, run):
        self.hp, self.gamma, self.action_size, self.tasks = agent.hp, agent.gamma, agent.action_size, agent.spec.tasks
        m, k = agent.model, agent.hp.num_q
        self.rgb = agent.spec.obs_kind == "rgb"
        self.encoder = PlainConv(m.encoder, run) if self.rgb else PlainMLP(m.encoder, run)
        self.dynamics, self.reward, self.policy = (
            PlainMLP(net, run) for net in (m.dynamics, m.reward_head, m.policy_head)
        )
        self.q = [PlainMLP(m.online_q, run * k + i) for i in range(k)]
        self.target_q = [PlainMLP(m.target_q, run * k + i) for i in range(k)]
        self.termination = PlainMLP(m.termination_head, run) if self.hp.episodic else None
        self.bins = torch.linspace(self.hp.vmin, self.hp.vmax, self.hp.num_bins)
        self.scale = float(agent.scale.value[run])
        self.world = [p for net in (self.encoder, self.dynamics, self.reward, *self.q) for p in net.parameters()]
        others = [p for net in (self.dynamics, self.reward, *self.q) for p in net.parameters()]
        if self.termination is not None:
            self.world += self.termination.parameters()
            others += self.termination.parameters()
        if self.tasks:
            self.embedding = nn.Embedding(len(self.tasks), self.hp.task_dim, max_norm=1)
            self.embedding.weight.data.copy_(m.tasks.embedding.data[run])
            self.world.append(self.embedding.weight)
            others.append(self.embedding.weight)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.encoder.parameters()), "lr": self.hp.lr * self.hp.enc_lr_scale},
                {"params": others, "lr": self.hp.lr},
            ]
        )
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.hp.lr, eps=1e-5)

    # Scalars and distributions

    def decode(self, logits):
        if self.hp.regression == "continuous":
            return torch.sign(logits[..., 0]) * (torch.exp(torch.abs(logits[..., 0])) - 1)
        y = (torch.softmax(logits, -1) * self.bins).sum(-1)
        return torch.sign(y) * (torch.exp(torch.abs(y)) - 1)

    def two_hot(self, x):
        """Mass on each bin, one scalar at a time."""
        mass = torch.zeros(self.hp.num_bins)
        width = (self.hp.vmax - self.hp.vmin) / (self.hp.num_bins - 1)
        y = math.copysign(math.log(1 + abs(x)), x)
        position = (min(max(y, self.hp.vmin), self.hp.vmax) - self.hp.vmin) / width
        low = math.floor(position)
        mass[low] += 1 - (position - low)
        if position > low:
            mass[low + 1] += position - low
        return mass

    def cross_entropy(self, logits, scalars):
        """Mean over the batch; of squared errors in symlog space where the regression is continuous."""
        if self.hp.regression == "continuous":
            targets = torch.tensor([math.copysign(math.log(1 + abs(float(x))), float(x)) for x in scalars])
            return ((logits[:, 0] - targets) ** 2).mean()
        losses = [
            -(self.two_hot(float(x)) * torch.log_softmax(row, -1)).sum() for row, x in zip(logits, scalars, strict=True)
        ]
        return torch.stack(losses).mean()

    # Parts

    def embed(self, task):
        """Embeddings (..., T) of tasks (...); nothing to append for an agent of one task."""
        return self.embedding(task) if self.tasks else None

    def discount(self, task):
        """Of one task, by the rule for its episode length."""
        if not self.tasks:
            return self.gamma
        return min(max(1 - 5 / self.tasks[int(task)].episode_agent_steps, 0.95), 0.995)

    def used(self, task):
        """How many dimensions of the action a task has."""
        return self.tasks[int(task)].action_size if self.tasks else self.action_size

    def mask(self, task):
        """(..., A), 1 on those dimensions; one task at a time."""
        rows = [[float(i < self.used(one)) for i in range(self.action_size)] for one in torch.as_tensor(task).flatten()]
        return torch.tensor(rows).reshape(*torch.as_tensor(task).shape, self.action_size)

    def sample(self, z, eps, task, embedding):
        """Action, log standard deviation and noise."""
        raw = self.policy(join(z, embedding))
        mean, raw_std = raw[..., : self.action_size], raw[..., self.action_size :]
        low, high = self.hp.log_std_min, self.hp.log_std_max
        mask = self.mask(task)
        log_std = (low + 0.5 * (high - low) * (torch.tanh(raw_std) + 1)) * mask
        mean, eps = mean * mask, eps * mask
        return torch.tanh(mean + eps * log_std.exp()), log_std, eps

    @torch.no_grad()
    def td_target(self, batch, run, draws):
        """Sample by sample; (H, B)."""
        shifts = next(draws) if self.rgb else None
        eps, pair = next(draws), next(draws)
        target = torch.zeros(batch.reward.shape[1:])
        mask = next(draws).unflatten(1, target.shape) if self.hp.lasting_dropout else None
        tasks = self.tasks_of(batch, run)
        for t in range(target.shape[0]):
            for b in range(target.shape[1]):
                e = self.embed(tasks[b])
                if self.rgb:
                    z = self.encoder(shifted(batch.obs[run, t + 1, b : b + 1], shifts[t, b : b + 1]))[0]
                else:
                    z = self.encoder(join(batch.obs[run, t + 1, b], e))
                action = self.sample(z, eps[t, b], tasks[b], e)[0]
                za = join(z, e, action)
                keep = [None, None] if mask is None else mask[:, t, b]
                q = min(float(self.decode(self.target_q[int(h)](za, keep[i]))) for i, h in enumerate(pair))
                alive = 1 - float(batch.terminated[run, t, b])
                target[t, b] = float(batch.reward[run, t, b]) + self.discount(tasks[b]) * alive * q
        return target

    def tasks_of(self, batch, run):
        """(B,)"""
        return torch.zeros(batch.obs.shape[2], dtype=torch.long) if batch.task is None else batch.task[run]

    def update(self, batch, run, draws):
        hp, horizon = self.hp, self.hp.horizon
        size = batch.obs.shape[2]
        with torch.no_grad():
            draws, again = tee(draws)
            target = self.td_target(batch, run, draws)
            tasks = self.tasks_of(batch, run)
            if self.rgb:
                shifts = next(again)
                next_z = [self.encoder(shifted(batch.obs[run, t + 1], shifts[t])) for t in range(horizon)]
            else:
                next_z = [self.encoder(join(batch.obs[run, t + 1], self.embed(tasks))) for t in range(horizon)]
        e = self.embed(tasks)
        start = shifted(batch.obs[run, 0], next(draws)) if self.rgb else join(batch.obs[run, 0], e)
        mask = next(draws).unflatten(1, (horizon, size)) if hp.dropout else None
        z = self.encoder(start)
        zs, consistency, reward, value = [z], 0.0, 0.0, 0.0
        for t in range(horizon):
            weight, za = hp.rho**t, join(z, e, batch.action[run, t])
            reward += weight * self.cross_entropy(self.reward(za), batch.reward[run, t])
            for k, q in enumerate(self.q):
                logits = q(za, None if mask is None else mask[k, t])
                value += weight * self.cross_entropy(logits, target[t]) / hp.num_q
            z = self.dynamics(za)
            zs.append(z)
            consistency += weight * ((z - next_z[t]) ** 2).mean()
        consistency, reward, value = consistency / horizon, reward / horizon, value / horizon
        total = 20 * consistency + 0.1 * reward + 0.1 * value
        ends = {}
        if hp.episodic:
            ends = self.termination_loss(zs, batch.terminated[run], e)
            total = total + ends["termination_loss"]
        self.optimizer.zero_grad()
        total.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.world, hp.grad_clip_norm)
        self.optimizer.step()
        metrics = self.update_policy([z.detach() for z in zs], draws, tasks)
        with torch.no_grad():
            for slow, fast in zip(self.target_q, self.q, strict=True):
                for p, online in zip(slow.parameters(), fast.parameters(), strict=True):
                    p += hp.tau * (online - p)
        losses = {"consistency_loss": consistency, "reward_loss": reward, "value_loss": value, "total_loss": total}
        return {
            name: float(torch.as_tensor(x).detach())
            for name, x in (losses | ends | {"grad_norm": grad_norm} | metrics).items()
        }

    def termination_loss(self, zs, terminated, e):
        """Sample by sample, with the metrics of the last time step."""
        loss, right, said, true = 0.0, 0, 0, 0
        horizon, size = terminated.shape
        for t in range(horizon):
            for b in range(size):
                p = torch.sigmoid(self.termination(join(zs[t + 1], e)))[b, 0]
                ended = float(terminated[t, b])
                loss += -(ended * torch.log(p) + (1 - ended) * torch.log(1 - p)) / (horizon * size)
                if t == horizon - 1:
                    right, said, true = right + (p > 0.5) * ended, said + (p > 0.5), true + ended
        precision, recall = right / max(said, 1), right / max(true, 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-9)
        return {"termination_loss": loss, "termination_rate": true / size, "termination_f1": f1}

    def update_policy(self, zs, draws, task):
        hp = self.hp
        e = self.embed(task).detach() if self.tasks else None
        eps, pair = next(draws), next(draws)
        mask = next(draws).unflatten(1, (len(zs), zs[0].shape[0])) if hp.dropout else None
        a = torch.tensor([float(self.used(one)) for one in task])
        qs, gaussian, squashed, entropies = [], [], [], []
        for t, z in enumerate(zs):
            action, log_std, noise = self.sample(z, eps[t], task, e)
            za = join(z, e, action)
            heads = [
                self.decode(self.q[int(head)](za, None if mask is None else mask[i, t])) for i, head in enumerate(pair)
            ]
            qs.append((heads[0] + heads[1]) / 2)
            density = torch.distributions.Normal(torch.zeros_like(log_std), log_std.exp())
            gaussian.append(density.log_prob(noise * log_std.exp()).sum(-1))
            squashed.append(gaussian[-1] - torch.log(torch.relu(1 - action**2) + 1e-6).sum(-1))
        p5, p95 = torch.quantile(qs[0].detach(), torch.tensor([0.05, 0.95])).tolist()
        self.scale += hp.tau * (max(p95 - p5, 1.0) - self.scale)
        loss = 0.0
        for t, (q, log_prob) in enumerate(zip(qs, gaussian, strict=True)):
            entropy = -a * log_prob + (log_prob - squashed[t] if hp.squashed_entropy else 0.0)
            entropies.append(entropy.detach())
            loss += hp.rho**t * -(hp.entropy_coef * entropy + q / self.scale).mean() / len(zs)
        self.policy_optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.policy.parameters(), hp.grad_clip_norm)
        self.policy_optimizer.step()
        return {
            "pi_loss": loss,
            "pi_grad_norm": grad_norm,
            "pi_entropy": -torch.stack(squashed).mean(),
            "pi_scaled_entropy": torch.stack(entropies).mean(),
            "pi_scale": self.scale,
        }

    # Planning

    @torch.no_grad()
    def value_of(self, z, sequence, eps, pair, task, e, keep=(None, None)):
        """Predicted return of one action sequence (H, A)."""
        total, gamma, alive = 0.0, self.discount(task), 1.0
        for t, action in enumerate(sequence):
            za = join(z, e, action)
            reward = float(self.decode(self.reward(za)))
            if self.hp.uncertainty_coef:
                q = torch.stack([self.decode(head(za)) for head in self.q])
                reward -= self.hp.uncertainty_coef * float(q.mean()) * float(q.std())
            total += alive * gamma**t * reward
            z = self.dynamics(za)
            if self.hp.episodic and torch.sigmoid(self.termination(join(z, e))) > 0.5:
                alive = 0.0
        action = self.sample(z, eps, task, e)[0]
        za = join(z, e, action)
        q = sum(float(self.decode(self.q[int(head)](za, keep[i]))) for i, head in enumerate(pair)) / 2
        return total + alive * gamma ** len(sequence) * q

    @torch.no_grad()
    def plan(self, obs, start_mean, env, draws, iterations, explore, task=0):
        """Action and final mean (H, A) for one observation (O,), candidate by candidate."""
        hp, a = self.hp, self.action_size
        task = torch.tensor(task)
        e, mask = self.embed(task), self.mask(task)
        z0 = self.encoder(shifted(obs[None], next(draws)[env : env + 1]))[0] if self.rgb else self.encoder(join(obs, e))
        sequences = [[] for _ in range(hp.num_pi_trajs)]
        latents = [z0] * hp.num_pi_trajs
        for _ in range(hp.horizon if hp.num_pi_trajs else 0):
            eps = next(draws)[env]
            for i in range(hp.num_pi_trajs):
                action = self.sample(latents[i], eps[i], task, e)[0]
                sequences[i].append(action)
                latents[i] = self.dynamics(join(latents[i], e, action))
        policy_sequences = [torch.stack(sequence) for sequence in sequences]
        mean, std = start_mean.clone(), torch.full((hp.horizon, a), hp.max_std)
        for _ in range(iterations):
            eps = next(draws)[:, env]  # (H, S - P, A)
            sampled = [
                torch.clamp(mean + std * eps[:, i], -1, 1) * mask for i in range(hp.num_samples - hp.num_pi_trajs)
            ]
            candidates = policy_sequences + sampled
            value_eps, pair = next(draws)[env], next(draws)
            masks = next(draws).unflatten(1, (-1, len(candidates)))[:, env] if hp.lasting_dropout else None
            values = []
            for i, candidate in enumerate(candidates):
                keep = (None, None) if masks is None else masks[:, i]
                values.append(self.value_of(z0, candidate, value_eps[i], pair, task, e, keep))
            order = sorted(range(len(values)), key=lambda i: -values[i])[: hp.num_elites]
            weights = [math.exp(hp.temperature * (values[i] - values[order[0]])) for i in order]
            weights = [w / sum(weights) for w in weights]
            mean = sum(w * candidates[i] for w, i in zip(weights, order, strict=True)) / (sum(weights) + 1e-9)
            variance = sum(w * (candidates[i] - mean) ** 2 for w, i in zip(weights, order, strict=True))
            std = (variance / (sum(weights) + 1e-9)).sqrt().clamp(hp.min_std, hp.max_std) * mask
        gumbel = next(draws)[env]
        scores = [math.log(w) + float(g) for w, g in zip(weights, gumbel, strict=True)]
        action = candidates[order[scores.index(max(scores))]][0]
        if explore:
            action = action + next(draws)[env] * std[0]
        return action.clamp(-1, 1), mean
