"""Which entries of replay hold which episode of one run, and which slices are drawn: arithmetic on the host.

What is drawn depends on the run's generator, on the finished episodes in the order of their end and on the lengths of
those in progress, never on where the entries lie. So a replay that was refilled draws as the one before it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.protocol import ReplaySpec
from bench.errors import UserError
from bench.replay_priorities import Priorities
from bench.replay_queue import Ints, Queue
from bench.replay_streams import Streams
from bench.seeding import derive_seed


@dataclass
class Draw:
    """B slices of one run."""

    entries: Ints  # (L, B)
    start: Ints | None = None  # (B,) numbers of their starts, counted since the run began; prioritised draws only
    weight: NDArray[np.float32] | None = None  # (B,) importance weights; prioritised draws only


class RunIndex:
    """The episodes of one run and its draws.

    Args:
        spec: how slices are drawn, and the most transitions kept.
        num_envs: N.
        seed: the run's seed; the draws have a generator of their own.

    Raises:
        ValueError: prioritised draws from episodes in progress.
    """

    def __init__(self, spec: ReplaySpec, num_envs: int, seed: int) -> None:
        self.spec = spec
        self.priorities: Priorities | None = None
        if spec.draw == "prioritised":
            if not spec.finished_episodes_only:
                raise ValueError("prioritised draws are from finished episodes only")
            self.priorities = Priorities(spec.capacity, spec.priority_alpha, spec.priority_beta)
        self.generator = np.random.default_rng(derive_seed(seed, "replay"))
        # Episodes in progress: entries by environment. -1: waits for a reset.
        self.open_slots: Ints = np.empty((num_envs, 64), np.int64)
        self.open_transitions: Ints = np.full(num_envs, -1, np.int64)
        # Finished episodes, in the order of their end: lengths, and the entries of all one after the other.
        self._lengths = Queue()
        self._envs = Queue()
        self._slots = Queue()
        self._slots_popped = 0
        self.finished_transitions = 0
        # Those long enough for a slice: address of entry 0 and number of starts before, both counted since the run
        # began, so that taking away the oldest changes no number.
        self._address = Queue()
        self._starts_before = Queue()
        self._starts = Queue()
        self._starts_end = 0
        self._streams = Streams(num_envs, spec.length) if spec.draw == "stream" else None

    @property
    def transitions(self) -> int:
        """Transitions kept, of finished episodes and of those in progress."""
        return self.finished_transitions + int(self.open_transitions.clip(min=0).sum())

    def make_room(self, transitions: int) -> Ints:
        """Take away the oldest finished episodes until as many more fit. Returns the entries that are free again.

        Raises:
            UserError: the episodes in progress alone fill the replay.
        """
        freed: list[Ints] = []
        while self.transitions + transitions > self.spec.capacity:
            if not len(self._lengths):
                raise UserError(
                    f"a replay of {self.spec.capacity} transitions cannot hold the {len(self.open_transitions)} "
                    "episodes in progress: raise the agent's replay capacity"
                )
            length, env = int(self._lengths.pop(1)[0]), int(self._envs.pop(1)[0])
            if self._starts_in(length) > 0:
                if self.priorities is not None:
                    self.priorities.remove(self._first_start, self._starts_in(length))
                for queue in (self._address, self._starts_before, self._starts):
                    queue.pop(1)
            if self._streams is not None:
                self._streams.drop(env, length + 1)
            freed.append(self._slots.pop(length + 1))
            self._slots_popped += length + 1
            self.finished_transitions -= length
        return np.concatenate(freed) if freed else np.empty(0, np.int64)

    def begin(self, envs: Ints, slots: Ints) -> None:
        """An episode begins in each of `envs`; `slots` hold its entry 0."""
        self.open_slots[envs, 0] = slots
        self.open_transitions[envs] = 0

    def extend(self, envs: Ints, slots: Ints) -> None:
        """One more transition in each of `envs`, whose entries are `slots`."""
        self.open_transitions[envs] += 1
        if self.open_transitions.max() >= self.open_slots.shape[1]:
            self.open_slots = np.concatenate([self.open_slots, np.empty_like(self.open_slots)], axis=1)
        self.open_slots[envs, self.open_transitions[envs]] = slots

    def finish(self, env: int) -> None:
        """The episode in progress in `env` has ended."""
        length = int(self.open_transitions[env])
        self.append(env, self.open_slots[env, : length + 1])
        self.open_transitions[env] = -1

    def append(self, env: int, slots: Ints) -> None:
        """A finished episode of `env` that lies in these entries."""
        length = len(slots) - 1
        starts = self._starts_in(length)
        if starts > 0:
            self._address.append([self._slots_popped + len(self._slots)])
            self._starts_before.append([self._starts_end])
            self._starts.append([starts])
            if self.priorities is not None:
                self.priorities.add(self._starts_end, starts)
            self._starts_end += starts
        self._slots.append(slots)
        self._lengths.append([length])
        self._envs.append([env])
        if self._streams is not None:
            self._streams.append(env, slots)
        self.finished_transitions += length

    def can_draw(self) -> bool:
        """Whether one slice at least can be drawn."""
        if self._streams is not None:
            return bool(self._streams.starts(self._open_entries()).any())
        return len(self._starts) > 0 or len(self._open_drawable()) > 0

    def draw(self) -> Draw:
        """B slices, drawn with replacement.

        Raises:
            UserError: no episode is long enough yet.
        """
        if not self.can_draw():
            which = "finished episode" if self.spec.finished_episodes_only else "episode"
            which = f"sequence of {which}s" if self._streams is not None else which
            raise UserError(f"replay cannot be drawn from: no {which} has {self.spec.length - 1} transitions yet")
        if self._streams is not None:
            entries = self._streams.draw(self.generator, self.spec.batch_size, self._open_entries(), self.open_slots)
            return Draw(entries)
        if self.priorities is not None:
            number, weight = self.priorities.draw(self.generator, self.spec.batch_size, self._first_start)
            item = np.searchsorted(self._starts_before.live, number, side="right") - 1
            start = number - self._starts_before.live[item]
            return Draw(self._entries(item, start, np.empty(0, np.int64)), number, weight)
        open_envs = self._open_drawable()
        open_starts = self._starts_in(self.open_transitions[open_envs])
        # Items are the finished episodes, then those in progress.
        finished = len(self._starts)
        if self.spec.draw == "episode":
            item = self.generator.integers(finished + len(open_envs), size=self.spec.batch_size)
            start = self.generator.integers(0, np.concatenate([self._starts.live, open_starts])[item])
        else:
            gone = self._first_start
            before = np.concatenate([self._starts_before.live - gone, self._starts_end - gone + _before(open_starts)])
            total = self._starts_end - gone + int(open_starts.sum())
            pick = self.generator.integers(total, size=self.spec.batch_size)
            item = np.searchsorted(before, pick, side="right") - 1
            start = pick - before[item]
        return Draw(self._entries(item, start, open_envs))

    def set_priorities(self, start: Ints, priority: NDArray[np.float32]) -> None:
        """The slices with these numbers have new priorities."""
        if self.priorities is not None:
            self.priorities.set(start, priority)

    def state_dict(self) -> dict[str, Any]:
        """The generator, and how much must be refilled before `load_state_dict`."""
        state = {"generator": self.generator.bit_generator.state, "finished_transitions": self.finished_transitions}
        if self.priorities is not None:
            first = self._first_start
            powers = self.priorities.powers(first, self._starts_end - first)
            state["priorities"] = {"end": self._starts_end, "powers": torch.from_numpy(powers)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Draw on from where `state_dict` was asked; the finished episodes of then have been appended again."""
        self.generator.bit_generator.state = state["generator"]
        if self.priorities is not None:
            end, powers = state["priorities"]["end"], state["priorities"]["powers"].numpy()
            # The numbers go on from then. Episodes that were appended beyond those of then go before any draw.
            self._starts_before.live[:] += end - self._starts_end
            self._starts_end = end
            self.priorities.load(end - len(powers), powers)

    @property
    def _first_start(self) -> int:
        """Number of the oldest start that is kept."""
        return int(self._starts_before.live[0]) if len(self._starts_before) else self._starts_end

    def _entries(self, item: Ints, start: Ints, open_envs: Ints) -> Ints:
        steps = np.arange(self.spec.length)[:, None]
        slots = np.empty((self.spec.length, len(item)), np.int64)
        is_open = item >= len(self._starts)
        done = ~is_open
        first = self._address.live[item[done]] - self._slots_popped + start[done]
        slots[:, done] = self._slots.live[first + steps]
        if is_open.any():
            slots[:, is_open] = self.open_slots[open_envs[item[is_open] - len(self._starts)], start[is_open] + steps]
        return slots

    def _open_drawable(self) -> Ints:
        if self.spec.finished_episodes_only:
            return np.empty(0, np.int64)
        return np.flatnonzero(self._starts_in(self.open_transitions) > 0)

    def _open_entries(self) -> Ints:
        """Entries (N,) of the episodes in progress that streams may be drawn from."""
        return (
            self.open_transitions + 1 if not self.spec.finished_episodes_only else np.zeros_like(self.open_transitions)
        )

    def _starts_in(self, transitions: Any) -> Any:
        """Slices of L observations in an episode of so many transitions (T + 1 observations); not above 0: none."""
        return transitions + 2 - self.spec.length


def _before(counts: Ints) -> Ints:
    return np.cumsum(counts) - counts
