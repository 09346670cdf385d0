"""SAC's policy, fleets, states and schedule against slow, obvious versions."""

from __future__ import annotations

import io
import math

import pytest
import torch
from sac_cases import CPU, OBS, A, B, agent, assert_close, assert_equal, assert_states_close, batch, of_run
from torch import distributions as D
from torch import nn

from agents import registry
from agents.nn import Linear
from agents.protocol import AgentSpec, Batch
from baselines.hyperparameters.sac import SAC as Hyperparameters
from baselines.networks import TwinCritic
from baselines.sac import SAC, TanhGaussianActor, sample_action
from bench.errors import UserError
from bench.seeding import derive_seed

# Policy


def test_log_prob_is_that_of_the_tanh_of_a_normal():
    torch.manual_seed(0)
    mean, log_std, noise = torch.randn(3, 2, 4, A, dtype=torch.float64).unbind()
    action, log_prob = sample_action(mean, log_std, noise)
    expected = D.TransformedDistribution(D.Normal(mean, log_std.exp()), D.TanhTransform())
    assert_close(
        log_prob, expected.log_prob(action).sum(-1), rtol=1e-6, atol=1e-6
    )  # atanh of the other way costs digits


def test_density_integrates_to_one():
    mean, log_std = torch.tensor(0.4, dtype=torch.float64), torch.tensor(-0.5, dtype=torch.float64)
    noise = torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None]
    action, log_prob = sample_action(mean, log_std, noise)
    assert torch.trapezoid(log_prob.exp(), action[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_log_prob_is_finite_where_tanh_saturates():
    mean = torch.tensor([[30.0], [-30.0]], requires_grad=True)
    action, log_prob = sample_action(mean, torch.zeros(2, 1), torch.zeros(2, 1))
    assert action.tolist() == [[1.0], [-1.0]]
    # log(1 - tanh(30)^2) = log(4) - 60 in exact arithmetic
    assert_close(log_prob, torch.full((2,), -0.5 * math.log(2 * math.pi) - math.log(4) + 60))
    log_prob.sum().backward()
    assert mean.grad.isfinite().all()


def test_log_std_stays_in_its_bounds():
    actor = TanhGaussianActor(1, OBS, A, [8], (-5, 2))
    nn.init.constant_(actor.net[-1].bias, -50.0)
    assert actor(torch.zeros(1, 1, OBS))[1].unique().tolist() == [-5.0]
    nn.init.constant_(actor.net[-1].bias, 50.0)
    assert actor(torch.zeros(1, 1, OBS))[1].unique().tolist() == [2.0]
    nn.init.zeros_(actor.net[-1].bias)
    assert actor(torch.zeros(1, 1, OBS))[1].unique().tolist() == [-1.5]


@pytest.mark.parametrize(
    ("obs_size", "action_size", "actor_size", "critic_size"),
    [(24, 6, 1_087_500, 2_164_738), (223, 38, 1_356_876, 2_637_826)],
)
def test_sizes_of_walker_and_dog(obs_size, action_size, actor_size, critic_size):
    hp = Hyperparameters()
    hidden = [hp.hidden_dim] * hp.hidden_layers
    actor = TanhGaussianActor(1, obs_size, action_size, hidden, (hp.log_std_min, hp.log_std_max))
    critic = TwinCritic(1, obs_size, action_size, hidden)
    assert sum(p.numel() for p in actor.parameters()) == actor_size
    assert sum(p.numel() for p in critic.parameters()) == critic_size


def test_initial_weights_are_orthogonal_and_belong_to_the_seed():
    fleet = agent()
    for network in (fleet.actor, fleet.critic):
        for layer in [m for m in network.modules() if isinstance(m, Linear)]:
            assert not layer.bias.any()
            for weight in layer.weight:
                small = weight if weight.shape[0] <= weight.shape[1] else weight.T
                assert_close(small @ small.T, torch.eye(len(small)), atol=1e-5)
            assert len({tuple(weight.flatten().tolist()) for weight in layer.weight}) == len(layer.weight)
    assert_states_close(fleet.target.state_dict(), fleet.critic.state_dict())
    assert_states_close(fleet.state_dict(1), agent(seeds=(2,)).state_dict(0), assert_equal)
    assert fleet.log_alpha.exp().flatten().tolist() == pytest.approx([0.1] * 3)


# Update


def test_target_bootstraps_at_time_limits_and_not_where_the_environment_terminated():
    fleet, data = agent(), batch()
    args = data.obs[:, 1], data.reward[:, 0]
    alpha = fleet.log_alpha.exp()
    assert_close(fleet.td_target(*args, torch.ones(3, B), alpha), data.reward[:, 0])
    assert (fleet.td_target(*args, torch.zeros(3, B), alpha) - data.reward[:, 0]).abs().min() > 1e-6


# Fleet


def test_a_fleet_of_three_equals_three_fleets_of_one():
    fleet, singles = agent(), [agent((seed,)) for seed in (1, 2, 3)]
    obs, first = torch.randn(3, 2, OBS), torch.ones(3, 2, dtype=torch.bool)
    for number in range(4):
        data = batch(seed=number)
        metrics = fleet.update(data)
        actions = fleet.act(obs, first, explore=True)
        for run, single in enumerate(singles):
            alone = single.update(of_run(data, run))
            assert metrics.keys() == alone.keys()
            for name, value in metrics.items():
                assert value.shape == (3,)
                assert_close(value[run : run + 1], alone[name])
            assert_close(actions[run : run + 1], single.act(obs[run : run + 1], first[run : run + 1], explore=True))
            for ours, theirs in zip(fleet.actor.parameters(), single.actor.parameters(), strict=True):
                assert_close(ours.grad[run : run + 1], theirs.grad, rtol=1e-4)
    for run, single in enumerate(singles):
        assert_states_close(fleet.state_dict(run), single.state_dict(0), lambda a, b: assert_close(a, b, 1e-4, 1e-5))


def test_a_run_that_turns_nan_leaves_the_others_alone():
    healthy, ill = agent(), agent()
    for number in range(3):
        data = batch(seed=number)
        healthy.update(data)
        data.reward[1] = math.nan
        metrics = ill.update(data)
    assert metrics["critic_loss"].isnan().tolist() == [False, True, False]
    for run in (0, 2):
        assert_states_close(ill.state_dict(run), healthy.state_dict(run), assert_equal)


# States


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("updates", [0, 1, 2])
def test_a_loaded_agent_goes_on_exactly(updates):
    original = agent()
    first = torch.ones(3, 1, dtype=torch.bool)
    for number in range(updates):
        original.update(batch(seed=number))
        original.act(torch.zeros(3, 1, OBS), first, explore=True)
    resumed = agent(seeds=(7, 8, 9))
    resumed.update(batch(seed=99))  # what it did before must not matter
    resumed.load_state_dict([through_a_file(original.state_dict(run)) for run in range(3)])
    for number in range(3):
        one, other = (each.update(batch(seed=10 + number)) for each in (original, resumed))
        assert_states_close(one, other, assert_equal)
    obs = torch.randn(3, 1, OBS)
    one, other = (each.act(obs, first, explore=True) for each in (original, resumed))
    assert torch.equal(one, other)
    for run in range(3):
        assert_states_close(original.state_dict(run), resumed.state_dict(run), assert_equal)


def test_runs_may_be_grouped_anew():
    fleet = agent()
    for number in range(3):
        fleet.update(batch(seed=number))
    pair = agent(seeds=(3, 1))
    pair.load_state_dict([fleet.state_dict(2), fleet.state_dict(0)])
    data = batch(seed=9)
    regrouped = pair.state_dict(0)
    assert_states_close(regrouped, fleet.state_dict(2), assert_equal)
    whole = fleet.update(data)
    part = pair.update(Batch(*(getattr(data, name)[[2, 0]] for name in ("obs", "action", "reward", "terminated"))))
    for name, value in part.items():
        assert_close(value, whole[name][[2, 0]])
    for index, run in enumerate((2, 0)):
        assert_states_close(pair.state_dict(index), fleet.state_dict(run), lambda a, b: assert_close(a, b, 1e-4, 1e-5))


def test_runs_at_different_updates_are_no_fleet():
    early, late = agent((1,)), agent((2,))
    late.update(batch(1))
    with pytest.raises(ValueError, match="different numbers of updates"):
        agent((1, 2)).load_state_dict([early.state_dict(0), late.state_dict(0)])
    with pytest.raises(ValueError, match="as many states"):
        agent((1, 2)).load_state_dict([early.state_dict(0)])


# Acting and schedule


def test_evaluation_is_the_mean_and_takes_no_exploration_noise():
    watched, other = agent(), agent()
    obs, first = torch.randn(3, 2, OBS), torch.zeros(3, 2, dtype=torch.bool)
    action = watched.act(obs, first, explore=False)
    assert torch.equal(action, watched.act(obs, first, explore=False))
    assert_close(action, torch.tanh(watched.actor(obs)[0].detach()))
    explored = watched.act(obs, first, explore=True)
    assert torch.equal(explored, other.act(obs, first, explore=True))
    assert explored.shape == (3, 2, A)
    assert explored.abs().max() <= 1
    assert not torch.equal(explored, watched.act(obs, first, explore=True))


@pytest.mark.parametrize("num_envs", [1, 3, 7])
def test_one_update_for_each_agent_step_that_was_not_random(num_envs):
    sac = agent((1,))
    due = [sac.updates_due(s, s + num_envs) for s in range(0, 21_000, num_envs)]
    assert sum(due) == 21_000 - 5000
    assert not any(due[: 5000 // num_envs])
    assert set(due[5000 // num_envs + 1 :]) == {num_envs}


def test_registry_and_hyperparameters():
    entry = registry.get("sac")
    assert entry.load() is SAC
    assert (entry.obs_kinds, entry.max_fleet) == (SAC.obs_kinds, SAC.max_fleet)
    assert entry.hyperparameters_model() is SAC.Hyperparameters is Hyperparameters
    assert registry.resolve_hyperparameters("sac", {"hidden_dim": 64})["hidden_dim"] == 64
    for overrides, message in {
        ("tua", 0.1): "unknown hyperparameter of sac 'tua': did you mean tau",
        ("discount", 1.1): "sac: discount = 1.1: Input should be less than or equal to 1",
        ("log_std_min", 3.0): "must be below log_std_max",
        ("hidden_dim", "wide"): "sac: hidden_dim = 'wide'",
    }.items():
        with pytest.raises(UserError, match=message):
            registry.resolve_hyperparameters("sac", dict([overrides]))


@pytest.mark.whole
def test_learns_a_bandit():
    """Reward -(a - 0.3)^2, every step terminal: the mean goes to 0.3 in both runs."""
    spec = AgentSpec((2,), "state", 1, 1, 1000)
    hp = Hyperparameters(
        hidden_dim=32, batch_size=64, actor_lr=3e-3, critic_lr=3e-3, alpha_lr=3e-3, init_temperature=0.01
    )
    sac = SAC(spec, hp, (1, 2), CPU)
    generator = torch.Generator().manual_seed(derive_seed("bandit"))
    losses = []
    for _ in range(500):
        action = 2 * torch.rand(2, 1, 64, 1, generator=generator) - 1
        reward = -(action[..., 0] - 0.3).square()
        losses.append(sac.update(Batch(torch.ones(2, 2, 64, 2), action, reward, torch.ones(2, 1, 64)))["critic_loss"])
    assert (torch.stack(losses[-20:]).mean(0) < 0.05 * torch.stack(losses[:5]).mean(0)).all()
    best = sac.act(torch.ones(2, 1, 2), torch.ones(2, 1, dtype=torch.bool), explore=False)
    assert (best - 0.3).abs().max() < 0.1
