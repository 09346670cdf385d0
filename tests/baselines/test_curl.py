"""CURL, and SAC from pixels beneath it, against slow, obvious versions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pixel_cases import (
    CPU,
    SIZE,
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
from torch import distributions as D
from torch import nn

from agents import registry
from agents.augmentation import random_crop
from agents.noise import Noise
from agents.protocol import AgentSpec
from baselines.curl import CURL, contrastive_loss
from baselines.hyperparameters.curl import CURL as Hyperparameters
from baselines.hyperparameters.sac import SAC as SACHyperparameters
from baselines.networks import PixelEncoder, Trunk, TwinCritic, delta_orthogonal_kernel
from baselines.sac import SAC, TanhGaussianActor
from bench.errors import UserError
from bench.tasks import get as get_task

SHAPES = {"num_channels": 3, "feature_dim": 5, "hidden_dim": 8, "batch_size": B}
CROP = 17


def curl(seeds=(1, 2), **changes):
    hp = Hyperparameters(**(SHAPES | {"image_size": SIZE, "crop_size": CROP, "alpha_lr": 1e-2} | changes))
    return CURL(spec(), hp, seeds, CPU)


def pixel_sac(seeds=(1, 2), **changes):
    defaults = registry.task_defaults("sac", get_task("cup-catch"), "rgb")
    return SAC(spec(), SACHyperparameters(**(defaults | SHAPES | {"alpha_lr": 1e-2} | changes)), seeds, CPU)


# Contrastive loss


def test_the_contrastive_loss_is_that_of_loops():
    torch.manual_seed(0)
    query, key, similarity = torch.randn(2, B, 5), torch.randn(2, B, 5), torch.rand(2, 5, 5)
    losses = contrastive_loss(query, key, similarity)
    for run in range(2):
        total = 0.0
        for i in range(B):
            logits = [
                sum(
                    query[run, i, a].item() * similarity[run, a, b].item() * key[run, j, b].item()
                    for a in range(5)
                    for b in range(5)
                )
                for j in range(B)
            ]
            total -= logits[i] - math.log(sum(math.exp(logit) for logit in logits))
        assert losses[run].item() == pytest.approx(total / B, rel=1e-4)


def test_one_that_tells_nothing_loses_the_logarithm_of_the_batch():
    assert_close(
        contrastive_loss(torch.zeros(1, 8, 3), torch.randn(1, 8, 3), torch.rand(1, 3, 3)), torch.tensor([math.log(8)])
    )


# Initial weights


def test_kernels_are_orthogonal_in_the_centre_and_zero_elsewhere():
    weight = torch.full((6, 4, 3, 3), 9.0)
    delta_orthogonal_kernel(weight, torch.Generator().manual_seed(0))
    centre = weight[:, :, 1, 1].clone()
    assert_close(centre.T @ centre, 2 * torch.eye(4))
    weight[:, :, 1, 1] = 0
    assert not weight.any()


def test_initial_state():
    fleet = curl()
    assert fleet.similarity.min() >= 0
    assert fleet.similarity.max() < 1
    assert not torch.equal(fleet.similarity[0], fleet.similarity[1])
    kernel = fleet.encoder.convs.layers[1].weight[1]
    assert not kernel[:, :, 0, 0].any()
    assert_close(kernel[:, :, 1, 1] @ kernel[:, :, 1, 1].T, 2 * torch.eye(3))
    online = [*fleet.encoder.parameters(), *fleet.critic.parameters()]
    slow = [*fleet.target_encoder.parameters(), *fleet.target.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(online, slow, strict=True))
    assert not any(p.requires_grad for p in slow)


# Update


class PlainPixelSAC:
    """One run of SAC from pixels, with torch's own modules, distributions and an optimiser for each loss."""

    def __init__(self, fleet, run, seed):
        hp = self.hp = fleet.hyperparameters
        self.convs = plain_encoder(fleet.encoder, run)
        self.actor = nn.ModuleList([plain_trunk(fleet.actor.trunk, run), plain_mlp(fleet.actor.net, run)])
        self.trunk = plain_trunk(fleet.critic.trunk, run)
        self.q_nets = nn.ModuleList(plain_mlp(fleet.critic.net, 2 * run + k) for k in range(2))
        self.encoder = nn.Sequential(self.convs, self.trunk)
        self.slow_encoder, self.slow_q = copy.deepcopy(self.encoder), copy.deepcopy(self.q_nets)
        self.log_alpha = torch.tensor(math.log(hp.init_temperature), requires_grad=True)
        self.critic_optimizer = torch.optim.Adam(
            [*self.encoder.parameters(), *self.q_nets.parameters()], lr=hp.critic_lr
        )
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=hp.actor_lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=hp.alpha_lr, betas=(0.5, 0.999))
        self.noise = Noise([seed], "learn", CPU)
        self.updates = 0

    def policy(self, images):
        with torch.no_grad():
            features = self.convs(images)
        mean, raw = self.actor[1](self.actor[0](features)).chunk(2, -1)
        log_std = -10 + 6 * (torch.tanh(raw) + 1)
        u = mean + log_std.exp() * self.noise.normal(B, A)[0]
        action = torch.tanh(u)
        log_prob = D.Normal(mean, log_std.exp()).log_prob(u) - torch.log(1 - action.double() ** 2).float()
        return action, log_prob.sum(-1)

    @staticmethod
    def q(encoder, nets, images, action):
        return [net(torch.cat([encoder(images), action], -1)).squeeze(-1) for net in nets]

    def learn(self, obs, next_obs, data):
        """The update on images in [0, 1], and the losses."""
        hp = self.hp
        with torch.no_grad():
            alpha = self.log_alpha.exp()
            action, log_prob = self.policy(next_obs)
            next_q = torch.minimum(*self.q(self.slow_encoder, self.slow_q, next_obs, action)) - alpha * log_prob
            target = data.reward[0, 0] + hp.discount * (1 - data.terminated[0, 0]) * next_q
        critic_loss = sum(
            nn.functional.mse_loss(q, target) for q in self.q(self.encoder, self.q_nets, obs, data.action[0, 0])
        )
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        losses = {"critic_loss": critic_loss}
        if self.updates % 2 == 0:
            action, log_prob = self.policy(obs)
            losses["actor_loss"] = (
                alpha * log_prob - torch.minimum(*self.q(self.encoder, self.q_nets, obs, action))
            ).mean()
            losses["alpha_loss"] = (self.log_alpha.exp() * (A - log_prob.detach())).mean()
            for loss, optimizer in (("actor_loss", self.actor_optimizer), ("alpha_loss", self.alpha_optimizer)):
                optimizer.zero_grad()
                losses[loss].backward()
                optimizer.step()
            for slow, fast, tau in ((self.slow_q, self.q_nets, 0.01), (self.slow_encoder, self.encoder, 0.05)):
                for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
                    one.data = tau * other.data + (1 - tau) * one.data
        self.updates += 1
        return losses

    def update(self, data):
        return self.learn(data.obs[0, 0] / 255, data.obs[0, 1] / 255, data)

    def assert_same(self, fleet, run):
        pairs = [(fleet.encoder, self.convs, run), (fleet.target_encoder, self.slow_encoder[0], run)]
        pairs += [(fleet.critic.trunk, self.trunk, run), (fleet.target.trunk, self.slow_encoder[1], run)]
        pairs += [(fleet.actor, self.actor, run)]
        for k in range(2):
            pairs += [(fleet.critic.net, self.q_nets[k], 2 * run + k), (fleet.target.net, self.slow_q[k], 2 * run + k)]
        for ours, theirs, member in pairs:
            for one, other in ours_and_plain(ours, theirs, member):
                assert_close(one, other)
        assert_close(fleet.log_alpha[run, 0], self.log_alpha)


