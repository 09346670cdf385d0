"""DreamerV3's memory, fleets, states, schedule and settings."""

from __future__ import annotations

import io
import math

import pytest
import torch
from dreamerv3_cases import (
    CPU,
    GENERATIONS,
    OBS,
    SPECS,
    A,
    agent,
    assert_close,
    assert_equal,
    assert_states,
    batch,
    hyperparameters,
    of_runs,
    wake,
)

from agents import registry
from agents.protocol import AgentSpec
from baselines.dreamerv3.agent import DreamerV3
from baselines.dreamerv3.hyperparameters import SIZES, Hyperparameters
from bench.errors import UserError

EVERY = [(generation, obs_kind) for generation in GENERATIONS for obs_kind in ("state", "rgb")]


def observation(fleet, num_envs=2, seed=0, obs_kind="state"):
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(fleet.runs, num_envs, *SPECS[obs_kind].obs_shape, generator=generator)
    return obs if obs_kind == "state" else (obs * 60 + 128).clamp(0, 255).to(torch.uint8)


def mask(fleet, value=False, num_envs=2):
    return torch.full((fleet.runs, num_envs), value)


# Fleet


@pytest.mark.parametrize(("generation", "obs_kind"), EVERY)
def test_a_fleet_equals_its_runs_alone(generation, obs_kind):
    fleet = wake(agent(generation, (1, 2), obs_kind))
    singles = [wake(agent(generation, (seed,), obs_kind)) for seed in (1, 2)]
    for number in range(2):
        data = batch(fleet.hp, 2, number, obs_kind)
        metrics = fleet.update(data)
        obs = observation(fleet, seed=number, obs_kind=obs_kind)
        action = fleet.act(obs, mask(fleet, number == 0), explore=True)
        assert action.shape == (2, 2, A)
        for run, single in enumerate(singles):
            part = slice(run, run + 1)
            alone = single.update(of_runs(data, part))
            assert metrics.keys() == alone.keys()
            for name, value in metrics.items():
                assert value.shape == (2,)
                assert_close(value[part], alone[name], rtol=1e-3, atol=1e-4)
            taken = single.act(obs[part], mask(single, number == 0), explore=True)
            assert_close(action[part], taken, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_run_that_turns_nan_leaves_the_others_alone(generation):
    healthy, ill = agent(generation), agent(generation)
    for number in range(3):
        data = batch(healthy.hp, seed=number)
        healthy.update(data)
        data.reward[1] = math.nan
        metrics = ill.update(data)
    assert metrics["reward_loss"].isnan().tolist() == [False, True, False]
    for run in (0, 2):
        assert_states(ill.state_dict(run), healthy.state_dict(run))
    obs = observation(ill)
    assert ill.act(obs, mask(ill, True), explore=True).isnan().all(2).all(1).tolist() == [False, True, False]


# Memory


@pytest.mark.parametrize("generation", GENERATIONS)
def test_acting_follows_the_recurrent_state(generation):
    fleet = wake(agent(generation))
    states, rssm = [], fleet.model.rssm
    noise = fleet.noise["explore"]
    saved = [noise.state(run) for run in range(3)]
    firsts = [mask(fleet, True), mask(fleet), torch.tensor([[True, False]] * 3), mask(fleet)]
    actions = []
    for number, first in enumerate(firsts):
        actions.append(fleet.act(observation(fleet, seed=number), first, explore=True))
        states.append(fleet.memory["explore"])
    noise.load(saved)
    uniform, normal = [], []
    for _ in firsts:
        uniform.append(noise.uniform(1, 2, fleet.hp.stoch))
        normal.append(noise.normal(2, A))
    before = torch.stack([torch.zeros_like(actions[0]), *actions[:-1]], 1)
    with torch.no_grad():
        obs = torch.stack([observation(fleet, seed=number) for number in range(4)], 1)
        embed, first = fleet.model.encoder(obs), torch.stack(firsts, 1)
        seen = rssm.observe(embed, before, first, fleet.model.initial_states(2), torch.cat(uniform, 1))
        mean, std = fleet.behaviour.actor(seen.state.features)
        for t in range(4):
            assert_close(states[t].deter, seen.state.deter[:, t])
            assert_close(states[t].stoch, seen.state.stoch[:, t])
            assert_close(actions[t], (mean[:, t] + std[:, t] * normal[t]).clamp(-1, 1))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_an_episode_begins_without_a_past(generation):
    fresh, used = agent(generation), agent(generation)
    used.act(observation(used, seed=3), mask(used, True), explore=True)
    used.noise["explore"].load([fresh.noise["explore"].state(run) for run in range(3)])
    obs = observation(fresh)
    # What was never seen has no past either, whatever `first` says: the seed phase acts without the agent.
    assert torch.equal(used.act(obs, mask(used, True), True), fresh.act(obs, mask(fresh, False), True))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_evaluation_has_a_memory_and_a_stream_of_its_own(generation):
    watched, other = wake(agent(generation)), wake(agent(generation))
    for number in range(3):
        if number > 0:
            for t in range(2):  # five environments, in the midst of training's episodes
                watched.act(observation(watched, 5, 10 + t), mask(watched, t == 0, 5), explore=False)
        one, two = (
            each.act(observation(each, seed=number), mask(each, number == 0), True) for each in (watched, other)
        )
        assert torch.equal(one, two)
        data = batch(watched.hp, seed=number)
        assert_states(dict(watched.update(data)), dict(other.update(data)))


def test_evaluation_takes_the_mean_unless_asked_to_draw():
    mean, drawn = wake(agent(2023, deter=8)), wake(agent(2023, deter=8, evaluate_with="sample"))
    obs = observation(mean)
    action = mean.act(obs, mask(mean, True), explore=False)
    sampled = drawn.act(obs, mask(drawn, True), explore=False)
    memory = mean.memory["evaluate"]
    features = torch.cat([memory.deter, memory.stoch], -1)
    expected, std = mean.behaviour.actor(features)
    assert_close(action, expected.detach())
    assert torch.equal(memory.deter, drawn.memory["evaluate"].deter)
    draw = (sampled - expected) / std
    assert (draw[sampled.abs() < 1].abs() > 1e-3).all()
    assert sampled.abs().max() <= 1


# States


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("generation", "obs_kind"), EVERY)
def test_a_loaded_agent_goes_on_exactly(generation, obs_kind):
    original = agent(generation, (1, 2), obs_kind)
    for number in range(2):
        original.act(observation(original, obs_kind=obs_kind), mask(original, number == 0), explore=True)
        original.update(batch(original.hp, 2, number, obs_kind))
    original.act(observation(original, 5, obs_kind=obs_kind), mask(original, True, 5), explore=False)
    resumed = agent(generation, (7, 8), obs_kind)
    resumed.update(batch(original.hp, 2, 99, obs_kind))  # what it did before must not matter
    resumed.load_state_dict([through_a_file(original.state_dict(run)) for run in range(2)])
    data = batch(original.hp, 2, 10, obs_kind)
    assert_states(dict(original.update(data)), dict(resumed.update(data)))
    obs, many = observation(original, obs_kind=obs_kind), observation(original, 5, obs_kind=obs_kind)
    for explore, seen, first in ((True, obs, mask(original)), (False, many, mask(original, False, 5))):
        assert torch.equal(original.act(seen, first, explore), resumed.act(seen, first, explore))
    for run in range(2):
        assert_states(original.state_dict(run), resumed.state_dict(run))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_runs_may_be_grouped_anew(generation):
    fleet = agent(generation)
    for number in range(2):
        fleet.act(observation(fleet), mask(fleet, number == 0), explore=True)
        fleet.update(batch(fleet.hp, seed=number))
    pair = agent(generation, (3, 1))
    pair.load_state_dict([fleet.state_dict(2), fleet.state_dict(0)])
    assert_states(pair.state_dict(0), fleet.state_dict(2))
    data = batch(fleet.hp, seed=9)
    whole, part = fleet.update(data), pair.update(of_runs(data, [2, 0]))
    for name, value in part.items():
        assert_close(value, whole[name][[2, 0]], rtol=1e-3, atol=1e-4)
    early = agent(generation, (1,))
    with pytest.raises(ValueError, match="different numbers of updates"):
        pair.load_state_dict([early.state_dict(0), fleet.state_dict(0)])


