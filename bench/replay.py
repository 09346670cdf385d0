"""Replay of a fleet, on the learner's device.

An episode of T agent steps takes T + 1 entries: entry 0 is the observation of the reset, entry i what action i led to,
with that action, its reward and whether the environment ended. The indices live on the host (`bench.replay_index`), the
data in two tensors on the device: a lockstep of all environments is one write to each, a batch of all runs one gather
from each. Of stacked pictures an entry keeps the newest alone: the others are those of the entries before it, and the
gather puts the stacks together again.

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
from bench.replay_index import RunIndex
from bench.replay_queue import Ints, Queue
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
        # What an entry keeps of an observation.
        self.frame_shape = (obs_shape[0] // frame_stack, *obs_shape[1:]) if frame_stack > 1 else obs_shape
        self.action_size = action_size
        self.sizes = tuple(sizes) or (Sizes(self.frame_shape[0], action_size),) * self.runs
        self.device = device
        self._indices = [RunIndex(spec, num_envs, seed) for seed in seeds]
        # The tensors grow when the first entries are needed, so that a short run never takes the whole capacity.
        self._entries = 0
        self._free = Queue()
        dtype = torch.from_numpy(np.empty(0, obs_dtype)).dtype
        self._obs = torch.empty(0, *self.frame_shape, dtype=dtype, device=device)
        self._steps = torch.empty(0, action_size + 2, device=device)  # action, reward, terminated
        # The entry before each in its episode; entry 0 is before itself.
        self._previous: Ints = np.empty(0, np.int64)
        # Entries of transitions that are under way (see `reserve`).
        self._reserved: Ints | None = None
        self._is_reserved: Bools = np.empty(0, bool)
        # The episodes in progress once more on the host, for the log: no copy from the device.
        self._open_obs = np.empty((self.runs, num_envs, 64, *self.frame_shape), obs_dtype)
        self._open_steps = np.zeros((self.runs, num_envs, 64, action_size + 2), np.float32)
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
        return self._obs.element_size() * int(np.prod(self.frame_shape)) + 4 * (self.action_size + 2)

    @property
    def allocated_bytes(self) -> int:
        """Device memory taken now."""
        return self._entries * self.bytes_per_entry

    def full_bytes(self, agent_steps: int) -> int:
        """Device memory that it takes once every run has made so many agent steps."""
        return self.runs * min(self.spec.capacity, agent_steps) * 65 // 64 * self.bytes_per_entry

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
        stacks = self._rows(obs, runs, envs)
        rows = self._newest_frames(stacks)
        if self.frame_stack > 1 and not np.array_equal(stacks, np.concatenate([rows] * self.frame_stack, axis=1)):
            raise ValueError(f"an episode begins with other than one picture {self.frame_stack} times")
        slots = self._take(len(runs))
        for run, index in enumerate(self._indices):
            index.begin(envs[runs == run], slots[runs == run])
        self._open_obs[runs, envs, 0] = rows
        self._previous[slots] = slots
        self._write(slots, rows, np.zeros((len(runs), self.action_size + 2), np.float32))

    def reserve(self) -> None:
        """The next transition of every environment is under way, and ends no episode: draws are as if it were here.

        `add` then brings it, before the next `reserve`; a batch that needs it waits for that (see `sample`).
        """
        if self._reserved is None:
            self._reserved = self._extend(*self._places(None))
            self._is_reserved[self._reserved] = True

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
            self._is_reserved[slots] = False
        else:
            slots = self._extend(runs, envs)
        obs_rows = self._newest_frames(self._rows(obs, runs, envs))
        step_rows = np.concatenate(
            [
                self._rows(action, runs, envs),
                self._rows(reward, runs, envs)[:, None],
                self._rows(terminated, runs, envs)[:, None],
            ],
            axis=1,
            dtype=np.float32,
        )
        self._write(slots, obs_rows, step_rows)
        at = np.stack([index.open_transitions for index in self._indices])[runs, envs]
        self._grow_open(int(at.max()))
        self._open_obs[runs, envs, at] = obs_rows
        self._open_steps[runs, envs, at] = step_rows
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
            self._free.append(index.make_room(int((runs == run).sum())))
        slots = self._take(len(runs))
        for run, index in enumerate(self._indices):
            mine = envs[runs == run]
            self._previous[slots[runs == run]] = index.open_slots[mine, index.open_transitions[mine]]
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
        own = self.sizes[run]
        steps = self._open_steps[run, env, 1 : length + 1].copy()
        obs = self._open_obs[run, env, : length + 1, : own.obs].copy()
        return Episode(env, obs, steps[:, : own.action], steps[:, -2], steps[:, -1])

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
        length, batch = self.spec.length, self.spec.batch_size
        draws = [index.draw() for index in self._indices]
        entries = np.stack([draw.entries for draw in draws])  # (R, L, B)
        if self._reserved is not None and self._is_reserved[entries].any():
            if arrive is None:
                raise ValueError("a batch holds a transition that is under way")
            arrive()
        obs = self._obs.index_select(0, self._to_device(self._stacks(entries)).flatten())
        slots = self._to_device(entries[:, 1:])
        steps = self._steps.index_select(0, slots.flatten()).view(self.runs, length - 1, batch, -1)
        starts = [draw.start for draw in draws if draw.start is not None]
        weights = [draw.weight for draw in draws if draw.weight is not None]
        return Batch(
            obs=obs.view(self.runs, length, batch, *self.obs_shape),
            action=steps[..., :-2],
            reward=steps[..., -2],
            terminated=steps[..., -1],
            first=self._to_device(self._previous[entries] == entries) if self.spec.draw == "stream" else None,
            weight=self._to_device(np.stack(weights)) if weights else None,
            start=torch.from_numpy(np.stack(starts)) if starts else None,
        )

    def _stacks(self, entries: Ints) -> Ints:
        """The entries of each one's pictures, the oldest first: (...) -> (..., frame_stack)."""
        stack = [entries]
        for _ in range(self.frame_stack - 1):
            stack.append(self._previous[stack[-1]])
        return np.stack(stack[::-1], axis=-1)

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
            self._free.append(index.make_room(episode.transitions))
            slots = self._take(episode.transitions + 1)
            own = self.sizes[run]
            obs = np.zeros((episode.transitions + 1, *self.frame_shape), self._open_obs.dtype)
            obs[:, : own.obs] = episode.obs
            steps = np.zeros((episode.transitions + 1, self.action_size + 2), np.float32)
            steps[1:, : own.action], steps[1:, -2], steps[1:, -1] = episode.action, episode.reward, episode.terminated
            self._write(slots, obs, steps)
            self._previous[slots] = np.concatenate([slots[:1], slots[:-1]])
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

    def _newest_frames(self, obs: NDArray[Any]) -> NDArray[Any]:
        """What is kept of observations (n, *obs_shape): (n, *frame_shape)."""
        return obs[:, -self.frame_shape[0] :]

    @staticmethod
    def _rows(values: Any, runs: Ints, envs: Ints) -> NDArray[Any]:
        return np.asarray(values)[runs, envs]

    def _write(self, slots: Ints, obs: NDArray[Any], steps: NDArray[np.float32]) -> None:
        where = self._to_device(slots)
        self._obs.index_copy_(0, where, self._to_device(obs.astype(self._open_obs.dtype, copy=False)))
        self._steps.index_copy_(0, where, self._to_device(steps))

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return to_device(array, self.device)

    def _take(self, count: int) -> Ints:
        """Free entries; more memory where there are too few."""
        if len(self._free) < count:
            self._grow(count - len(self._free))
        return self._free.pop(count)

    def _grow(self, lacking: int) -> None:
        """Double up to what the capacity takes with long episodes; beyond it, a little at a time."""
        full = self.runs * self.spec.capacity * 65 // 64
        more = min(max(self._entries, 1024), full - self._entries) if self._entries < full else full // 64
        more = max(more, lacking)
        try:
            obs = torch.empty(self._entries + more, *self.frame_shape, dtype=self._obs.dtype, device=self.device)
            steps = torch.empty(self._entries + more, self.action_size + 2, device=self.device)
        except torch.OutOfMemoryError as error:
            gigabytes = full * self.bytes_per_entry / 1e9
            raise UserError(
                f"no memory on {self.device} for the replay ({gigabytes:.1f} GB when full): train fewer runs in a "
                "fleet, or lower the agent's replay capacity"
            ) from error
        obs[: self._entries] = self._obs
        steps[: self._entries] = self._steps
        self._obs, self._steps = obs, steps
        self._previous = np.concatenate([self._previous, np.zeros(more, np.int64)])
        self._is_reserved = np.concatenate([self._is_reserved, np.zeros(more, bool)])
        self._free.append(np.arange(self._entries, self._entries + more))
        self._entries += more

    def _grow_open(self, longest: int) -> None:
        if longest >= self._open_steps.shape[2]:
            self._open_obs = np.concatenate([self._open_obs, np.empty_like(self._open_obs)], axis=2)
            self._open_steps = np.concatenate([self._open_steps, np.zeros_like(self._open_steps)], axis=2)
