"""Losses, targets, priorities and gradients of TD-MPC against a plain version, and what they may touch."""

from __future__ import annotations

import copy

import pytest
import torch
from plain_tdmpc import CPU, NETS, PIXELS, SMALL, SPEC, PlainRun, make_agent, make_batch, parameters_of, record

from baselines.tdmpc.agent import TDMPC
from baselines.tdmpc.hyperparameters import Hyperparameters

CLOSE = {"rtol": 1e-7, "atol": 1e-9}


@pytest.fixture
def double():
    """Work in float64, so that two ways to compute the same thing agree closely."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def of_run(model, run):
    """Parameters of one run by network, in torch's own layout."""
    return {
        name: [
            p
            for member in ((2 * run, 2 * run + 1) if "q_heads" in name else (run,))
            for p in parameters_of(getattr(model, name), member)
        ]
        for name in NETS
    }


def assert_same_first_moments(agent, run, reference):
    """Adam's first moments after one update are 0.1 x the clipped gradients."""
    moments = copy.deepcopy(agent.model)
    for optimizer in (agent.optimizer, agent.policy_optimizer):
        for copied, parameter in zip(moments.parameters(), agent.model.parameters(), strict=True):
            if parameter in optimizer.state:
                copied.data = optimizer.state[parameter]["exp_avg"]
    ours = of_run(moments, run)
    for name, net in zip(NETS[:5], reference.nets()[:5], strict=True):
        for a, b in zip(ours[name], net.parameters(), strict=True):
            torch.testing.assert_close(a, 0.1 * b.grad, msg=lambda m, n=name: f"{n}: {m}", **CLOSE)


def assert_same_parameters(agent, run, reference, **tolerance):
    ours = of_run(agent.model, run)
    for name, net in zip(NETS, reference.nets(), strict=True):
        for a, b in zip(ours[name], net.parameters(), strict=True):
            torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}", **tolerance)


@pytest.mark.usefixtures("double")
class TestAgainstThePlainVersion:
    @pytest.mark.parametrize(
        "overrides",
        [
            {},
            {"grad_clip_norm": 0.05, "rho": 0.7, "discount": 0.9},
            {"horizon": 2, "consistency_coef": 1.0, "reward_coef": 0.3, "value_coef": 2.0, "min_std": 0.4},
        ],
    )
    def test_losses_priorities_and_parameters(self, overrides):
        agent = make_agent(**overrides)
        references = [PlainRun(agent, run) for run in range(3)]
        for repeat in range(3):
            batch = make_batch((10 + repeat, 20, 30), horizon=agent.hp.horizon)
            draws = record(agent, "learn")
            metrics = agent.update(batch)
            for run, reference in enumerate(references):
                expected, priorities = reference.update(batch, run, draws.of_run(run), move_target=repeat != 1)
                assert {name: float(v[run]) for name, v in metrics.items()} == pytest.approx(expected, rel=1e-8)
                assert batch.priority[run].tolist() == pytest.approx(priorities, rel=1e-8)
                assert_same_parameters(agent, run, reference, **CLOSE)
                if repeat == 0:
                    assert_same_first_moments(agent, run, reference)

    def test_clipping_was_active_in_one_case_and_not_in_the_others(self):
        norms = make_agent().update(make_batch())["grad_norm"]
        assert (norms > 0.05).all()
        assert (norms < 10).all()

    def test_losses_and_priorities_are_cut_at_ten_thousand(self):
        agent, batch = make_agent(), make_batch(scale=300.0)
        references = [PlainRun(agent, run) for run in range(3)]
        draws = record(agent, "learn")
        metrics = agent.update(batch)
        assert float(metrics["value_loss"].max()) > 1e4
        for run, reference in enumerate(references):
            expected, priorities = reference.update(batch, run, draws.of_run(run), move_target=True)
            assert {name: float(v[run]) for name, v in metrics.items()} == pytest.approx(expected, rel=1e-8)
            assert batch.priority[run].tolist() == pytest.approx(priorities, rel=1e-8)
            assert_same_parameters(agent, run, reference, **CLOSE)

    def test_three_runs_equal_three_single_runs(self):
        fleet, singles = make_agent(), [make_agent(seeds=(seed,)) for seed in (1, 2, 3)]
        for repeat in range(2):
            seeds = (7 + repeat, 8, 9)
            batch = make_batch(seeds)
            metrics = fleet.update(batch)
            for run, single in enumerate(singles):
                own = make_batch((seeds[run],))
                alone = single.update(own)
                assert metrics.keys() == alone.keys()
                for name, value in metrics.items():
                    assert value.shape == (3,)
                    torch.testing.assert_close(value[run], alone[name][0], **CLOSE)
                torch.testing.assert_close(batch.priority[run], own.priority[0], **CLOSE)
                for ours, theirs in zip(fleet.model.parameters(), single.model.parameters(), strict=True):
                    torch.testing.assert_close(ours.chunk(3)[run], theirs, **CLOSE)