class PlainCURL(PlainPixelSAC):
    def __init__(self, fleet, run, seed):
        super().__init__(fleet, run, seed)
        self.similarity = fleet.similarity[run].detach().clone().requires_grad_()
        lr = self.hp.encoder_lr
        self.encoder_optimizer = torch.optim.Adam(self.encoder.parameters(), lr=lr)
        self.contrastive_optimizer = torch.optim.Adam([*self.encoder.parameters(), self.similarity], lr=lr)

    def crop(self, images):
        return random_crop(images[None], CROP, self.noise, SIZE - CROP)[0] / 255

    def update(self, data):
        anchor, next_obs, positive = (self.crop(data.obs[0, which]) for which in (0, 1, 0))
        losses = self.learn(anchor, next_obs, data)
        with torch.no_grad():
            keys = self.slow_encoder(positive)
        logits = self.encoder(anchor) @ self.similarity @ keys.T
        losses["contrastive_loss"] = nn.functional.cross_entropy(logits, torch.arange(B))
        self.encoder.zero_grad()
        self.contrastive_optimizer.zero_grad()
        losses["contrastive_loss"].backward()
        self.encoder_optimizer.step()
        self.contrastive_optimizer.step()
        return losses

    def assert_same(self, fleet, run):
        super().assert_same(fleet, run)
        assert_close(fleet.similarity[run], self.similarity)


@pytest.mark.parametrize(("make", "plain_kind"), [(pixel_sac, PlainPixelSAC), (curl, PlainCURL)])
def test_update_equals_the_plain_one(make, plain_kind):
    seeds = (1, 2)
    fleet = make(seeds)
    plain = [plain_kind(fleet, run, seed) for run, seed in enumerate(seeds)]
    for number in range(4):
        data = batch(len(seeds), seed=number)
        metrics = fleet.update(data)
        for run, one in enumerate(plain):
            for name, loss in one.update(of_run(data, run)).items():
                assert_close(metrics[name][run], loss.detach())
            one.assert_same(fleet, run)


