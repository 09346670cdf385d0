"""DrQ-v2's returns, noise, schedule and update against slow, obvious versions."""

from __future__ import annotations

import copy

import pytest
import torch
from pixel_cases import (
    CPU,
    A,
    B,
    assert_close,
    batch,
    of_run,
    ours_and_plain,
    plain_encoder,
    plain_mlp,
    plain_trunk,
    spec,
)
from torch import nn

from agents import registry
from agents.augmentation import random_shift
from agents.noise import Noise
from agents.protocol import AgentSpec
from baselines.drqv2 import DrQv2, n_step_return, noisy_action
from baselines.hyperparameters.drqv2 import DrQv2 as Hyperparameters
from baselines.networks import PixelEncoder, Trunk, TwinCritic, mlp
from bench.errors import UserError
from bench.tasks import get as get_task

SMALL = Hyperparameters(
    num_channels=3, feature_dim=5, hidden_dim=8, batch_size=B, seed_agent_steps=100, lr=1e-3, shift_pad=2
)


def agent(seeds=(1, 2), num_envs=1, **changes):
    hp = Hyperparameters(**(SMALL.model_dump() | changes))
    return DrQv2(spec(num_envs=num_envs), hp, seeds, CPU)


# Returns and noise


def test_n_step_returns_by_hand():
    reward = torch.tensor([[[1.0, 1.0, 1.0], [10.0, 10.0, 10.0], [100.0, 100.0, 100.0]]])  # (1, 3 steps, 3 slices)
    terminated = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    total, factor = n_step_return(reward, terminated, 0.5)
    assert total.tolist() == [[1 + 5 + 25, 1 + 5, 1 + 5 + 25]]
    assert factor.tolist() == [[0.125, 0, 0]]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_step_returns_are_those_of_a_loop(n):
    data = batch(runs=2, length=n + 1)
    total, factor = n_step_return(data.reward, data.terminated, 0.9)
    for run in range(2):
        for i in range(B):
            expected, weight = 0.0, 1.0
            for step in range(n):
                expected += weight * data.reward[run, step, i].item()
                weight *= 0.9
                if data.terminated[run, step, i]:
                    weight = 0.0
            assert total[run, i].item() == pytest.approx(expected, abs=1e-6)
            assert factor[run, i].item() == pytest.approx(weight, abs=1e-6)


