"""SimbaV2's pieces against slow plain ones: loops over rows, atoms and steps, in double precision where it helps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from agents.noise import Noise
from agents.protocol import AgentSpec, Batch
from agents.registry import resolve_hyperparameters
from baselines.hyperparameters.simbav2 import SimbaV2 as Hyperparameters
from baselines.hyperspherical import HyperDense
from baselines.simbav2 import SimbaV2, project_distribution
from bench.tasks import get

CPU = torch.device("cpu")
OBS, A, B = 4, 2, 6
SPEC = AgentSpec(obs_shape=(OBS,), obs_kind="state", action_size=A, episode_agent_steps=500, budget_agent_steps=10_000)
SMALL = {"actor_dim": 8, "critic_dim": 12, "batch_size": B, "num_bins": 11}


def agent(seeds=(1, 2), **changes):
    made = SimbaV2(SPEC, Hyperparameters(**(SMALL | changes)), seeds, CPU)
    rng = torch.Generator().manual_seed(5)
    for _ in range(20):
        obs = 3 + 2 * torch.randn(len(seeds), 1, OBS, generator=rng)
        never = torch.zeros(len(seeds), 1, dtype=torch.bool)
        made.observe(obs, torch.randn(len(seeds), 1, generator=rng), never, never)
    return made


def batch(runs=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(runs, 2, B, OBS, generator=rng),
        action=torch.randn(runs, 1, B, A, generator=rng).tanh(),
        reward=torch.randn(runs, 1, B, generator=rng),
        terminated=(torch.rand(runs, 1, B, generator=rng) < 0.3).float(),
    )


# A plain network of one member: dicts of weights, vectors one at a time.


def weights(module, member):
    return {name: value[member].detach().clone() for name, value in module.named_parameters()}


def unit(x):
    return x / max(math.sqrt(float((x * x).sum())), 1e-8) if not x.requires_grad else x / x.norm().clamp_min(1e-8)


def plain_body(w, x, dim, blocks):
    x = unit(torch.cat([x, torch.tensor([3.0])]))
    x = unit(w["0.scaler.scaler"][0] * (x @ w["0.dense.weight"]))  # init = scale: the factor is 1
    for number in range(1, blocks + 1):
        hidden = torch.relu(w[f"{number}.scaler.scaler"][0] * (x @ w[f"{number}.expand.weight"])) + 1e-8
        m = unit(hidden @ w[f"{number}.shrink.weight"])
        alpha = w[f"{number}.alpha.scaler"][0] * math.sqrt(dim) / (blocks + 1)
        x = unit(x + alpha * (m - x))
    return x


def plain_head(w, z):
    return (w["scaler.scaler"][0] * (z @ w["hidden.weight"])) @ w["dense.weight"] + w["bias"][0]


class Plain:
    """One run of an agent, with its parameters as they are now."""

    def __init__(self, fleet, run):
        self.hp, self.run = fleet.hp, run
        members = fleet.critic.members
        self.actor = {part: self.leaves(getattr(fleet.actor, part), run) for part in ("body", "mean", "log_std")}
        self.critics, self.targets = (
            [
                {part: self.leaves(getattr(net, part), run * members + k) for part in ("body", "head")}
                for k in range(members)
            ]
            for net in (fleet.critic, fleet.target)
        )
        self.log_alpha = fleet.log_alpha[run, 0].detach().clone().requires_grad_()

    @staticmethod
    def leaves(module, member):
        return {name: value.requires_grad_() for name, value in weights(module, member).items()}

    def policy(self, obs, eps):
        z = plain_body(self.actor["body"], obs, self.hp.actor_dim, self.hp.actor_blocks)
        mean, raw = plain_head(self.actor["mean"], z), plain_head(self.actor["log_std"], z)
        log_std = -10 + 6 * (torch.tanh(raw) + 1)
        u = mean + log_std.exp() * eps
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - u.tanh() ** 2)
        return u.tanh(), log_prob.sum()

    def log_probs(self, critic, obs, action):
        z = plain_body(critic["body"], torch.cat([obs, action]), self.hp.critic_dim, self.hp.critic_blocks)
        return plain_head(critic["head"], z).log_softmax(-1)

    def adam(self, tree, lr):
        """First step of Adam, then the projection of the dense layers' weights."""
        for w in tree:
            for name, value in w.items():
                step = value.grad / (value.grad.abs() + 1e-8)
                value.data -= lr * step
                if name.endswith("weight"):
                    for column in range(value.shape[1]):
                        value.data[:, column] /= value.data[:, column].norm()


