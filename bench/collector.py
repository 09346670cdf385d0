"""The training environments of a fleet: stepped in lockstep, each reset on its own with a seed of its own.

An episode is determined by its seed and the actions taken, so a checkpoint keeps the actions of the episodes in
progress and resuming plays them again: no simulator has to save its state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.protocol import AgentSpec, Sizes
from bench.envs import agents_pixels
from bench.envs.errors import WorkerError
from bench.envs.stepping import Pool
from bench.failures import RunsFailed
from bench.replay import Replay
from bench.runspec import RunSpec
from bench.seeding import episode_seed

Array = NDArray[Any]


@dataclass
class Step:
    """One lockstep of R x N environments."""

    obs: Array  # (R, N, *obs_shape): the observation that the action led to, also at the end of an episode
    reward: Array  # (R, N) float32
    terminated: Array  # (R, N) bool
    truncated: Array  # (R, N) bool


class Collector:
    """R x N training environments.

    Args:
        pool: R * N environments, those of a run next to each other.
        seeds: the seed of each run.
        num_envs: N.
        episode_agent_steps: agent steps in an episode that runs to its time limit.
        sizes: of each run of a padded fleet.

    Attributes:
        obs: (R, N, *obs_shape) what each environment shows now.
        first: (R, N) whether that is the first observation of an episode.
        finished: (run, return, success) of episodes that ended since it was last emptied.
    """

    def __init__(
        self, pool: Pool, seeds: Sequence[int], num_envs: int, episode_agent_steps: int, sizes: Sequence[Sizes] = ()
    ) -> None:
        self.pool, self.seeds = pool, list(seeds)
        self.runs, self.num_envs, self.episode_agent_steps = len(seeds), num_envs, episode_agent_steps
        self.episode = np.zeros((self.runs, num_envs), dtype=np.int64)
        self.first = np.ones((self.runs, num_envs), dtype=bool)
        self.returns = np.zeros((self.runs, num_envs))
        self.finished: list[tuple[int, float, float]] = []
        self.actions: list[list[Array]] = [[] for _ in range(self.runs * num_envs)]
        self.obs: Array = np.empty(0)
        self._sizes = tuple(sizes)

    @classmethod
    def of_runs(cls, specs: Sequence[RunSpec], workers: int, told: AgentSpec) -> Collector:
        """The environments of a fleet whose agent was told `told`, stepped by so many processes; 0 steps them in this
        one."""
        from bench.envs.pool import EnvPool  # loads gymnasium, which made-up environments do without

        num_envs = specs[0].num_envs
        tasks = [spec.task for spec in specs for _ in range(num_envs)]
        repeats = [spec.action_repeat for spec in specs for _ in range(num_envs)]
        pixels = agents_pixels(specs[0].hyperparameters)
        pool = EnvPool(tasks, specs[0].obs, workers, repeats, pixels=pixels, pad=bool(told.sizes))
        return cls(pool, [spec.seed for spec in specs], num_envs, told.episode_agent_steps, told.sizes)

    def start(self) -> None:
        """Reset every environment to its first episode."""
        indices = range(self.runs * self.num_envs)
        obs = self.pool.reset(list(indices), [self._seed(index) for index in indices])
        self.obs = obs.reshape(self.runs, self.num_envs, *obs.shape[1:])

    def _seed(self, index: int) -> int:
        run, env = divmod(index, self.num_envs)
        return episode_seed(self.seeds[run], "train", env, int(self.episode[run, env]))

    @property
    def reaches_time_limit(self) -> bool:
        """Whether the next agent step takes an environment to the time limit of its episode."""
        return max(map(len, self.actions)) + 1 >= self.episode_agent_steps

    def send(self, action: Array) -> None:
        """Begin an agent step of all environments, with (R, N, A) actions."""
        flat = action.reshape(self.runs * self.num_envs, -1)
        with _failures_by_run(self.num_envs):
            self.pool.step_send(flat)
        for taken, history in zip(flat, self.actions, strict=True):
            history.append(taken.copy())

    def receive(self) -> Step:
        """Finish the agent step that `send` began, then reset the environments whose episode ended."""
        shape = (self.runs, self.num_envs)
        with _failures_by_run(self.num_envs):
            result = self.pool.step_recv()
        self.returns += result.reward.reshape(shape)
        self.obs = result.obs.reshape(*shape, *result.obs.shape[1:]).copy()
        step = Step(
            obs=self.obs.copy(),
            reward=result.reward.reshape(shape).copy(),
            terminated=result.terminated.reshape(shape).copy(),
            truncated=result.truncated.reshape(shape).copy(),
        )
        self.first = step.terminated | step.truncated
        self._reset_ended(result.success.reshape(shape))
        return step

    def _reset_ended(self, success: Array) -> None:
        ended = np.flatnonzero(self.first)
        if not len(ended):
            return
        for index in ended:
            run, env = divmod(int(index), self.num_envs)
            self.finished.append((run, float(self.returns[run, env]), float(success[run, env])))
            self.returns[run, env] = 0.0
            self.episode[run, env] += 1
            self.actions[index] = []
        fresh = self.pool.reset(ended.tolist(), [self._seed(int(index)) for index in ended])
        self.obs.reshape(-1, *self.obs.shape[2:])[ended] = fresh

    def state_dict(self, run: int) -> dict[str, Any]:
        """Of one run, in its own sizes: which episode each environment is in, and the actions taken in it."""
        own = self.actions[run * self.num_envs : (run + 1) * self.num_envs]
        size = self._sizes[run].action if self._sizes else None
        cut = [[action[:size] for action in taken] for taken in own]
        return {
            "episode": self.episode[run].tolist(),
            "actions": [torch.from_numpy(np.array(taken, dtype=np.float32)) for taken in cut],
            "obs": torch.from_numpy(self._own_obs(run).copy()),
        }

    def _own_obs(self, run: int) -> Array:
        return self.obs[run, :, : self._sizes[run].obs] if self._sizes else self.obs[run]

    def restore(self, states: Sequence[Mapping[str, Any]], replay: Replay) -> bool:
        """Play the episodes in progress again, and feed them to the replay.

        Returns:
            Whether every simulator came back to the very same observation.
        """
        self.episode = np.array([state["episode"] for state in states], dtype=np.int64)
        actions = [list(taken.numpy()) for state in states for taken in state["actions"]]
        self.actions = [[_padded(action, replay.action_size) for action in taken] for taken in actions]
        self.start()
        replay.begin(self.obs)
        lengths = np.array([len(taken) for taken in self.actions]).reshape(self.runs, self.num_envs)
        action = np.zeros((len(self.actions), replay.action_size), dtype=np.float32)
        reward, never = np.zeros(action.shape[0]), np.zeros(lengths.shape, dtype=bool)
        flat_obs = self.obs.reshape(-1, *self.obs.shape[2:])
        for number in range(int(lengths.max())):
            where = lengths > number
            going = np.flatnonzero(where)
            action[going] = [self.actions[index][number] for index in going]
            self.pool.step_send(action[going], going.tolist())
            result = self.pool.step_recv()
            flat_obs[going], reward[going] = result.obs, result.reward
            shaped = reward.reshape(lengths.shape)
            replay.add(self.obs, action.reshape(*lengths.shape, -1), shaped, never, never, where)
            self.returns[where] += shaped[where]
        self.first = lengths == 0
        return all(np.array_equal(state["obs"].numpy(), self._own_obs(run)) for run, state in enumerate(states))

    def close(self) -> None:
        """End the environments' processes."""
        self.pool.close()


def _padded(action: Array, size: int) -> Array:
    """An action (A,) with zeros at its end, (size,)."""
    return np.pad(action, (0, size - len(action)))


@contextlib.contextmanager
def _failures_by_run(num_envs: int) -> Iterator[None]:
    """An environment that fails is a failure of its run."""
    try:
        yield
    except WorkerError as error:
        raise RunsFailed.of_environments(error, error.indices, num_envs) from error