def test_the_encoder_takes_two_steps_on_the_contrastive_loss():
    """The first step of each Adam is lr in size, whatever the gradient."""
    fleet = curl((1,), encoder_lr=1e-3)
    before = [p.detach().clone() for p in fleet.encoder_parameters]
    similarity = fleet.similarity.detach().clone()
    images = batch(1).obs[:, 0]
    fleet.contrast(fleet.crop(images), fleet.crop(images))
    moved = torch.cat(
        [(p.detach() - old).abs().flatten() for p, old in zip(fleet.encoder_parameters, before, strict=True)]
    )
    assert moved.max().item() == pytest.approx(2e-3, rel=1e-2)
    assert (fleet.similarity - similarity).abs().max().item() == pytest.approx(1e-3, rel=1e-2)


def test_what_the_actor_learns_stays_out_of_the_convolutions():
    fleet = pixel_sac()
    before = [p.detach().clone() for p in fleet.encoder.parameters()]
    trunk = fleet.actor.trunk.linear.weight.detach().clone()
    fleet.update_policy(batch().obs[:, 0], fleet.log_alpha.detach().exp())
    assert all(torch.equal(p, old) for p, old in zip(fleet.encoder.parameters(), before, strict=True))
    assert not torch.equal(fleet.actor.trunk.linear.weight, trunk)


# Acting and states


def test_evaluation_takes_the_mean_from_the_middle_of_the_picture():
    fleet, images = curl(), batch().obs[:, 0, :1]
    first = torch.zeros(2, 1, dtype=torch.bool)
    middle = images[..., 1 : 1 + CROP, 1 : 1 + CROP]
    expected = torch.tanh(fleet.actor(fleet.encoder(middle))[0]).detach()
    assert_close(fleet.act(images, first, explore=False), expected)
    edited = images.clone()
    edited[..., 0, :] = 0  # beyond the crop
    assert_close(fleet.act(edited, first, explore=False), expected)
    assert not torch.equal(fleet.act(images, first, explore=True), expected)


@pytest.mark.parametrize("make", [pixel_sac, curl])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_loaded_agent_goes_on_exactly_and_alone(make, updates):
    """Also between two steps of the actor, whose metrics are reported until the next."""
    original = make()
    for number in range(updates):
        original.update(batch(seed=number))
    resumed, alone = make((8, 9)), make((9,))
    resumed.load_state_dict([original.state_dict(run) for run in range(2)])
    alone.load_state_dict([original.state_dict(1)])
    for number in (5, 6):
        data = batch(seed=number)
        whole, again, part = original.update(data), resumed.update(data), alone.update(of_run(data, 1))
        assert whole.keys() == again.keys() == part.keys()
        for name, value in whole.items():
            assert torch.equal(again[name], value)
            assert_close(part[name], value[1:])


# Settings


def test_pixel_sac_has_the_settings_of_curl_where_it_has_the_same():
    task = get_task("cup-catch")
    sac = registry.resolve_hyperparameters("sac", {}, task, "rgb")
    own = registry.resolve_hyperparameters("curl", {}, task, "rgb")
    assert {name for name in sac if sac[name] != own[name]} == {"image_size"}
    assert sac["image_size"] == own["crop_size"] == 84
    assert registry.resolve_hyperparameters("sac", {}, task, "state")["replay_capacity"] == 1_000_000


def test_cheetah_learns_more_slowly():
    values = registry.resolve_hyperparameters("curl", {}, get_task("cheetah-run"), "rgb")
    assert {values[name] for name in ("actor_lr", "critic_lr", "encoder_lr")} == {2e-4}


def test_sizes_are_the_published_ones():
    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    encoder = PixelEncoder(1, (9, 84, 84), 32, 0.0)
    actor = TanhGaussianActor(1, 50, 6, [1024, 1024], (-10, 2), Trunk(1, encoder.features, 50, tanh=False))
    critic = TwinCritic(1, 50, 6, [1024, 1024], Trunk(1, encoder.features, 50, tanh=False))
    assert count(actor) == 3_074_274
    assert count(critic, encoder) == 4_208_504


def test_what_it_cannot_learn_is_refused():
    with pytest.raises(UserError, match="curl learns from rgb observations, not state: use obs=rgb"):
        CURL(AgentSpec((5, 5, 5), "state", A, 100, 1000), Hyperparameters(), (1,), CPU)
    with pytest.raises(UserError, match="crop_size 120 must be at most image_size 100"):
        registry.resolve_hyperparameters("curl", {"crop_size": 120})
    with pytest.raises(UserError, match="pictures of 14 pixels are too small"):
        curl(crop_size=14)
