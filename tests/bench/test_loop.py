"""Environments that step while the learner updates: bit for bit what they give one after the other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import assert_equal

from agents.protocol import AgentSpec, Batch, Observing
from agents.registry import BUILT_IN
from agents.registry import get as get_agent
from bench import loop
from bench.collector import Collector
from bench.envs import synthetic
from bench.envs.synthetic import SyntheticPool
from bench.errors import UserError
from bench.loop import Loop
from bench.replay import Replay
from bench.replay_segment import Episode

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from small_settings import SMALL

CPU = torch.device("cpu")
EPISODE, SEED_PHASE, BUDGET = 8, 16, 34
SEEDS = [1, 2]
# A replay that is soon full, and few random agent steps.
OWN: dict[str, dict[str, Any]] = {
    "tdmpc2": {"buffer_size": 28, "seed_agent_steps": SEED_PHASE},
    "tdmpc": {"buffer_size": 28, "seed_agent_steps": 9},
    "sac": {"replay_capacity": 28, "seed_agent_steps": SEED_PHASE},
    "drqv2": {"replay_capacity": 28, "seed_agent_steps": SEED_PHASE},
    "curl": {"replay_capacity": 28, "seed_agent_steps": SEED_PHASE},
    "dreamerv3": {"replay_capacity": 28, "train_ratio": 8},
    "simbav2": {"replay_capacity": 28, "seed_agent_steps": SEED_PHASE, "updates_per_agent_step": 1},
}


class Watched(SyntheticPool):
    """Knows whether it is stepping."""

    @property
    def under_way(self) -> bool:
        return self._sent is not None


class Runs:
    """A fleet with made-up environments, its finished episodes, and how many updates began while they stepped."""

    def __init__(self, name: str, overlap: bool, num_envs: int = 1, **hyperparameters: Any) -> None:
        entry = get_agent(name)
        hp = entry.hyperparameters_model()(**(SMALL[name] | OWN[name] | hyperparameters))
        obs = entry.obs_kinds[0]
        stack = getattr(hp, "frame_stack", 1) if obs == "rgb" else 0
        size = getattr(hp, "image_size", 0)
        spec = AgentSpec(
            obs_shape=(3 * stack, size, size) if obs == "rgb" else (5,),
            obs_kind=obs,  # type: ignore[arg-type]
            action_size=2,
            episode_agent_steps=EPISODE,
            budget_agent_steps=BUDGET,
            num_envs=num_envs,
            frame_stack=stack or 1,
        )
        self.agent = entry.load()(spec, hp, SEEDS, CPU)
        self.replay = Replay.of_agent(self.agent.replay, spec, SEEDS, CPU)
        self.pool = Watched(len(SEEDS) * num_envs, spec.obs_shape, 2, EPISODE, frame_stack=stack)
        self.collector = Collector(self.pool, SEEDS, num_envs, EPISODE)
        self.loop = Loop(self.agent, spec, SEEDS, self.collector, self.replay, CPU, overlap)
        self.episodes: list[list[Episode]] = [[] for _ in SEEDS]
        self.updates = self.overlapped = 0
        update = self.agent.update

        def watched(batch: Batch) -> Any:
            self.updates += 1
            self.overlapped += self.pool.under_way
            return update(batch)

        self.agent.update = watched

    def start(self) -> Runs:
        self.collector.start()
        self.replay.begin(self.collector.obs)
        return self

    def run(self, agent_steps: int) -> Runs:
        for _ in range(agent_steps // self.loop.spec.num_envs):
            self.loop.agent_step()
            for run, episode in self.replay.pop_finished():
                self.episodes[run].append(episode)
        return self

    def state(self) -> list[dict[str, Any]]:
        return [
            {
                "agent": self.agent.state_dict(run),
                "replay": self.replay.state_dict(run),
                "collector": self.collector.state_dict(run),
                "random": self.loop.rngs[run].bit_generator.state,
            }
            for run in range(len(SEEDS))
        ]

    def resume(self, other: Runs) -> Runs:
        """Go on from where another fleet is, as training does from a checkpoint."""
        states = other.state()
        self.agent.load_state_dict([state["agent"] for state in states])
        for run, state in enumerate(states):
            self.loop.rngs[run].bit_generator.state = state["random"]
            self.replay.load(run, state["replay"], other.episodes[run])
            self.episodes[run] = list(other.episodes[run])
        assert self.collector.restore([state["collector"] for state in states], self.replay)
        self.loop.agent_steps = other.loop.agent_steps
        return self


@pytest.mark.parametrize(("name", "num_envs"), [*((entry.name, 1) for entry in BUILT_IN), ("tdmpc2", 2), ("sac", 2)])
def test_overlap_changes_nothing(name: str, num_envs: int) -> None:
    plain = Runs(name, overlap=False, num_envs=num_envs).start().run(BUDGET)
    ahead = Runs(name, overlap=True, num_envs=num_envs).start().run(BUDGET)
    assert plain.overlapped == 0
    assert plain.updates == ahead.updates > 0
    assert_equal(plain.state(), ahead.state())
    if name == "tdmpc2":
        assert ahead.overlapped == ahead.updates - ends_learning(num_envs)
    elif isinstance(plain.agent, Observing) or name == "tdmpc":
        assert ahead.overlapped == 0  # it is shown the environments first; it learns when episodes end
    else:
        assert ahead.overlapped > 0


def ends_learning(num_envs: int) -> int:
    """Updates of TD-MPC2 that are owed for agent steps which end an episode."""
    steps = range(0, BUDGET - BUDGET % num_envs, num_envs)
    ends = [step + num_envs for step in steps if (step // num_envs + 1) % EPISODE == 0]
    return sum(num_envs for end in ends if end > SEED_PHASE + 1)


@pytest.mark.parametrize("name", ["tdmpc2", "sac", "dreamerv3"])
def test_an_overlapped_run_resumes_as_the_plain_one_goes_on(name: str) -> None:
    plain = Runs(name, overlap=False).start().run(BUDGET)
    parts = Runs(name, overlap=True).start().run(19)
    for agent_steps in (5, 4, 6):  # at an end of episodes, in mid-episode, and to the budget
        parts = Runs(name, overlap=True).resume(parts).run(agent_steps)
    assert_equal(plain.state(), parts.state())


def test_a_batch_that_needs_what_is_under_way_waits_for_it() -> None:
    """Of a replay of two transitions nearly every batch holds the newest."""
    runs = Runs("sac", overlap=True, seed_agent_steps=1).start().run(4)
    assert runs.updates == 3
    assert runs.overlapped == 0
    plain = Runs("sac", overlap=False, seed_agent_steps=1).start().run(4)
    assert_equal(plain.state(), runs.state())


class Clock:
    """Time that passes only where something takes it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("overlap", "waited", "stepped"), [(False, 6 * 40, 6 * 70), (True, 6 * 10, 6 * 40)])