def test_an_update_from_images_is_that_of_the_plain_version():
    agent = make_agent(seeds=(1, 2), spec=PIXELS, jitter=0.05)
    references = [PlainRun(agent, run) for run in range(2)]
    for repeat in range(2):
        batch = make_batch((1 + repeat, 9), spec=PIXELS)
        draws = record(agent, "learn")
        metrics = agent.update(batch)
        assert [tuple(draw.shape) for draw in draws.drawn[:2]] == [(2, 6, 2), (2, 3, 6, 2)]
        for run, reference in enumerate(references):
            expected, priorities = reference.update(batch, run, draws.of_run(run), move_target=repeat == 0)
            assert {name: float(v[run]) for name, v in metrics.items()} == pytest.approx(expected, rel=1e-4)
            assert batch.priority[run].tolist() == pytest.approx(priorities, rel=1e-4)
            assert_same_parameters(agent, run, reference, rtol=1e-3, atol=1e-4)


def test_shifts_are_four_pixels_of_84():
    assert [TDMPC(PIXELS, Hyperparameters(**SMALL), [1], CPU).shift_pixels, make_agent().shift_pixels] == [1, 0]
    assert Hyperparameters().image_size // 21 == 4


def test_a_true_termination_ends_the_target_and_a_time_limit_does_not():
    agent, batch = make_agent(), make_batch()
    z = agent.model.encoder(batch.obs[:, 1:])
    ended = agent.td_target(z, batch.reward, torch.ones_like(batch.reward))
    assert torch.equal(ended, batch.reward)
    assert (agent.td_target(z, batch.reward, torch.zeros_like(batch.reward)) != batch.reward).all()


def test_a_batch_without_weights_counts_all_alike():
    one, other = make_agent(), make_agent()
    weighted, unweighted = make_batch(), make_batch()
    weighted.weight, unweighted.weight = torch.ones(3, 6), None
    assert torch.equal(one.update(weighted)["total_loss"], other.update(unweighted)["total_loss"])


