"""Evaluation: every run plays its episodes in environments of its own, all at once, and training notices nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench import contract
from bench.envs import agents_pixels
from bench.envs.pool import EnvPool, WorkerError
from bench.failures import RunsFailed
from bench.runspec import RunSpec
from bench.seeding import episode_seed

if TYPE_CHECKING:
    from agents.protocol import Agent

VIDEO_PIXELS = 256


class Abandoned(Exception):
    """An evaluation was stopped before its end; nothing of it counts."""


class Evaluator:
    """R x E evaluation environments, E the number of evaluation episodes.

    Args:
        specs: one for each run of the fleet.
        workers: processes that step them; 0 steps them in this one.
        video: keep the frames of each run's first episode.
        alive: called between steps, for the heartbeat.
        interrupted: asked between steps; true abandons the evaluation.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        workers: int,
        video: bool = False,
        alive: Callable[[], None] = lambda: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.specs = list(specs)
        self.episodes = specs[0].eval_episodes
        self.alive, self.interrupted = alive, interrupted
        self.video = video
        tasks = [spec.task for spec in specs for _ in range(self.episodes)]
        repeats = [spec.action_repeat for spec in specs for _ in range(self.episodes)]
        pixels = agents_pixels(specs[0].hyperparameters)
        self.pool = EnvPool(tasks, specs[0].obs, workers, action_repeats=repeats, render=video, pixels=pixels, pad=True)
        self.frames: list[list[np.ndarray]] = [[] for _ in specs]

    def evaluate(self, agent: Agent, device: torch.device, agent_steps: int) -> list[list[dict[str, Any]]]:
        """Play E episodes with each run's agent.

        The episodes' seeds derive from the run's seed and `agent_steps`, so an evaluation can be repeated.

        Returns:
            For each run a row for each episode: episode, return, success (at its last agent step), length.

        Raises:
            Abandoned: it was interrupted.
        """
        runs, total = len(self.specs), len(self.specs) * self.episodes
        shape = (runs, self.episodes)
        seeds = [
            episode_seed(spec.seed, f"evaluate/{agent_steps}", 0, episode)
            for spec in self.specs
            for episode in range(self.episodes)
        ]
        obs = self.pool.reset(list(range(total)), seeds).copy()
        returns, success, length = np.zeros(total), np.zeros(total), np.zeros(total, dtype=np.int64)
        first, going = np.ones(total, dtype=bool), np.arange(total)
        self.frames = [[] for _ in self.specs]
        while len(going):
            if self.interrupted():
                raise Abandoned
            self._film(going)
            shown = torch.from_numpy(obs.reshape(*shape, *obs.shape[1:])).to(device)
            action = agent.act(shown, torch.from_numpy(first.reshape(shape)).to(device), explore=False)
            contract.check_action(agent, action, (*shape, self.pool.layout.action_size), device)
            chosen = action.cpu().numpy().reshape(total, -1)[going]
            contract.check_range(agent, float(np.abs(chosen).max()))
            try:
                result = self.pool.step(np.nan_to_num(chosen), going.tolist())
            except WorkerError as error:
                raise RunsFailed.of_environments(error, error.indices, self.episodes) from error
            obs[going], first[:] = result.obs, False
            returns[going] += result.reward
            # An agent that turned NaN has no return, and must not stop the other runs of the fleet.
            returns[going[~np.isfinite(chosen).all(1)]] = np.nan
            success[going], length[going] = result.success, length[going] + 1
            going = going[~(result.terminated | result.truncated)]
            self.alive()
        return [
            [
                {
                    "episode": episode,
                    "return": float(returns[run * self.episodes + episode]),
                    "success": float(success[run * self.episodes + episode]),
                    "length": int(length[run * self.episodes + episode]),
                }
                for episode in range(self.episodes)
            ]
            for run in range(runs)
        ]

    def _film(self, going: np.ndarray) -> None:
        if not self.video:
            return
        for run in range(len(self.specs)):
            index = run * self.episodes
            if index in going:
                self.frames[run].append(self.pool.render(index, VIDEO_PIXELS, VIDEO_PIXELS))

    def close(self) -> None:
        """End the environments' processes."""
        self.pool.close()