def test_waiting_is_what_environments_take_beyond_the_updates(
    overlap: bool, waited: int, stepped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environments take 40 ms and updates 30; the seed phase does not count."""
    clock = Clock()
    for module in (loop, synthetic):
        monkeypatch.setattr(module, "time", clock)
    runs = Runs("tdmpc2", overlap)
    runs.pool.step_ms = 40.0
    update = runs.agent.update

    def slow(batch: Batch) -> Any:
        clock.now += 0.030
        return update(batch)

    runs.agent.update = slow
    runs.start().run(SEED_PHASE)
    runs.loop.agent_step(updates=0)  # instead of the burst
    assert runs.loop.stepped_s == 0
    runs.run(6)
    assert runs.loop.waited_s == pytest.approx(waited / 1000)
    assert runs.loop.stepped_s == pytest.approx(stepped / 1000)


def test_an_episode_that_ends_against_its_row_is_told() -> None:
    runs = Runs("tdmpc2", overlap=True).start().run(SEED_PHASE + 3)
    runs.pool.episode_agent_steps = 5
    with pytest.raises(UserError, match=r"ended before its time limit of 8 agent steps.*set terminates=True"):
        runs.run(10)


def test_replay_asks_for_what_is_under_way() -> None:
    runs = Runs("sac", overlap=False).start().run(2)
    runs.replay.reserve()
    with pytest.raises(ValueError, match="under way"):
        runs.replay.sample()
    nothing = np.zeros((2, 1))
    with pytest.raises(ValueError, match="reserved"):
        runs.replay.add(runs.collector.obs, np.zeros((2, 1, 2)), nothing, nothing, nothing, np.ones((2, 1), bool))