# What learns, and what does not


@pytest.mark.parametrize(("generation", "obs_kind"), EVERY)
def test_an_update_moves_every_part(generation, obs_kind):
    rates = dict.fromkeys(("model_lr", "actor_lr", "critic_lr"), 0.01)  # 2024 begins at a thousandth of it
    fleet = wake(agent(generation, (1, 2), obs_kind, **rates))
    before = {name: p.clone() for name, p in [*fleet.model.named_parameters(), *fleet.behaviour.named_parameters()]}
    for number in range(3):
        fleet.update(batch(fleet.hp, 2, number, obs_kind))
    for name, parameter in [*fleet.model.named_parameters(), *fleet.behaviour.named_parameters()]:
        for run in range(2):
            assert not torch.equal(parameter.chunk(2)[run], before[name].chunk(2)[run]), name


@pytest.mark.parametrize(("generation", "obs_kind"), EVERY)
def test_acting_moves_nothing(generation, obs_kind):
    fleet = agent(generation, (1, 2), obs_kind)
    before = [fleet.state_dict(run) for run in range(2)]
    fleet.act(observation(fleet, obs_kind=obs_kind), mask(fleet, True), explore=True)
    for run in range(2):
        after = fleet.state_dict(run)
        for part in ("model", "behaviour", "optimizers", "return_scale"):
            assert_states(after[part], before[run][part], assert_equal)


