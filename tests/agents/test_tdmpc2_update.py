import pytest
import torch
from plain_tdmpc2 import CPU, PlainRun, make_agent, make_batch, record
from tdmpc2_parameters import NETS, assert_same, batched, plain

from agents.tdmpc2.scale import RunningScale

ABLATIONS = [
    {"preset": "paper", "entropy_coef": 0.1},
    {"lasting_dropout": True},
    {"regression": "continuous", "num_q": 2},
    {"layer_norm": False},
    {"simnorm": False},
    {"layer_norm": False, "simnorm": False, "num_q": 5},
]
CLOSE = {"rtol": 1e-7, "atol": 1e-9}


@pytest.mark.usefixtures("double")
class TestAgainstThePlainVersion:
    def test_td_target(self):
        agent, batch = make_agent(), make_batch()
        references = [PlainRun(agent, run) for run in range(3)]
        draws = record(agent, "learn")
        target = agent.td_target(
            agent.model.encode(batch.obs[:, 1:], agent.noise["learn"]), batch.reward, batch.terminated
        )
        for run, reference in enumerate(references):
            torch.testing.assert_close(target[run], reference.td_target(batch, run, draws.of_run(run)), **CLOSE)

    @pytest.mark.parametrize(
        "overrides",
        [{}, {"grad_clip_norm": 0.05}, {"dropout": 0.0, "horizon": 2, "rho": 0.7}, {"episodic": True}, *ABLATIONS],
    )
    def test_losses_gradients_and_parameters(self, overrides):
        agent = make_agent(**overrides)
        references = [PlainRun(agent, run) for run in range(3)]
        for repeat in range(2):
            batch = make_batch(seeds=(10 + repeat, 20, 30), horizon=agent.hp.horizon)
            draws = record(agent, "learn")
            metrics = agent.update(batch)
            for run, reference in enumerate(references):
                expected = reference.update(batch, run, draws.of_run(run))
                assert {name: float(v[run]) for name, v in metrics.items()} == pytest.approx(expected, rel=1e-8)
                assert_same(batched(agent, run), plain(reference), **CLOSE)
                if repeat == 0:  # Adam's first moments are 0.1 x the clipped gradients

                    def first_moment(p, optimizers=(agent.optimizer, agent.policy_optimizer)):
                        return next(o.state[p]["exp_avg"] for o in optimizers if p in o.state)

                    ours = {
                        name: [first_moment(p)[run] for p in getattr(agent.model, name).parameters()] for name in NETS
                    }
                    theirs = {name: getattr(reference, a).flat(lambda p: 0.1 * p.grad) for name, a in NETS.items()}
                    assert_same(ours, theirs, **CLOSE)

    def test_clipping_was_active_in_one_case_and_not_in_the_other(self):
        norms = make_agent().update(make_batch())["grad_norm"]
        assert (norms > 0.05).all()
        assert (norms < 20).all()

    def test_three_runs_equal_three_single_runs(self):
        fleet = make_agent()
        singles = [make_agent(seeds=(seed,)) for seed in (1, 2, 3)]
        for repeat in range(2):
            seeds = (7 + repeat, 8, 9)
            metrics = fleet.update(make_batch(seeds))
            for run, single in enumerate(singles):
                alone = single.update(make_batch((seeds[run],)))
                for name, value in metrics.items():
                    torch.testing.assert_close(value[run], alone[name][0], **CLOSE)
                for ours, theirs in zip(fleet.model.parameters(), single.model.parameters(), strict=True):
                    torch.testing.assert_close(ours.chunk(3)[run], theirs, **CLOSE)


