"""Replay of a fleet, on the learner's device.

An episode of T agent steps takes T + 1 entries: entry 0 is the observation of the reset, entry i what action i led to,
with that action, its reward and whether the environment ended. The indices live on the host (`bench.replay_index`), the
data in two tensors on the device (`bench.replay_entries`): a lockstep of all environments is one write to each, a batch
of all runs one gather from each.

    replay = Replay.of_agent(agent.replay, spec, seeds, device)
    replay.begin(obs)                                                  # (R, N, ...), after the first reset
    while ...:
        replay.add(obs, action, reward, terminated, truncated)         # the observation before an automatic reset
        for run, episode in replay.pop_finished():
            logs[run].append([episode])
        replay.begin(reset_obs, where=terminated | truncated)
        if replay.can_sample():
            batch = replay.sample()
            agent.update(batch)
            replay.set_priorities(batch)                               # where draws are prioritised

To resume: `load` each run from its state and its log, then feed the episodes in progress by `begin` and `add` again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from agents.protocol import AgentSpec, Batch, ReplaySpec, Sizes
from bench.errors import UserError
from bench.replay_entries import Entries, OpenEpisodes, step_rows
from bench.replay_index import RunIndex
from bench.replay_queue import Ints
from bench.replay_segment import Episode
from bench.transfer import to_device

Bools = NDArray[np.bool_]


class Replay:
    """What R runs with N environments each have seen lately, and batches of it.

    Args:
        spec: how batches are drawn, and how many transitions a run keeps. Episodes in progress count; when there is no
            room the run's oldest finished episode goes, whole.
        seeds: the seed of each of the R runs. A run draws the same alone and in any fleet.
        num_envs: N.
        obs_shape: shape of one observation.
        obs_dtype: float32 or uint8.
        action_size: A.
        device: where the data lives and batches appear.
        frame_stack: pictures in one observation, along its first axis, the oldest first. Above 1 an episode's first
            observation holds one picture so often, and each further one drops the oldest for a new one.
        sizes: of each run of a padded fleet. In memory, and in batches, a run's observations and actions are padded;
            its episodes are given out and taken in in its own sizes.
    """

    def __init__(
        self,
        spec: ReplaySpec,
        seeds: Sequence[int],
        num_envs: int,
        obs_shape: tuple[int, ...],
        obs_dtype: DTypeLike,
        action_size: int,
        device: torch.device,
        frame_stack: int = 1,
        sizes: Sequence[Sizes] = (),
    ) -> None:
        self.spec = spec
        self.runs = len(seeds)
        self.num_envs = num_envs
        self.obs_shape = obs_shape
        self.frame_stack = frame_stack
        self.action_size = action_size
        self.device = device
        full = _with_resets(self.runs * spec.capacity)
        self._entries = Entries(obs_shape, obs_dtype, action_size, frame_stack, full, device)
        frame_shape = self._entries.frame_shape
        self.sizes = tuple(sizes) or (Sizes(frame_shape[0], action_size),) * self.runs
        self._open = OpenEpisodes(num_envs, frame_shape, obs_dtype, action_size, self.sizes)
        self._indices = [RunIndex(spec, num_envs, seed) for seed in seeds]
        # Entries of transitions that are under way (see `reserve`).
        self._reserved: Ints | None = None
        self._finished: list[tuple[int, Episode]] = []
        self._new_priorities: tuple[Tensor, Tensor] | None = None  # starts and priorities, not yet taken over

    @classmethod
    def of_agent(cls, replay: ReplaySpec, spec: AgentSpec, seeds: Sequence[int], device: torch.device) -> Replay:
        """The empty replay of a fleet whose agent was made for `spec` and wants its batches as `replay` says."""
        dtype = np.uint8 if spec.obs_kind == "rgb" else np.float32
        shapes = (spec.num_envs, spec.obs_shape, dtype, spec.action_size)
        return cls(replay, seeds, *shapes, device, frame_stack=spec.frame_stack, sizes=spec.sizes)

    @property
    def bytes_per_entry(self) -> int:
        """Device memory that one entry takes. A run of `capacity` transitions takes `capacity` entries and one more for
        each episode; the host keeps 17 bytes an entry beside it (25 for streams)."""
        return self._entries.bytes_each

    @property
    def allocated_bytes(self) -> int:
        """Device memory taken now."""
        return len(self._entries) * self.bytes_per_entry

    def full_bytes(self, agent_steps: int) -> int:
        """Device memory that it takes once every run has made so many agent steps."""
        return _with_resets(self.runs * min(self.spec.capacity, agent_steps)) * self.bytes_per_entry

    def transitions(self, run: int) -> int:
        """Transitions that a run holds now."""
        return self._indices[run].transitions

    def begin(self, obs: Any, where: Bools | None = None) -> None:
        """Episodes begin.

        Args:
            obs: (R, N, *obs_shape) on the host, what the resets returned.
            where: (R, N), the environments that were reset; None: all.

        Raises:
            ValueError: an environment of `where` has an episode in progress, or an observation that is no stack
                of one picture.
        """
        runs, envs = self._places(where)
        if len(runs) == 0:
            return
        if any(
            index.open_transitions[envs[runs == run]].max(initial=-1) >= 0 for run, index in enumerate(self._indices)
        ):
            raise ValueError("an episode begins where one is in progress")
        frames = self._entries.only_frames(self._rows(obs, runs, envs))
        slots = self._entries.take(len(runs))
        for run, index in enumerate(self._indices):
            index.begin(envs[runs == run], slots[runs == run])
        steps = np.zeros((len(runs), self.action_size + 2), np.float32)
        self._open.write(runs, envs, 0, frames, steps)
        self._entries.previous[slots] = slots
        self._entries.write(slots, frames, steps)

    def reserve(self) -> None:
        """The next transition of every environment is under way, and ends no episode: draws are as if it were here.

        `add` then brings it, before the next `reserve`; a batch that needs it waits for that (see `sample`).
        """
        if self._reserved is None:
            self._reserved = self._extend(*self._places(None))
            self._entries.is_reserved[self._reserved] = True

    def add(
        self, obs: Any, action: Any, reward: Any, terminated: Any, truncated: Any, where: Bools | None = None
    ) -> None:
        """One transition of every environment; where it ended, the episode is finished.

        Args:
            obs: (R, N, *obs_shape) on the host, what the action led to (before any reset).
            action: (R, N, A).
            reward: (R, N).
            terminated: (R, N), the environment ended by itself.
            truncated: (R, N), a time limit ended the episode.
            where: (R, N), the environments that took the action; None: all.

        Raises:
            ValueError: an environment of `where` has no episode in progress, or some are left out after `reserve`.
            UserError: the episodes in progress fill the replay, or the device has no memory left.
        """
        runs, envs = self._places(where)
        if len(runs) == 0:
            return
        if self._reserved is not None:
            if where is not None:
                raise ValueError("a transition of every environment was reserved")
            slots, self._reserved = self._reserved, None
            self._entries.is_reserved[slots] = False
        else:
            slots = self._extend(runs, envs)
        frames = self._entries.newest_frames(self._rows(obs, runs, envs))
        steps = step_rows(*(self._rows(value, runs, envs) for value in (action, reward, terminated)))
        self._entries.write(slots, frames, steps)
        at = np.stack([index.open_transitions for index in self._indices])[runs, envs]
        self._open.write(runs, envs, at, frames, steps)
        ended = self._rows(terminated, runs, envs).astype(bool) | self._rows(truncated, runs, envs).astype(bool)
        for run, env in zip(runs[ended].tolist(), envs[ended].tolist(), strict=True):
            self._finished.append((run, self.in_progress(run, env)))
            self._indices[run].finish(env)

    def _extend(self, runs: Ints, envs: Ints) -> Ints:
        """Entries for one more transition of the episodes in progress in these environments."""
        if any(index.open_transitions[envs[runs == run]].min(initial=0) < 0 for run, index in enumerate(self._indices)):
            raise ValueError("a transition was added where no episode has begun")
        self._take_priorities()
        for run, index in enumerate(self._indices):
            self._entries.release(index.make_room(int((runs == run).sum())))
        slots = self._entries.take(len(runs))
        for run, index in enumerate(self._indices):
            mine = envs[runs == run]
            self._entries.previous[slots[runs == run]] = index.open_slots[mine, index.open_transitions[mine]]
            index.extend(mine, slots[runs == run])
        return slots

    def in_progress(self, run: int, env: int) -> Episode:
        """A copy of the episode in progress in an environment, so far.

        Raises:
            ValueError: none has begun.
        """
        length = int(self._indices[run].open_transitions[env])
        if length < 0:
            raise ValueError(f"no episode is in progress in environment {env} of run {run}")
        return self._open.episode(run, env, length)

    def pop_finished(self) -> list[tuple[int, Episode]]:
        """(run, episode) for every episode that ended since the last call, in the order of their end."""
        finished, self._finished = self._finished, []
        return finished

    def can_sample(self) -> bool:
        """Whether every run has a slice to draw."""
        return all(index.can_draw() for index in self._indices)

    def sample(self, arrive: Callable[[], None] | None = None) -> Batch:
        """Draw a batch for every run, each from its own episodes with its own generator.

        Args:
            arrive: adds the transitions that were reserved; called where the batch holds one of them.

        Raises:
            ValueError: it holds one, and nothing adds it.
            UserError: a run has no episode that is long enough yet.
        """
        self._take_priorities()
        draws = [index.draw() for index in self._indices]
        entries = np.stack([draw.entries for draw in draws])  # (R, L, B)
        if self._reserved is not None and self._entries.is_reserved[entries].any():
            if arrive is None:
                raise ValueError("a batch holds a transition that is under way")
            arrive()
        obs, steps = self._entries.obs(entries), self._entries.steps(entries[:, 1:])
        first = self._entries.previous[entries] == entries if self.spec.draw == "stream" else None
        starts = [draw.start for draw in draws if draw.start is not None]
        weights = [draw.weight for draw in draws if draw.weight is not None]
        return Batch(
            obs=obs,
            action=steps[..., :-2],
            reward=steps[..., -2],
            terminated=steps[..., -1],
            first=None if first is None else to_device(first, self.device),
            weight=to_device(np.stack(weights), self.device) if weights else None,
            start=torch.from_numpy(np.stack(starts)) if starts else None,
        )

    def set_priorities(self, batch: Batch) -> None:
        """Give the slices of the last batch the priorities that the agent's update has set; else nothing.

        They are brought to the host when the replay is next used: by then the device has computed them anyway.

        Raises:
            ValueError: the agent asks for prioritised draws and has set no priorities.
        """
        if self.spec.draw != "prioritised":
            return
        if batch.start is None or batch.priority is None or batch.priority.shape != batch.start.shape:
            given = None if batch.priority is None else tuple(batch.priority.shape)
            raise ValueError(
                f"an agent with prioritised draws sets batch.priority in its update, one number for each slice of each "
                f"run {(self.runs, self.spec.batch_size)}; it is {given}"
            )
        self._new_priorities = batch.start, batch.priority.detach()

    def _take_priorities(self) -> None:
        if self._new_priorities is None:
            return
        starts, priorities = (tensor.cpu().numpy() for tensor in self._new_priorities)
        for index, start, priority in zip(self._indices, starts, priorities, strict=True):
            index.set_priorities(start, priority)
        self._new_priorities = None

    def state_dict(self, run: int) -> dict[str, Any]:
        """What a run's draws need to go on, priorities included. The data is in the run's log."""
        self._take_priorities()
        return self._indices[run].state_dict()

    def load(self, run: int, state: Mapping[str, Any], episodes: Iterable[Episode]) -> None:
        """Refill an empty run.

        Args:
            run: which.
            state: what `state_dict` gave when the checkpoint was made.
            episodes: the finished episodes up to the checkpoint in the order of their end, the last `capacity`
                transitions of them at least (`ReplayLog.read`).

        Raises:
            ValueError: the run is not empty.
            UserError: the episodes are fewer than the state says.
        """
        index = self._indices[run]
        if index.transitions > 0:
            raise ValueError(f"run {run} of the replay is not empty")
        for episode in episodes:
            self._entries.release(index.make_room(episode.transitions))
            slots = self._entries.take(episode.transitions + 1)
            self._entries.write_episode(slots, episode, self.sizes[run])
            index.append(episode.env, slots)
        if index.finished_transitions < state["finished_transitions"]:
            raise UserError(
                f"the replay folder holds {index.finished_transitions} transitions and the checkpoint needs "
                f"{state['finished_transitions']}: restore the folder, or remove the run directory and run again"
            )
        index.load_state_dict(state)

    def _places(self, where: Bools | None) -> tuple[Ints, Ints]:
        """Runs and environments, run by run."""
        runs, envs = np.nonzero(np.ones((self.runs, self.num_envs), bool) if where is None else np.asarray(where))
        return runs, envs

    @staticmethod
    def _rows(values: Any, runs: Ints, envs: Ints) -> NDArray[Any]:
        return np.asarray(values)[runs, envs]


def _with_resets(transitions: int) -> int:
    """Entries of so many transitions with their episodes' first observations, where episodes are long."""
    return transitions * 65 // 64
