"""One update of DreamerV3 against plain arithmetic, run by run: every loss, and the gradient of every parameter."""

from __future__ import annotations

import pytest
import torch
from dreamerv3_cases import CPU, GENERATIONS, agent, assert_close, batch, of_runs, wake
from plain_dreamerv3 import Plain, global_norm

from agents.nn import optimizer_state
from agents.noise import Noise

SEEDS = (1, 2)


def momenta(fleet, run):
    """exp_avg of every parameter by part and place; zero before the first update."""
    found = {}
    for name, optimizer in fleet.optimizers.items():
        parts = fleet.parameters if name == "joint" else {name: fleet.parameters[name]}
        states = iter(optimizer_state(optimizer, run, fleet.runs))
        for part, parameters in parts.items():
            for place, parameter in enumerate(parameters):
                size = parameter.shape[0] // fleet.runs
                zeros = torch.zeros(size, *parameter.shape[1:])
                found[part, place] = next(states).get("exp_avg", zeros)
    return found


@pytest.mark.parametrize("number", range(3))
def test_update_of_2023_equals_the_plain_one(number):
    """Adam's first moment tells the gradient it was given: m' = 0.9 m + 0.1 g."""
    fleet = wake(agent(2023, SEEDS))
    noises = [Noise([seed], "learn", CPU) for seed in SEEDS]
    data = batch(fleet.hp, runs=2, seed=number)
    plain = [Plain(fleet, run, noise) for run, noise in enumerate(noises)]
    expected, grads = [], []
    for run, one in enumerate(plain):
        losses = one.model_losses(of_runs(data, slice(run, run + 1)))
        expected.append(losses)
        grads.append(one.gradients("model", sum(losses.values())))
    metrics = fleet.update(data)
    for run, one in enumerate(plain):
        actor_and_critic = {name: p for name, p in one.p.items() if not name.startswith("model.")}
        one.take_parameters()  # the model's are the new ones, the others stay as they were
        one.p |= actor_and_critic
        losses = one.behaviour_losses()
        expected[run] |= losses
        grads[run] |= one.gradients("actor", losses["actor"]) | one.gradients("critic", losses["critic"])
        assert_close(fleet.behaviour.return_scale.ends[run], one.ends)
        for name, value in expected[run].items():
            assert_close(metrics[f"{name}_loss"][run], value.detach())
        for part, limit in (("model", 1000.0), ("actor", 100.0), ("critic", 100.0)):
            own = {name: grad for name, grad in grads[run].items() if name.startswith(f"{part}.")}
            norm = global_norm(own)
            assert float(metrics[f"{part}_grad_norm"][run]) == pytest.approx(norm, rel=1e-3)
            clip = min(1.0, limit / (norm + 1e-6))
            after = momenta(fleet, run)
            for place, (name, grad) in enumerate(own.items()):
                error = (after[part, place] - 0.1 * clip * grad).abs().max()
                assert error <= 1e-5 + 2e-3 * clip * grad.abs().max(), name
        for name, ours in fleet.behaviour.slow_critic.named_parameters():
            assert torch.equal(ours, dict(fleet.behaviour.critic.named_parameters())[name])  # copied by the first


@pytest.mark.parametrize("number", range(3))
def test_update_of_2024_equals_the_plain_one(number, monkeypatch):
    """The gradients are caught before the optimiser, which has a test of its own."""
    fleet = wake(agent(2024, SEEDS))
    noises = [Noise([seed], "learn", CPU) for seed in SEEDS]
    data = batch(fleet.hp, runs=2, seed=number)
    caught = {}

    def catch():
        for part, parameters in fleet.parameters.items():
            caught[part] = [p.grad.clone() for p in parameters]

    monkeypatch.setattr(fleet.optimizers["joint"], "step", catch)
    plain = [Plain(fleet, run, noise) for run, noise in enumerate(noises)]
    metrics = fleet.update(data)
    for run, one in enumerate(plain):
        losses = one.model_losses(of_runs(data, slice(run, run + 1)))
        losses |= one.behaviour_losses()
        for name, value in losses.items():
            assert_close(metrics[f"{name}_loss"][run], value.detach())
        assert_close(fleet.behaviour.return_scale.ends[run], one.ends)
        total = sum(losses.values())
        for part, ours in caught.items():
            for grad, (name, theirs) in zip(ours, one.gradients(part, total).items(), strict=True):
                error = (grad.chunk(2)[run] - theirs).abs().max()
                assert error <= 1e-5 + 2e-3 * theirs.abs().max(), name


@pytest.mark.parametrize("generation", GENERATIONS)
def test_slow_critic_follows(generation):
    fleet = wake(agent(generation))
    fleet.update(batch(fleet.hp))
    before = [p.clone() for p in fleet.behaviour.slow_critic.parameters()]
    fleet.update(batch(fleet.hp, seed=1))
    online = fleet.behaviour.critic.parameters()
    for slow, was, new in zip(fleet.behaviour.slow_critic.parameters(), before, online, strict=True):
        assert_close(slow, 0.98 * was + 0.02 * new)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_divergences_below_the_free_nats_cost_the_same_and_teach_nothing(generation):
    fleet = agent(generation, free_nats=100.0)
    data = batch(fleet.hp)
    metrics = fleet.update(data)
    scale = 0.5 if generation == 2023 else 1.0
    assert_close(metrics["dyn_loss"], torch.full((3,), 100.0 * scale))
    assert_close(metrics["rep_loss"], torch.full((3,), 10.0))
    before = fleet.model.rssm.prior_head.output.weight.clone()
    for number in range(2):
        fleet.update(batch(fleet.hp, seed=number))
    assert torch.equal(fleet.model.rssm.prior_head.output.weight, before)  # only the divergence teaches it