# Schedule


@pytest.mark.parametrize("num_envs", [1, 3, 4])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_train_ratio_holds_exactly(generation, num_envs):
    """Counted over a run: replayed observations for each agent step, from the first update on."""
    spec = AgentSpec((OBS,), "state", A, 100, 10_000, num_envs)
    hp = hyperparameters(generation, batch_size=4, batch_length=10, train_ratio=13)
    dreamer = DreamerV3(spec, hp, (1,), CPU)
    prefill = hp.prefill_agent_steps(num_envs)
    agent_steps, updates, began = 0, 0, None
    while agent_steps < prefill + 1200:
        due = dreamer.updates_due(agent_steps, agent_steps + num_envs)
        agent_steps += num_envs
        updates += due
        if due and began is None:
            began = agent_steps
            assert (began, due) == (prefill, 1)
            assert began // num_envs + 2 - hp.slice_length >= hp.prefill_windows / num_envs
        if began is not None:
            replayed = (updates - 1) * 4 * 10
            assert 0 <= 13 * (agent_steps - began) - replayed < 4 * 10
    assert (updates - 1) * 4 * 10 == 13 * 1200
    assert dreamer.seed_agent_steps == (prefill if generation == 2023 else 0)


def test_the_papers_ratio_is_an_update_for_two_agent_steps():
    hp = Hyperparameters()
    assert hp.updates_by(hp.prefill_agent_steps(1) + 500_000, 1) == 1 + 250_000
    assert hp.prefill_agent_steps(1) == 1024 + 63
    assert Hyperparameters(generation=2024).train_ratio == 512


# Settings


def test_registry_and_sizes():
    entry = registry.get("dreamerv3")
    assert entry.load() is DreamerV3
    assert (entry.obs_kinds, entry.max_fleet) == (DreamerV3.obs_kinds, DreamerV3.max_fleet)
    values = registry.resolve_hyperparameters("dreamerv3", {}, None)
    assert (values["generation"], values["size"], values["deter"], values["train_ratio"]) == (2023, "small", 512, 512)
    values = registry.resolve_hyperparameters("dreamerv3", {"generation": 2024, "units": 100}, None)
    assert (values["size"], values["deter"], values["units"], values["dyn_scale"]) == ("12M", 2048, 100, 1.0)
    assert Hyperparameters(**values).model_dump(mode="json") == values
    for generation, sizes in SIZES.items():
        for size in sizes:
            hp = Hyperparameters(generation=generation, size=size)
            assert Hyperparameters(**hp.model_dump()) == hp


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"size": "12M"}, "size '12M' is none of generation 2023: small, medium, large, xlarge"),
        ({"generation": 2025}, "generation = 2025: Input should be 2023 or 2024"),
        ({"blocks": 8}, "blocks belongs to generation 2024; 2023 has 1"),
        ({"replay_value_scale": 0.3}, "replay_value_scale belongs to generation 2024"),
        ({"generation": 2024, "deter": 100}, "deter 100 must be a multiple of blocks 8"),
        ({"generation": 2024, "bins": 64}, "bins 64 must be odd"),
        ({"generation": 2024, "cnn_depth": 3}, "4 [*] cnn_depth"),
        ({"image_size": 84}, "image_size = 84: Input should be a multiple of 16"),
        ({"unimx": 0.1}, "did you mean unimix"),
    ],
)
def test_mistakes_are_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        registry.resolve_hyperparameters("dreamerv3", overrides, None)
    assert "\n" not in str(error.value)


def test_a_replay_that_is_too_small_is_refused():
    with pytest.raises(UserError, match="replay_capacity 10 is less than the 13 transitions that learning begins with"):
        agent(2023, replay_capacity=10)
