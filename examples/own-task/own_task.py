"""Three tasks for the suite: two of Gymnasium's, and one whose environment is written here."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from bench.envs.gymnasium_env import GymnasiumEnv
from bench.tasks import Task

TASKS = [
    Task(
        name="gym-pendulum",
        domain="own",  # results are grouped by it, and `bench tasks --set own` lists it
        domain_version="gymnasium-1.2.3",  # travels into every table
        simulator_id="gymnasium:Pendulum-v1",
        obs_size=3,
        action_size=1,
        action_repeat=1,
        episode_agent_steps=200,
        budget_env_steps=50_000,
        metric="return",
        return_range=(-1600.0, 0.0),  # returns that score 0 and 100
    ),
    Task(
        name="gym-inverted-pendulum",
        domain="own",
        domain_version="gymnasium-1.2.3+mujoco-3.3.0",
        simulator_id="gymnasium:InvertedPendulum-v5",
        obs_size=4,
        action_size=1,
        action_repeat=1,
        episode_agent_steps=1000,
        budget_env_steps=100_000,
        metric="return",
        terminates=True,  # an episode is over when the pole falls
    ),
    Task(
        name="landing",
        domain="own",
        domain_version="landing-1",
        simulator_id="own_task:make_landing",
        obs_size=2,
        action_size=1,
        action_repeat=2,
        episode_agent_steps=50,
        budget_env_steps=20_000,
        metric="success",
        terminates=True,
    ),
]


class Landing(gymnasium.Env[np.ndarray, np.ndarray]):
    """Come down from a height and touch the ground slowly; touching it ends the episode.

    Observation: height (m) and vertical speed (m/s). Action: thrust, 0 to 15 m/s^2.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(0.0, 15.0, (1,), np.float32)
    step_s = 0.05

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.height, self.speed = self.np_random.uniform(4.0, 6.0), 0.0
        return self._obs(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.speed += (float(action[0]) - 9.81) * self.step_s
        self.height += self.speed * self.step_s
        landed = self.height <= 0.0
        softly = landed and abs(self.speed) < 1.0
        reward = (10.0 if softly else -abs(self.speed)) if landed else -0.05 * self.height
        return self._obs(), reward, landed, False, {"success": float(softly)}

    def _obs(self) -> np.ndarray:
        return np.array([self.height, self.speed], np.float32)


def make_landing(task: Task, obs: str, seed: int, action_repeat: int, render_mode: Any) -> GymnasiumEnv:
    """The environment of the task `landing`, named by its simulator_id."""
    return GymnasiumEnv(task, obs, seed, action_repeat, render_mode, env=Landing())