def test_three_runs_equal_three_single_runs_in_float32():
    fleet = make_agent(dropout=0.01)
    metrics = fleet.update(make_batch())
    for run, seed in enumerate((1, 2, 3)):
        single = make_agent(seeds=(seed,), dropout=0.01)
        alone = single.update(make_batch((seed,)))
        for name, value in metrics.items():
            torch.testing.assert_close(value[run], alone[name][0], rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(fleet.optimizer.state.values(), single.optimizer.state.values(), strict=True):
            torch.testing.assert_close(ours["exp_avg"].chunk(3)[run], theirs["exp_avg"], rtol=1e-3, atol=1e-6)


def test_a_run_that_turns_nan_leaves_the_others_untouched():
    healthy, fleet = make_agent(), make_agent()
    with torch.no_grad():
        for parameter in fleet.model.parameters():
            parameter.chunk(3)[1].fill_(float("nan"))
    batch = make_batch()
    obs, first = batch.obs[:, 0, :1], torch.ones(3, 1, dtype=torch.bool)
    for _ in range(2):
        expected, metrics = healthy.update(batch), fleet.update(batch)
        expected_action, action = healthy.act(obs, first, True), fleet.act(obs, first, True)
        assert metrics["total_loss"][1].isnan()
        for run in (0, 2):
            assert all(torch.equal(metrics[name][run], value[run]) for name, value in expected.items())
            assert torch.equal(action[run], expected_action[run])
            for ours, theirs in zip(fleet.model.parameters(), healthy.model.parameters(), strict=True):
                assert torch.equal(ours.chunk(3)[run], theirs.chunk(3)[run])
    nan_obs = make_batch()
    nan_obs.reward[1] = float("nan")  # bad data instead of bad parameters
    metrics = healthy.update(nan_obs)
    assert metrics["total_loss"].isnan().tolist() == [False, True, False]


def test_gradients_reach_only_what_they_should():
    agent, batch = make_agent(), make_batch()
    zs = agent.model.encode(batch.obs, agent.noise["learn"])
    policy = [p.clone() for p in agent.policy_parameters]
    world = [p.clone() for p in agent.model_parameters]
    agent.update_policy(zs.detach())
    assert all(torch.equal(a, b) for a, b in zip(world, agent.model_parameters, strict=True))
    assert all(p.grad is None for p in agent.model_parameters)
    assert any(not torch.equal(a, b) for a, b in zip(policy, agent.policy_parameters, strict=True))
    assert all(p.grad is None for p in agent.model.target_q.parameters())


def test_running_scale_follows_the_formula():
    scale = RunningScale(2, 0.01, CPU)
    expected = [1.0, 1.0]
    for repeat in range(5):
        q = torch.randn(2, 33, generator=torch.Generator().manual_seed(repeat)) * torch.tensor([[0.1], [50.0]])
        scale.update(q)
        for run in range(2):
            ordered = sorted(q[run].tolist())

            def percentile(p, ordered=ordered):
                position = p / 100 * (len(ordered) - 1)
                low = int(position)
                return ordered[low] + (position - low) * (ordered[min(low + 1, 32)] - ordered[low])

            expected[run] += 0.01 * (max(percentile(95) - percentile(5), 1.0) - expected[run])
    assert scale.value.tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[0] == 1.0  # a small spread never shrinks it
    assert expected[1] > 3


def test_running_scale_takes_a_single_sample():
    scale = RunningScale(1, 0.5, CPU)
    scale.update(torch.tensor([[3.0]]))
    assert scale.value.tolist() == [1.0]


def test_the_entropy_in_the_loss_ignores_tanh():
    """-A l: the same as -l' (A l / l'), whose l' cancels."""
    agent = make_agent(entropy_coef=1.0)
    draws = record(agent, "learn")
    zs = agent.model.encode(make_batch().obs, agent.noise["learn"])
    mean, log_std = agent.model.policy(zs)
    metrics = agent.update_policy(zs.detach())
    eps = draws.drawn[0]
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(mean + eps * log_std.exp()).sum(-1)
    expected = (-2 * density).mean((1, 2))
    torch.testing.assert_close(metrics["pi_scaled_entropy"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.whole
def test_it_learns_a_batch_by_heart():
    agent = make_agent(seeds=(1,), jitter=0.0, lr=3e-3, dropout=0.0)
    batch = make_batch(seeds=(1,))
    losses = [float(agent.update(batch)["reward_loss"][0]) for _ in range(200)]
    assert losses[-1] < 0.6 * losses[0]