def test_noise_is_clipped_and_the_action_stays_in_its_range_with_a_gradient_as_if_it_had_none():
    mean = torch.tensor([0.0, 0.0, 0.9, -0.9], requires_grad=True)
    noise = torch.tensor([0.1, 5.0, 5.0, -5.0])
    action = noisy_action(mean, 0.5, noise, clip=0.3)
    assert_close(action.detach(), torch.tensor([0.05, 0.3, 1 - 1e-6, -1 + 1e-6]), atol=1e-7)
    (action * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert mean.grad.tolist() == [1, 2, 3, 4]
    assert_close(noisy_action(mean, 0.5, noise, clip=None).detach()[1], torch.tensor(1 - 1e-6), atol=1e-7)
    assert noisy_action(mean, 9.0, torch.randn(1000, 4), clip=None).abs().max() <= 1


# Schedules


@pytest.mark.parametrize(("agent_steps", "std"), [(0, 1.0), (250_000, 0.55), (500_000, 0.1), (900_000, 0.1)])
def test_noise_falls_linearly_over_the_agent_steps(agent_steps, std):
    one = agent((1,))
    one.acted = agent_steps - one.seed_agent_steps
    assert one.agent_steps == agent_steps
    assert one.std == pytest.approx(std)


def test_agent_steps_are_counted_by_acting_in_training():
    one = agent((1,), num_envs=3, seed_agent_steps=300)
    obs, first = torch.zeros(1, 3, 9, 20, 20, dtype=torch.uint8), torch.zeros(1, 3, dtype=torch.bool)
    assert one.agent_steps == 300
    one.act(obs, first, explore=False)
    assert one.agent_steps == 300
    one.act(obs, first, explore=True)
    one.act(obs, first, explore=True)
    assert one.agent_steps == 306
    assert agent((1,), num_envs=3, seed_agent_steps=301).agent_steps == 303  # the loop acts at random until then


@pytest.mark.parametrize("num_envs", [1, 3])
def test_one_update_every_second_agent_step_after_the_random_ones(num_envs):
    one = agent((1,), num_envs=num_envs, seed_agent_steps=300)
    due = [one.updates_due(step, step + num_envs) for step in range(0, 900, num_envs)]
    assert sum(due) == (900 - 300) // 2
    assert not any(due[: 300 // num_envs])


# Update


class PlainDrQv2:
    """One run, with torch's own modules and three optimisers."""

    def __init__(self, fleet, run, seed):
        self.hp = fleet.hyperparameters
        self.encoder = plain_encoder(fleet.encoder, run)
        self.actor_trunk = plain_trunk(fleet.actor[0], run)
        self.actor_head = plain_mlp(fleet.actor[1], run)
        self.actor = nn.ModuleList([self.actor_trunk, self.actor_head])
        self.critic = nn.ModuleList(
            [plain_trunk(fleet.critic.trunk, run), *(plain_mlp(fleet.critic.net, 2 * run + k) for k in range(2))]
        )
        self.target = copy.deepcopy(self.critic)
        self.optimizers = [
            torch.optim.Adam(part.parameters(), lr=self.hp.lr) for part in (self.encoder, self.critic, self.actor)
        ]
        self.noise = Noise([seed], "learn", CPU)

    def see(self, images):
        shifted = random_shift(images[None], self.hp.shift_pad, self.noise)[0]
        return self.encoder(shifted / 255 - 0.5)

    def act(self, features, std):
        mean = torch.tanh(self.actor_head(torch.tanh(self.actor_trunk(features))))
        eps = (std * self.noise.normal(B, A)[0]).clamp(-0.3, 0.3)
        action = mean + eps
        return action - action.detach() + action.detach().clamp(-1 + 1e-6, 1 - 1e-6)

    @staticmethod
    def q(critic, features, action):
        x = torch.cat([torch.tanh(critic[0](features)), action], 1)
        return critic[1](x)[:, 0], critic[2](x)[:, 0]

    def update(self, data, std):
        images = data.obs[0, 0].float(), data.obs[0, -1].float()
        features = self.see(images[0])
        with torch.no_grad():
            next_features = self.see(images[1])
            next_q = self.q(self.target, next_features, self.act(next_features, std))
        target = torch.zeros(B)
        for i in range(B):
            weight = 1.0
            for step in range(self.hp.n_step):
                target[i] += weight * data.reward[0, step, i]
                weight *= self.hp.discount * (1 - data.terminated[0, step, i].item())
            target[i] += weight * min(next_q[0][i], next_q[1][i])
        encoder, critic, actor = self.optimizers
        q = self.q(self.critic, features, data.action[0, 0])
        critic_loss = nn.functional.mse_loss(q[0], target) + nn.functional.mse_loss(q[1], target)
        encoder.zero_grad()
        critic.zero_grad()
        critic_loss.backward()
        critic.step()
        encoder.step()

        features = features.detach()
        actor_loss = -torch.minimum(*self.q(self.critic, features, self.act(features, std))).mean()
        actor.zero_grad()
        actor_loss.backward()
        actor.step()
        for slow, fast in zip(self.target.parameters(), self.critic.parameters(), strict=True):
            slow.data = 0.01 * fast.data + 0.99 * slow.data
        return critic_loss, actor_loss

    def assert_same(self, fleet, run):
        pairs = [(fleet.encoder, self.encoder, run), (fleet.actor, self.actor, run)]
        for ours, theirs in ((fleet.critic, self.critic), (fleet.target, self.target)):
            pairs += [(ours.trunk, theirs[0], run), *((ours.net, theirs[1 + k], 2 * run + k) for k in range(2))]
        for ours, theirs, member in pairs:
            for one, other in ours_and_plain(ours, theirs, member):
                assert_close(one, other)


@pytest.mark.parametrize("n_step", [1, 3])
def test_update_equals_the_plain_one(n_step):
    seeds = (1, 2)
    fleet = agent(seeds, n_step=n_step, std_decay_agent_steps=1000)
    plain = [PlainDrQv2(fleet, run, seed) for run, seed in enumerate(seeds)]
    assert 0.9 < fleet.std < 1
    for number in range(3):
        data = batch(len(seeds), n_step + 1, seed=number)
        metrics = fleet.update(data)
        for run, one in enumerate(plain):
            critic_loss, actor_loss = one.update(of_run(data, run), fleet.std)
            assert_close(metrics["critic_loss"][run], critic_loss.detach())
            assert_close(metrics["actor_loss"][run], actor_loss.detach())
            one.assert_same(fleet, run)


def test_actions_explore_around_the_mean_that_evaluation_takes():
    one, other = agent(), agent()
    obs, first = batch().obs[:, 0, :1], torch.zeros(2, 1, dtype=torch.bool)
    mean = one.act(obs, first, explore=False)
    assert torch.equal(mean, one.act(obs, first, explore=False))
    noise = Noise((1, 2), "explore", CPU).normal(1, A)
    assert_close(other.act(obs, first, explore=True), (mean + 0.99991 * noise).clamp(-1 + 1e-6, 1 - 1e-6), atol=1e-4)


# States


def test_a_loaded_agent_goes_on_exactly_and_alone():
    original = agent()
    obs, first = batch().obs[:, 0, :1], torch.zeros(2, 1, dtype=torch.bool)
    for number in range(2):
        original.act(obs, first, explore=True)
        original.update(batch(length=4, seed=number))
    alone = agent((9,))
    alone.load_state_dict([original.state_dict(1)])
    assert alone.agent_steps == original.agent_steps
    data = batch(length=4, seed=9)
    whole, part = original.update(data), alone.update(of_run(data, 1))
    for name, value in part.items():
        assert_close(value, whole[name][1:])
    assert_close(alone.act(obs[1:], first[1:], explore=True), original.act(obs, first, explore=True)[1:])
    with pytest.raises(ValueError, match="different numbers of agent steps"):
        original.load_state_dict([original.state_dict(0), agent((3,)).state_dict(0)])


# Settings


@pytest.mark.parametrize(
    ("task", "expected"),
    {
        "cup-catch": {"std_decay_agent_steps": 100_000, "n_step": 3, "batch_size": 256, "lr": 1e-4, "feature_dim": 50},
        "walker-walk": {"std_decay_agent_steps": 100_000, "n_step": 1, "batch_size": 512},
        "walker-run": {"std_decay_agent_steps": 500_000, "n_step": 1, "batch_size": 512},
        "acrobot-swingup": {"std_decay_agent_steps": 500_000, "replay_capacity": 1_000_000},
        "quadruped-run": {"std_decay_agent_steps": 500_000, "replay_capacity": 100_000},
        "humanoid-walk": {"std_decay_agent_steps": 2_000_000, "lr": 8e-5, "feature_dim": 100, "n_step": 3},
    }.items(),
)
def test_settings_by_difficulty_class_and_task(task, expected):
    values = registry.resolve_hyperparameters("drqv2", {}, get_task(task), "rgb")
    assert {name: values[name] for name in expected} == expected
    chosen = registry.resolve_hyperparameters("drqv2", {"std_decay_agent_steps": 7}, get_task(task), "rgb")
    assert chosen["std_decay_agent_steps"] == 7


@pytest.mark.parametrize(
    ("action_size", "feature_dim", "actor_size", "critic_size"),
    [(6, 50, 3_068_124, 4_178_136), (21, 100, 5_094_849, 6_271_406)],
)
def test_sizes_are_the_published_ones(action_size, feature_dim, actor_size, critic_size):
    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    encoder = PixelEncoder(1, (9, 84, 84), 32, 0.5)
    trunk = Trunk(1, encoder.features, feature_dim, tanh=True)
    assert (encoder.features, count(encoder)) == (39_200, 30_368)
    assert count(trunk, mlp(1, feature_dim, [1024, 1024], action_size)) == actor_size
    assert count(TwinCritic(1, feature_dim, action_size, [1024, 1024], trunk)) == critic_size


def test_what_it_cannot_learn_is_refused():
    with pytest.raises(UserError, match=r"seed_agent_steps 100 ends before .* give at least 200"):
        agent(num_envs=2)
    with pytest.raises(UserError, match="n_step 101 is longer than an episode"):
        agent(n_step=101)
    with pytest.raises(UserError, match=r"std_end 0\.1 must be at most std_start 0\.05"):
        registry.resolve_hyperparameters("drqv2", {"std_start": 0.05})
    states = AgentSpec((5,), "state", A, 100, 1000)
    with pytest.raises(UserError, match="drqv2 learns from rgb observations, not state: use obs=rgb"):
        DrQv2(states, SMALL, (1,), CPU)
