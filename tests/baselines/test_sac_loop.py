"""SAC, replay and log together, in the loop that the agent protocol states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agents.protocol import AgentSpec
from baselines.hyperparameters.sac import SAC as Hyperparameters
from baselines.sac import SAC
from bench.replay import Replay
from bench.replay_log import ReplayLog
from bench.seeding import derive_seed

pytestmark = pytest.mark.whole

CPU = torch.device("cpu")
T, NUM_ENVS = 20, 2
SPEC = AgentSpec((1,), "state", 1, T, 2000, NUM_ENVS)
HP = Hyperparameters(
    hidden_dim=32,
    batch_size=64,
    seed_agent_steps=200,
    replay_capacity=300,
    actor_lr=3e-3,
    critic_lr=3e-3,
    alpha_lr=3e-3,
    discount=0.9,
    init_temperature=0.02,
)


class PointMass:
    """A point on a line that is pushed by the action; the reward is -x^2."""

    def __init__(self, seeds):
        self.seeds = seeds

    def reset(self, episode):
        starts = [[derive_seed(seed, env, episode) % 1000 / 500 - 1 for env in range(NUM_ENVS)] for seed in self.seeds]
        self.x = np.array(starts, np.float32)
        return self.x[..., None]

    def step(self, action):
        self.x = np.clip(self.x + 0.3 * action[..., 0], -2, 2)
        return self.x[..., None], -np.square(self.x)


class Training:
    def __init__(self, seeds, folder):
        self.seeds = seeds
        self.env = PointMass(seeds)
        self.agent = SAC(SPEC, HP, seeds, CPU)
        self.replay = Replay(self.agent.replay, seeds, NUM_ENVS, (1,), np.float32, 1, CPU)
        self.logs = [ReplayLog(folder / str(seed)) for seed in seeds]
        self.agent_steps = 0

    def begin_episodes(self):
        self.obs = self.env.reset(self.agent_steps // NUM_ENVS // T)
        self.replay.begin(self.obs)
        return self

    def random_action(self):
        shape = (NUM_ENVS, 1)
        rngs = [np.random.default_rng(derive_seed(seed, "random", self.agent_steps)) for seed in self.seeds]
        return np.stack([rng.uniform(-1, 1, shape) for rng in rngs]).astype(np.float32)

    def run(self, until):
        first = torch.zeros(len(self.seeds), NUM_ENVS, dtype=torch.bool)
        while self.agent_steps < until:
            if self.agent_steps < self.agent.seed_agent_steps:
                action = self.random_action()
            else:
                action = self.agent.act(torch.from_numpy(self.obs), first, explore=True).numpy()
            self.obs, reward = self.env.step(action)
            before, self.agent_steps = self.agent_steps, self.agent_steps + NUM_ENVS
            self.feed(action, reward)
            for _ in range(self.agent.updates_due(before, self.agent_steps)):
                self.agent.update(self.replay.sample())

    def feed(self, action, reward):
        step = self.agent_steps // NUM_ENVS
        ended = np.full(reward.shape, step % T == 0)
        self.replay.add(self.obs, action, reward, np.zeros_like(ended), ended)
        for run, episode in self.replay.pop_finished():
            self.logs[run].append([episode])
        if ended.any():
            self.begin_episodes()

    def checkpoint(self):
        actions = [
            [self.replay.in_progress(run, env).action for env in range(NUM_ENVS)] for run in range(len(self.seeds))
        ]
        states = [
            {"agent": self.agent.state_dict(r), "replay": self.replay.state_dict(r), "log": self.logs[r].position()}
            for r in range(len(self.seeds))
        ]
        return self.agent_steps, np.array(actions), states

    @classmethod
    def resume(cls, seeds, folder, checkpoint):
        agent_steps, actions, states = checkpoint
        training = cls(seeds, folder)
        for run, state in enumerate(states):
            training.logs[run].truncate(state["log"])
            episodes = training.logs[run].read(state["log"], HP.replay_capacity)
            training.replay.load(run, state["replay"], episodes)
        training.agent.load_state_dict([state["agent"] for state in states])
        training.agent_steps = agent_steps - actions.shape[2] * NUM_ENVS
        training.begin_episodes()
        for action in actions.transpose(2, 0, 1, 3):
            training.obs, reward = training.env.step(action)
            training.agent_steps += NUM_ENVS
            training.feed(action, reward)
        return training

    def evaluate(self):
        env, first = PointMass([-seed - 1 for seed in self.seeds]), torch.zeros(len(self.seeds), NUM_ENVS, dtype=bool)
        obs, total = env.reset(0), 0.0
        for _ in range(T):
            obs, reward = env.step(self.agent.act(torch.from_numpy(obs), first, explore=False).numpy())
            total = total + reward
        return total.mean(1)  # (R,)


def test_learns_to_stand_still_at_the_origin(tmp_path):
    training = Training((3, 4), tmp_path).begin_episodes()
    assert (training.evaluate() < -3).all()
    training.run(until=900)
    assert (training.evaluate() > -0.7).all()


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    uninterrupted = Training((1, 2), tmp_path / "whole").begin_episodes()
    uninterrupted.run(until=460)
    interrupted = Training((1, 2), tmp_path / "interrupted").begin_episodes()
    interrupted.run(until=374)  # within an episode, after episodes were evicted
    checkpoint = interrupted.checkpoint()
    interrupted.run(until=430)
    resumed = Training.resume((1, 2), tmp_path / "interrupted", checkpoint)
    resumed.run(until=460)
    for one, other in zip(uninterrupted.agent.actor.parameters(), resumed.agent.actor.parameters(), strict=True):
        assert torch.equal(one, other)
    assert np.array_equal(uninterrupted.evaluate(), resumed.evaluate())
