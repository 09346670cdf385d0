"""States, settings and the loop of TD-MPC."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_tdmpc import CPU, PIXELS, SMALL, SPEC, make_agent, make_batch
from pydantic import ValidationError

from agents import registry
from agents.registry import resolve_hyperparameters
from baselines.tdmpc.agent import TDMPC
from baselines.tdmpc.hyperparameters import Hyperparameters
from bench.errors import UserError
from bench.replay import Replay
from bench.tasks import get as get_task


def live(agent, seeds, calls, spec=SPEC):
    """Act, evaluate and learn; everything that came out."""
    out = []
    for call in calls:
        batch = make_batch(tuple(100 * seed + call for seed in seeds), spec)
        first = torch.full((len(seeds), 1), call == 0)
        out.append(agent.act(batch.obs[:, 0, :1], first, True))
        out.append(agent.act(batch.obs[:, 0, :4], first.expand(-1, 4), False))
        out += agent.update(batch).values()
        out.append(batch.priority)
    return out


def saved(agent, run):
    """A state that went through a file."""
    file = io.BytesIO()
    torch.save(agent.state_dict(run), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(("spec", "lived"), [(SPEC, 0), (SPEC, 3), (PIXELS, 2)])
def test_a_resumed_agent_goes_on_exactly(spec, lived):
    agent = make_agent(spec=spec)
    live(agent, (1, 2, 3), range(lived), spec)
    resumed = make_agent(seeds=(7, 8, 9), spec=spec, jitter=0.0)
    live(resumed, (7, 8, 9), range(1), spec)  # what it did before must not matter
    resumed.load_state_dict([saved(agent, run) for run in range(3)])
    then = range(lived, lived + 2)
    expected, got = live(agent, (1, 2, 3), then, spec), live(resumed, (1, 2, 3), then, spec)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    for ours, theirs in zip(agent.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


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
                torch.testing.assert_close(alone[run], whole[seed - 1], rtol=1e-3, atol=1e-4)


def test_runs_at_different_updates_are_no_fleet():
    early, late = make_agent((1,)), make_agent((2,))
    late.update(make_batch((1,)))
    with pytest.raises(ValueError, match="different numbers of updates"):
        make_agent((1, 2)).load_state_dict([early.state_dict(0), late.state_dict(0)])
    with pytest.raises(ValueError, match="needs as many states"):
        make_agent((1, 2)).load_state_dict([early.state_dict(0)])


# Settings


@pytest.mark.parametrize(
    ("task", "obs", "settings"),
    [
        ("cartpole-swingup", "state", {}),
        ("walker-run-backwards", "state", {}),
        ("humanoid-walk", "state", {"iterations": 12, "latent_dim": 100}),
        ("dog-trot", "state", {"iterations": 8, "latent_dim": 100, "batch_size": 2048, "lr": 3e-4}),
        ("mw-assembly", "state", {}),
        ("walker-run", "rgb", {"batch_size": 256, "lr": 3e-4}),
        ("humanoid-run", "rgb", {"batch_size": 256, "lr": 3e-4, "iterations": 12, "latent_dim": 100}),
        ("dog-run", "rgb", {"iterations": 8, "latent_dim": 100, "batch_size": 2048, "lr": 3e-4}),
    ],
)
def test_settings_by_task(task, obs, settings):
    values = resolve_hyperparameters("tdmpc", {}, get_task(task), obs)
    assert values == Hyperparameters().model_dump() | settings
    changed = resolve_hyperparameters("tdmpc", {"lr": 0.5, "iterations": 3}, get_task(task), obs)
    assert (changed["lr"], changed["iterations"]) == (0.5, 3)


def test_registry_and_defaults():
    entry = registry.get("tdmpc")
    assert entry.load() is TDMPC
    assert (entry.obs_kinds, entry.max_fleet) == (TDMPC.obs_kinds, TDMPC.max_fleet)
    assert entry.hyperparameters_model() is TDMPC.Hyperparameters is Hyperparameters
    replay = TDMPC(SPEC, Hyperparameters(mlp_dim=8), [1], CPU).replay
    assert (replay.batch_size, replay.length, replay.capacity) == (512, 6, 1_000_000)
    assert (replay.draw, replay.priority_alpha, replay.priority_beta) == ("prioritised", 0.6, 0.4)
    for name, field in Hyperparameters.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_elites": 600},
        {"horizon_start": 6},
        {"min_std_start": 0.01},
        {"min_std_start": 3.0},
        {"momentum": 1.0},
        {"discount": 1.1},
        {"lr": 0},
        {"temprature": 1.0},
    ],
)
def test_wrong_hyperparameters_are_refused(wrong):
    with pytest.raises(ValidationError):
        Hyperparameters(**wrong)
    with pytest.raises(UserError):
        resolve_hyperparameters("tdmpc", wrong)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match="horizon 3 is longer than an episode"):
        make_agent(spec=replace(SPEC, episode_agent_steps=2))
    with pytest.raises(UserError, match="image_size must be at least 39"):
        make_agent(spec=replace(PIXELS, obs_shape=(6, 30, 30)))


# The loop


class Training:
    """A point on a line that is pushed by the action, rewarded for being at 0, in the loop that the protocol states."""

    SPEC = replace(SPEC, obs_shape=(1,), action_size=1)
    SETTINGS = SMALL | {"batch_size": 16, "buffer_size": 45, "lr": 3e-3}

    def __init__(self, seeds):
        self.agent = TDMPC(self.SPEC, Hyperparameters(**self.SETTINGS), seeds, CPU)
        self.replay = Replay(self.agent.replay, seeds, 1, (1,), np.float32, 1, CPU)
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        self.agent_steps, self.episodes, self.logs = 0, 0, [[] for _ in seeds]

    def reset(self):
        self.x = np.stack([rng.uniform(-1, 1, (1, 1)) for rng in self.rngs]).astype(np.float32)
        self.first = torch.ones(len(self.rngs), 1, dtype=torch.bool)
        self.replay.begin(self.x)

    def run(self, until):
        drawn = []
        while self.agent_steps < until:
            if self.agent_steps % 10 == 0:
                self.reset()
            if self.agent_steps < self.agent.seed_agent_steps:
                action = np.stack([rng.uniform(-1, 1, (1, 1)) for rng in self.rngs]).astype(np.float32)
            else:
                action = self.agent.act(torch.from_numpy(self.x), self.first, True).numpy()
            self.x = np.clip(self.x + 0.3 * action, -2, 2)
            self.first[:] = False
            self.agent_steps += 1
            ended = np.full((len(self.rngs), 1), self.agent_steps % 10 == 0)
            self.replay.add(self.x, action, -np.square(self.x[..., 0]), np.zeros_like(ended), ended)
            for run, episode in self.replay.pop_finished():
                self.logs[run].append(episode)
            for _ in range(self.agent.updates_due(self.agent_steps - 1, self.agent_steps)):
                batch = self.replay.sample()
                self.agent.update(batch)
                self.replay.set_priorities(batch)
                drawn += [batch.start, batch.weight, batch.priority]
        return drawn


def test_an_interrupted_run_goes_on_exactly_with_its_priorities():
    """Stopped between episodes, after the replay was full; the priorities of the last update are not yet taken over."""
    whole = Training((1, 2))
    whole.run(until=70)
    states = []
    for run in range(2):
        file = io.BytesIO()
        torch.save({"agent": whole.agent.state_dict(run), "replay": whole.replay.state_dict(run)}, file)
        file.seek(0)
        states.append(torch.load(file, weights_only=True))
    resumed = Training((1, 2))
    resumed.agent.load_state_dict([state["agent"] for state in states])
    for run, state in enumerate(states):
        resumed.replay.load(run, state["replay"], whole.logs[run][-4:])
        resumed.rngs[run].bit_generator.state = whole.rngs[run].bit_generator.state
    resumed.agent_steps = 70
    expected, got = whole.run(until=100), resumed.run(until=100)
    assert len(expected) == 90
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    for ours, theirs in zip(whole.agent.model.parameters(), resumed.agent.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.whole
def test_it_learns_to_go_to_the_origin():
    training = Training((1, 2))
    returns = []
    for _ in range(30):
        training.run(until=training.agent_steps + 10)
        returns.append([float(log[-1].reward.sum()) for log in training.logs])
    early, late = np.mean(returns[:2], 0), np.mean(returns[-5:], 0)
    assert (late > -1.5).all(), returns
    assert (late > early).all(), returns
