import io
from dataclasses import replace

import pytest
import torch
from plain_tdmpc2 import CPU, MULTITASK_SPEC, SMALL, SPEC, make_agent, make_batch
from pydantic import ValidationError

from agents.registry import resolve_hyperparameters
from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import ARCHITECTURES, Hyperparameters
from bench.errors import UserError
from bench.tasks import get


def live(agent, seeds, calls):
    """Act, evaluate and learn; everything that came out."""
    out = []
    for call in calls:
        obs = torch.stack([torch.randn(4, 5, generator=torch.Generator().manual_seed(50 * s + call)) for s in seeds])
        first = torch.full((len(seeds), 1), call == 0)
        out.append(agent.act(obs[:, :1], first, True))
        out.append(agent.act(obs, first.expand(-1, 4), False))
        out += agent.update(make_batch(tuple(100 * seed + call for seed in seeds))).values()
    return out


def saved(agent, run):
    """A state that went through a file."""
    file = io.BytesIO()
    torch.save(agent.state_dict(run), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_resumed_agent_goes_on_exactly():
    agent = make_agent()
    live(agent, (1, 2, 3), range(3))
    resumed = make_agent(jitter=0.0)
    resumed.load_state_dict([saved(agent, run) for run in range(3)])
    expected, got = live(agent, (1, 2, 3), range(3, 6)), live(resumed, (1, 2, 3), range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    for ours, theirs in zip(agent.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_fresh_agent_can_be_saved():
    agent, resumed = make_agent(), make_agent(jitter=0.0)
    resumed.load_state_dict([saved(agent, run) for run in range(3)])
    expected, got = live(agent, (1, 2, 3), range(2)), live(resumed, (1, 2, 3), range(2))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_a_state_is_a_copy():
    agent = make_agent()
    state = agent.state_dict(1)
    before = {name: tensor.clone() for name, tensor in state["model"].items()}
    live(agent, (1, 2, 3), range(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state["model"].items())


@pytest.mark.usefixtures("double")
def test_a_fleet_may_be_regrouped():
    fleet = make_agent()
    live(fleet, (1, 2, 3), range(2))
    states = [saved(fleet, run) for run in range(3)]
    expected = live(fleet, (1, 2, 3), range(2, 4))
    for seeds in ((1,), (3, 2)):
        part = make_agent(seeds=seeds, jitter=0.0)
        part.load_state_dict([states[seed - 1] for seed in seeds])
        for whole, alone in zip(expected, live(part, seeds, range(2, 4)), strict=True):
            for run, seed in enumerate(seeds):
                torch.testing.assert_close(alone[run], whole[seed - 1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_updates_follow_the_authors_loop(num_envs):
    """Theirs, with one environment: random through decision index seed_steps, then a burst, then one an action."""
    agent = TDMPC2(replace(SPEC, num_envs=num_envs), Hyperparameters(**SMALL, seed_agent_steps=420), [1], CPU)
    assert agent.seed_agent_steps == 421
    theirs = {}
    total = 0
    for index in range(1000):
        if index == 420:
            total += 420
        elif index > 420:
            total += 1
        theirs[index + 1] = total
    ours, agent_steps, random_steps = 0, 0, 0
    while agent_steps < 1000:
        random_steps += num_envs * (agent_steps < agent.seed_agent_steps)
        due = agent.updates_due(agent_steps, agent_steps + num_envs)
        agent_steps += num_envs
        ours += due
        assert ours == theirs[agent_steps]
    assert random_steps == (421 if num_envs == 1 else 424)
    assert ours == 999


@pytest.mark.parametrize(
    ("episode", "num_envs", "seed_agent_steps"),
    [(500, 1, 2501), (100, 1, 1001), (1000, 1, 5001), (1600, 1, 8001), (500, 4, 2501), (500, 8, 4001)],
)
def test_seed_phase_by_episode_length(episode, num_envs, seed_agent_steps):
    spec = replace(SPEC, episode_agent_steps=episode, num_envs=num_envs)
    assert TDMPC2(spec, Hyperparameters(**SMALL), [1], CPU).seed_agent_steps == seed_agent_steps


@pytest.mark.parametrize(("episode", "gamma"), [(500, 0.99), (100, 0.95), (1000, 0.995), (250, 0.98), (4, 0.95)])
def test_discount_by_episode_length(episode, gamma):
    assert Hyperparameters().discount(episode) == pytest.approx(gamma)


def test_replay_is_what_the_authors_sample():
    replay = TDMPC2(SPEC, Hyperparameters(model_size=1, horizon=4), [1], CPU).replay
    assert (replay.batch_size, replay.length, replay.capacity) == (256, 5, 1_000_000)
    assert (replay.draw, replay.finished_episodes_only) == ("episode", True)


@pytest.mark.parametrize("size", ARCHITECTURES)
def test_model_size_fills_the_architecture(size):
    assert Hyperparameters(model_size=size).model_dump().items() >= ARCHITECTURES[size].items()
    explicit = Hyperparameters(model_size=size, mlp_dim=40, num_q=None)
    assert explicit.mlp_dim == 40
    assert explicit.num_q == ARCHITECTURES[size]["num_q"]
    assert Hyperparameters(**explicit.model_dump()) == explicit


def test_the_paper_preset_fills_what_is_not_given():
    paper = Hyperparameters(preset="paper")
    assert (paper.squashed_entropy, paper.lasting_dropout) == (True, True)
    assert Hyperparameters(**paper.model_dump()) == paper
    assert Hyperparameters(preset="paper", lasting_dropout=False).lasting_dropout is False
    assert (Hyperparameters().squashed_entropy, Hyperparameters().lasting_dropout) == (False, False)
    others = set(type(paper).model_fields) - {"preset", "squashed_entropy", "lasting_dropout"}
    assert all(getattr(paper, name) == getattr(Hyperparameters(), name) for name in others)


def test_defaults_are_size_five_and_every_field_is_explained():
    assert Hyperparameters() == Hyperparameters(model_size=5)
    assert Hyperparameters().model_dump().items() >= ARCHITECTURES[5].items()
    for name, field in Hyperparameters.model_fields.items():
        assert field.description, name


def test_terminations_are_learned_where_the_task_has_them():
    task = get("walker-walk")
    assert Hyperparameters.task_defaults(task, "state") == {}
    ending = Hyperparameters(**Hyperparameters.task_defaults(replace(task, terminates=True), "state"))
    assert (ending.episodic, ending.rho, ending.discount(1000)) == (True, 0.7, 0.99)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_size": 7},
        {"latent_dim": 100},
        {"num_elites": 600},
        {"num_pi_trajs": 600},
        {"vmin": 10.0},
        {"min_std": 3.0},
        {"log_std_min": 3.0},
        {"discount_min": 0.999},
        {"rho": 1.5},
        {"num_q": 1},
        {"episodic": "perhaps"},
    ],
)
def test_wrong_hyperparameters_are_refused(wrong):
    with pytest.raises(ValidationError):
        Hyperparameters(**wrong)
    with pytest.raises(UserError):
        resolve_hyperparameters("tdmpc2", wrong)


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        (replace(SPEC, obs_kind="rgb", obs_shape=(9, 64, 64)), {}, "give 512 features .* latent_dim is 8: set latent"),
        (replace(MULTITASK_SPEC, obs_kind="rgb"), {}, "several tasks from state observations only"),
        (replace(SPEC, episode_agent_steps=2), {}, "horizon 3 is longer than an episode"),
        (SPEC, {"seed_agent_steps": 99}, "give at least 100"),
        (replace(SPEC, num_envs=3), {"seed_agent_steps": 299}, "give at least 300"),
    ],
)
def test_what_cannot_be_trained_is_refused(spec, overrides, message):
    with pytest.raises(UserError, match=message):
        TDMPC2(spec, Hyperparameters(**SMALL, **overrides), [1], CPU)