def test_the_policys_noise_is_short_and_its_gradient_passes_the_limits():
    agent = make_agent(min_std=0.5)
    z = torch.zeros(3, 4, 8)
    with torch.no_grad():
        agent.model.policy_head[-1].bias.fill_(0.6)
    mean = agent.model.policy_head(z).tanh()
    eps = torch.tensor([-9.0, 9.0]).expand(3, 4, 2)
    action = agent.model.policy(z, eps)
    expected = torch.stack([mean[..., 0] - 0.3, (mean[..., 1] + 0.3).clamp(max=1 - 1e-6)], -1)
    torch.testing.assert_close(action, expected)
    with torch.no_grad():
        agent.model.policy_head[-1].bias.fill_(1.5)
    action = agent.model.policy(z, eps.abs())
    assert (action == torch.tensor(1 - 1e-6)).all()
    gradient = torch.autograd.grad(action.sum(), agent.model.policy_head[-1].bias)[0]
    raw = agent.model.policy_head(z)
    torch.testing.assert_close(gradient, (1 - raw.tanh().square()).sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert (gradient > 0).all()


def test_gradients_reach_only_what_they_should():
    agent = make_agent()
    zs = agent.model.encoder(make_batch().obs)
    policy, model = ([p.clone() for p in ps] for ps in (agent.policy_parameters, agent.model_parameters))
    agent.update_policy(zs.detach())
    assert all(torch.equal(a, b) for a, b in zip(model, agent.model_parameters, strict=True))
    assert all(p.grad is None for p in agent.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(policy, agent.policy_parameters, strict=True))


def test_a_run_that_turns_nan_leaves_the_others_untouched():
    healthy, ill = make_agent(), make_agent()
    with torch.no_grad():
        for parameter in ill.model.parameters():
            parameter.chunk(3)[1].fill_(float("nan"))
    first = torch.ones(3, 1, dtype=torch.bool)
    for repeat in range(2):
        good, bad = make_batch((repeat, 2, 3)), make_batch((repeat, 2, 3))
        bad.reward[1] = float("nan")
        expected, metrics = healthy.update(good), ill.update(bad)
        expected_action, action = (agent.act(good.obs[:, 0, :1], first, True) for agent in (healthy, ill))
        assert metrics["total_loss"].isnan().tolist() == [False, True, False]
        assert action.isnan().any((1, 2)).tolist() == [False, True, False]
        for run in (0, 2):
            assert all(torch.equal(metrics[name][run], value[run]) for name, value in expected.items())
            assert torch.equal(good.priority[run], bad.priority[run])
            assert torch.equal(action[run], expected_action[run])
            for ours, theirs in zip(ill.model.parameters(), healthy.model.parameters(), strict=True):
                assert torch.equal(ours.chunk(3)[run], theirs.chunk(3)[run])


@pytest.mark.parametrize(
    ("obs_size", "action_size", "latent_dim", "parameters"),
    [(5, 1, 50, 1_490_024), (24, 6, 50, 1_507_693), (67, 21, 100, 1_723_616), (223, 38, 100, 1_807_089)],
)
def test_sizes_are_the_authors(obs_size, action_size, latent_dim, parameters):
    spec = type(SPEC)((obs_size,), "state", action_size, 500, 1000)
    agent = TDMPC(spec, Hyperparameters(latent_dim=latent_dim), [1], CPU)
    assert agent.model.num_parameters == parameters


def test_the_encoder_of_images_is_the_authors():
    spec = type(SPEC)((9, 84, 84), "rgb", 6, 500, 1000)
    agent = TDMPC(spec, Hyperparameters(), [1], CPU)
    assert sum(p.numel() for p in agent.model.encoder.parameters()) == 72_722
    assert agent.model.encoder.convs.output_shape == (32, 3, 3)


def test_initial_rewards_and_values_are_zero_and_weights_orthogonal():
    agent = make_agent(jitter=0.0)
    z, action = torch.randn(3, 4, 8), torch.rand(3, 4, 2)
    assert not agent.model.reward(z, action).any()
    assert not agent.model.q(z, action).any()
    assert agent.model.policy(z, torch.zeros(3, 4, 2)).abs().min() > 0
    for name in ("encoder", "dynamics", "policy_head"):
        for weight in (p for p in getattr(agent.model, name).parameters() if p.shape[1] > 1):
            small = weight if weight.shape[1] <= weight.shape[2] else weight.transpose(1, 2)
            torch.testing.assert_close(small @ small.transpose(1, 2), torch.eye(small.shape[1]).expand(3, -1, -1))
    for online, target in (("encoder", "target_encoder"), ("q_heads", "target_q_heads")):
        pairs = zip(getattr(agent.model, online).parameters(), getattr(agent.model, target).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.whole
def test_it_learns_a_batch_by_heart():
    agent, batch = make_agent(seeds=(1,), jitter=0.0, lr=3e-3), make_batch(seeds=(1,))
    losses = [float(agent.update(batch)["reward_loss"][0]) for _ in range(200)]
    assert losses[-1] < 0.3 * losses[0]