@pytest.mark.parametrize("double_q", [False, True])
def test_an_update_is_the_plain_one(double_q):
    fleet, data = agent(double_q=double_q), batch()
    plains = [Plain(fleet, run) for run in (0, 1)]
    moments = [[m[run].float() for m in (fleet.obs_moments.mean, fleet.obs_moments.var)] for run in (0, 1)]
    scales = fleet.reward_scale()
    metrics = fleet.update(data)
    bins = torch.linspace(-5, 5, 11)
    for run, plain in enumerate(plains):
        noise = Noise([run + 1], "learn", CPU)
        mean, var = moments[run]
        obs, next_obs = (((data.obs[run, t] - mean) / (var + 1e-8).sqrt()) for t in (0, 1))

        # 1. actor and temperature
        eps, alpha = noise.normal(B, A)[0], plain.log_alpha.detach().exp()
        losses, entropies = [], []
        for i in range(B):
            action, log_prob = plain.policy(obs[i], eps[i])
            q = min((plain.log_probs(c, obs[i], action).exp() * bins).sum() for c in plain.critics)
            losses.append(alpha * log_prob - q)
            entropies.append(-log_prob.detach())
        actor_loss, entropy = sum(losses) / B, sum(entropies) / B
        actor_loss.backward()
        (plain.log_alpha.exp() * (entropy + 0.5 * A)).backward()
        lr = 1e-4
        plain.adam(plain.actor.values(), lr)
        plain.log_alpha.data -= lr * plain.log_alpha.grad.sign()
        for critic in plain.critics:
            for w in critic.values():
                for value in w.values():
                    value.grad = None

        # 2. critic, with the new actor and temperature
        eps, critic_loss = noise.normal(B, A)[0], torch.zeros(())
        for i in range(B):
            with torch.no_grad():
                action, log_prob = plain.policy(next_obs[i], eps[i])
                found = [plain.log_probs(target, next_obs[i], action).exp() for target in plain.targets]
                probs = min(found, key=lambda p: float((p * bins).sum()))
                goal = torch.zeros(11)
                for p, b in zip(probs, bins, strict=True):
                    y = data.reward[run, 0, i] / scales[run, 0]
                    if not data.terminated[run, 0, i]:
                        y = y + 0.99 * (b - plain.log_alpha.exp() * log_prob)
                    place = (min(max(float(y), -5.0), 5.0) + 5) / 1.0
                    low = min(int(place), 9)
                    goal[low] += p * (1 - (place - low))
                    goal[low + 1] += p * (place - low)
            for critic in plain.critics:
                critic_loss = critic_loss - (goal * plain.log_probs(critic, obs[i], data.action[run, 0, i])).sum() / B
        critic_loss.backward()
        before = [{key: w.clone() for key, w in c["body"].items()} for c in plain.critics]
        for critic in plain.critics:
            plain.adam(critic.values(), lr)

        close = {"rtol": 1e-3, "atol": 2e-5}
        torch.testing.assert_close(metrics["actor_loss"][run], actor_loss.detach(), **close)
        torch.testing.assert_close(metrics["critic_loss"][run], critic_loss.detach(), **close)
        torch.testing.assert_close(metrics["entropy"][run], entropy, **close)
        torch.testing.assert_close(fleet.log_alpha[run, 0].detach(), plain.log_alpha.detach())
        members = len(plain.critics)
        for k, critic in enumerate(plain.critics):
            ours = weights(fleet.critic.body, run * members + k)
            targets = weights(fleet.target.body, run * members + k)
            for name, value in critic["body"].items():
                torch.testing.assert_close(ours[name], value.detach(), **close)
                torch.testing.assert_close(targets[name], torch.lerp(before[k][name], ours[name], 0.005), **close)
        for name, value in plain.actor["body"].items():
            torch.testing.assert_close(weights(fleet.actor.body, run)[name], value.detach(), **close)


