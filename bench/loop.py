"""One agent step of a fleet after the other: act, step the environments, store, update.

The environments step while the learner updates, wherever that gives the same numbers as one after the other: the replay
takes the entries of the transitions that are under way before the updates begin, so it draws what it would draw with
them, and a batch that needs one of them waits for the environments first. One after the other go agent steps that end
an episode (its time limit is known beforehand), all of tasks whose episodes may end earlier, and all of agents that are
shown what happened before they learn (`Observing`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.protocol import Agent, AgentSpec, Observing
from bench import contract
from bench.collector import Collector
from bench.errors import UserError
from bench.replay import Replay
from bench.seeding import derive_seed
from bench.transfer import to_device


def _nothing(*_: Any) -> None:
    pass


class Loop:
    """The agent steps of R runs in lockstep.

    Args:
        agent: of R runs.
        spec: what the agent was made for.
        seeds: the seed of each run, for the actions of the seed phase.
        collector: its training environments, already at the first episode or restored to a later one.
        replay: what they have shown; an episode has begun in it for each environment.
        device: the agent's.
        overlap: whether environments step while the learner updates. Episodes must then last to their time limits.
        diverged: called with a run, and what is wrong, where its action is not a number (it acts with 0 instead).
        alive: called between the updates of a burst.

    Attributes:
        agent_steps: of each run, over its N environments.
        metrics: what the last update said.
        waited_s: time that the learner had nothing to do because environments stepped or reset, after the seed phase.
            On a GPU, environments that arrive while it still computes cost nothing, and count whole where it has
            finished before, even if only just: no more than this was waited.
        stepped_s: time of all agent steps after the seed phase.
    """

    def __init__(
        self,
        agent: Agent,
        spec: AgentSpec,
        seeds: Sequence[int],
        collector: Collector,
        replay: Replay,
        device: torch.device,
        overlap: bool = False,
        diverged: Callable[[int, str], None] = _nothing,
        alive: Callable[[], None] = _nothing,
    ) -> None:
        self.agent, self.spec, self.collector, self.replay, self.device = agent, spec, collector, replay, device
        self.runs = len(seeds)
        self.rngs = [np.random.default_rng(derive_seed(seed, "random actions")) for seed in seeds]
        self.observing = agent if isinstance(agent, Observing) else None
        self.overlap = overlap and self.observing is None
        self.diverged, self.alive = diverged, alive
        self.agent_steps = 0
        self.metrics: Mapping[str, Tensor] = {}
        self.waited_s = self.stepped_s = 0.0
        self._reward_range: tuple[float, float] | None = getattr(agent, "reward_range", None)
        self._under_way: NDArray[np.float32] | None = None  # actions (R, N, A) that the environments now take
        self._computed: torch.cuda.Event | None = None

    def agent_step(self, updates: int | None = None) -> None:
        """One agent step of every environment, and the updates owed for it.

        Args:
            updates: so many instead of those that the agent asks for.
        """
        begin = time.perf_counter()
        before, waited_s = self.agent_steps, self.waited_s
        due = self.agent.updates_due(before, before + self.spec.num_envs) if updates is None else updates
        contract.check_updates_due(self.agent, due)
        overlap = self.overlap and due > 0 and not self.collector.reaches_time_limit
        self._under_way = self._act()
        self.collector.send(self._under_way)
        self.agent_steps += self.spec.num_envs
        if overlap:
            self.replay.reserve()
            self._update(due)
        self._arrive()
        if overlap:
            self._check_none_ended()
        else:
            self._update(due)
        if before < self.agent.seed_agent_steps:
            self.waited_s = waited_s
        else:
            self.stepped_s += time.perf_counter() - begin

    @property
    def env_wait_share(self) -> float | None:
        """Share of the agent steps' time that the learner waited for environments; None in the seed phase."""
        return self.waited_s / self.stepped_s if self.stepped_s else None

    def _act(self) -> NDArray[np.float32]:
        """Actions (R, N, A) for this step: random in the seed phase, the agent's afterwards."""
        shape = (self.spec.num_envs, self.spec.action_size)
        if self.agent_steps < self.agent.seed_agent_steps:
            return self._random(shape)
        obs, first = to_device(self.collector.obs, self.device), to_device(self.collector.first, self.device)
        chosen = self.agent.act(obs, first, explore=True)
        contract.check_action(self.agent, chosen, (self.runs, *shape), self.device)
        action: NDArray[np.float32] = chosen.cpu().numpy()
        contract.check_range(self.agent, float(np.abs(action).max()))
        for run in np.flatnonzero(~np.isfinite(action).all(axis=(1, 2))):
            self.diverged(int(run), "the agent's action is not a number")
        return np.nan_to_num(action)

    def _random(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Random actions (R, N, A); each run draws as it does alone."""
        action = np.zeros((self.runs, *shape), np.float32)
        for run, rng in enumerate(self.rngs):
            own = self.spec.sizes[run].action if self.spec.sizes else shape[1]
            action[run, :, :own] = rng.uniform(-1, 1, (shape[0], own))
        return action

    def _arrive(self) -> None:
        """Wait for the environments that are under way, and store what they give."""
        if self._under_way is None:
            return
        action, self._under_way = self._under_way, None
        acted_on = self.collector.obs
        begin = time.perf_counter()
        step = self.collector.receive()
        if self._computed is None or self._computed.query():
            self.waited_s += time.perf_counter() - begin
        if self._reward_range is not None:
            self._warn_beyond(step.reward, *self._reward_range)
        if self.observing is not None:
            told = (acted_on, step.reward, step.terminated, step.truncated)
            self.observing.observe(*(to_device(value, self.device) for value in told))
        self.replay.add(step.obs, action, step.reward, step.terminated, step.truncated)
        if self.collector.first.any():
            self.replay.begin(self.collector.obs, self.collector.first)

    def _warn_beyond(self, reward: NDArray[np.float32], low: float, high: float) -> None:
        """Say once that rewards are clamped, and learned as smaller ones."""
        beyond = reward[(reward < low) | (reward > high)]
        if len(beyond):
            self._reward_range = None
            warnings.warn(
                f"a reward of {beyond[0]:g} is beyond what {type(self.agent).__name__} can represent ({low:,.0f} to "
                f"{high:,.0f}): such rewards, and returns, are learned as the end of that range; scale the task's",
                stacklevel=2,
            )

    def _check_none_ended(self) -> None:
        ended = self.collector.first.any(1)
        if ended.any():
            raise UserError(
                f"an episode of run {int(ended.argmax())} ended before its time limit of "
                f"{self.spec.episode_agent_steps} agent steps, which the row of its task rules out: set terminates=True"
            )

    def _update(self, due: int) -> None:
        for _ in range(due):
            settled = bool(self.metrics)
            batch = self.replay.sample(self._arrive)
            self.metrics = self.agent.update(batch)
            self.replay.set_priorities(batch)
            if not settled:
                contract.check_metrics(self.agent, self.metrics, self.runs)
            if due > self.spec.num_envs:
                self.alive()
        if due and self.device.type == "cuda":
            self._computed = torch.cuda.Event()
            self._computed.record()
