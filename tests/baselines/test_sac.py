"""SAC against slow, obvious versions."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import distributions as D
from torch import nn

from agents import registry
from agents.nn import Linear
from agents.noise import Noise
from agents.protocol import AgentSpec, Batch
from baselines.hyperparameters import SAC as Hyperparameters
from baselines.sac import SAC, TanhGaussianActor, TwinCritic, sample_action
from bench.errors import UserError
from bench.seeding import derive_seed

CPU = torch.device("cpu")
OBS, A, B = 5, 3, 16
SPEC = AgentSpec(obs_shape=(OBS,), obs_kind="state", action_size=A, episode_agent_steps=100, budget_agent_steps=10_000)
SMALL = Hyperparameters(hidden_dim=32, batch_size=B, actor_lr=3e-4, critic_lr=1e-3, alpha_lr=1e-2)


def agent(seeds=(1, 2, 3), **changes):
    return SAC(SPEC, SMALL.model_copy(update=changes), seeds, CPU)


def batch(runs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    terminated = (torch.rand(runs, 1, B, generator=generator) < 0.3).float()
    return Batch(normal(runs, 2, B, OBS), normal(runs, 1, B, A).tanh(), normal(runs, 1, B), terminated)


def of_run(whole, run):
    part = slice(run, run + 1)
    return Batch(whole.obs[part], whole.action[part], whole.reward[part], whole.terminated[part])


def assert_close(value, expected, rtol=2e-5, atol=2e-6):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)


def assert_states_close(state, expected, close=assert_close):
    """Two nested states with the same keys and near tensors."""
    assert type(state) is type(expected)
    if isinstance(state, dict):
        assert state.keys() == expected.keys()
        for key in state.keys() - {"runs"}:  # the size of the fleet that drew the noise
            assert_states_close(state[key], expected[key], close)
    elif isinstance(state, list):
        for one, other in zip(state, expected, strict=True):
            assert_states_close(one, other, close)
    elif isinstance(state, torch.Tensor):
        close(state, expected)
    else:
        assert state == expected


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
    size = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert size(TanhGaussianActor(1, obs_size, action_size, hidden, (-5, 2))) == actor_size
    assert size(TwinCritic(1, obs_size, action_size, hidden)) == critic_size


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


def assert_equal(value, expected):
    assert torch.equal(value, expected)


# Update


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


def plain_parameters(network):
    return list(network.parameters())


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


def test_images_are_refused():
    spec = AgentSpec((9, 64, 64), "rgb", A, 100, 1000)
    with pytest.raises(UserError, match="sac learns from state observations, not rgb: use obs=state"):
        SAC(spec, SMALL, (1,), CPU)


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