def test_weights_stay_on_the_sphere_and_begin_as_specified():
    fleet = agent()
    for number in range(3):
        for network in (fleet.actor, fleet.critic):
            for layer in network.modules():
                if isinstance(layer, HyperDense):
                    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones_like(layer.weight[:, 0]))
        z = fleet.actor.body(torch.randn(2, 5, OBS))
        torch.testing.assert_close(z.norm(dim=-1), torch.ones(2, 5))
        fleet.update(batch(seed=number))
    fresh = agent()
    alphas = [block.alpha for block in list(fresh.critic.body)[1:]]
    assert [float((a.scaler * a.factor).mean()) for a in alphas] == pytest.approx([1 / 3, 1 / 3])
    assert all(torch.equal(a, b) for a, b in zip(fresh.critic.parameters(), fresh.target.parameters(), strict=True))


def test_parameters_at_the_authors_sizes():
    """Counted by hand from the layers: 169,612 of the actor and 4,530,277 of a critic for walker's sizes."""
    spec = AgentSpec((24,), "state", 6, 500, 1000)
    full = SimbaV2(spec, Hyperparameters(), [1], CPU)
    count = [sum(p.numel() for p in net.parameters()) for net in (full.actor, full.critic)]
    assert count == [169_612, 4_530_277]


def test_moments_are_those_of_all_values():
    fleet = SimbaV2(SPEC, Hyperparameters(**SMALL), [1], CPU)
    rng = np.random.default_rng(0)
    obs = 5 + 3 * rng.standard_normal((200, OBS)).astype(np.float32)
    reward = rng.standard_normal(200).astype(np.float32)
    ended = rng.random(200) < 0.05
    total, sums = 0.0, []
    for row, r, end in zip(obs, reward, ended, strict=True):
        over = torch.tensor([[bool(end)]])
        fleet.observe(torch.from_numpy(row)[None, None], torch.tensor([[r]]), over, torch.zeros_like(over))
        total = 0.99 * (0 if end else 1) * total + float(r)
        sums.append(total)
    np.testing.assert_allclose(fleet.obs_moments.mean[0], obs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(fleet.obs_moments.var[0], obs.var(0), rtol=1e-3)
    largest = max(map(abs, sums))
    assert float(fleet.reward_scale()) == pytest.approx(max(math.sqrt(np.var(sums)), largest / 5), rel=1e-3)
    assert float(fleet.largest_return) == pytest.approx(largest)


def test_the_projection_of_a_distribution():
    bins = torch.linspace(-5, 5, 11)
    probs = torch.rand(3, 11).softmax(-1)
    torch.testing.assert_close(project_distribution(probs, bins.expand(3, -1), 5.0), probs)
    atoms = (bins * 0.5 + 0.3).expand(3, -1)
    moved = project_distribution(probs, atoms, 5.0)
    torch.testing.assert_close(moved @ bins, (probs * atoms).sum(-1))  # linear sharing keeps the mean
    far = project_distribution(probs, torch.full((3, 11), 99.0), 5.0)
    torch.testing.assert_close(far, nn.functional.one_hot(torch.tensor([10, 10, 10]), 11).float())


def test_schedules_and_settings_by_the_task():
    fleet = agent(lr_decay_agent_steps=4, updates_per_agent_step=2)
    rates = []
    for number in range(10):
        rates.append(fleet.learning_rate())
        fleet.update(batch(seed=number))
    assert rates == pytest.approx([1e-4 - 5e-5 * min(t / 8, 1) for t in range(10)])
    assert fleet.critic_optimizer.param_groups[0]["lr"] == pytest.approx(5e-5)
    assert (fleet.updates_due(0, 5000), fleet.updates_due(4999, 5003)) == (0, 6)
    dog, myo = (resolve_hyperparameters("simbav2", {}, get(task)) for task in ("dog-run", "myo-reach"))
    assert (dog["updates_per_agent_step"], dog["lr_decay_agent_steps"], dog["double_q"]) == (2, 500_000, False)
    assert (myo["updates_per_agent_step"], myo["lr_decay_agent_steps"]) == (1, 1_000_000)
    hp = Hyperparameters()
    assert [hp.discount(n) for n in (500, 100, 1000, 10_000)] == pytest.approx([0.99, 0.95, 0.995, 0.995])
