"""The heartbeat of each run and the line that a person follows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from bench.rundir import RunDir
from bench.runspec import RunSpec

BEAT_EVERY_S = 5.0
LINE_EVERY_S = 20.0
RATE_OVER_S = 60.0


def duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Monitor:
    """Heartbeats and progress of one fleet.

    Args:
        runs: the fleet's run directories.
        device: of the learner, for its peak memory.
        console: where the progress line goes; None keeps quiet.
        pack: workers on that device, this one included.
    """

    def __init__(self, runs: Sequence[RunDir], device: torch.device, console: Console | None, pack: int = 1) -> None:
        self.runs, self.device, self.console, self.pack = list(runs), device, console, pack
        self.specs: list[RunSpec] = [run.spec for run in runs]
        self.returns: list[float | None] = [None] * len(runs)
        self.evaluated = [False] * len(runs)
        self.history: deque[tuple[float, int]] = deque()
        self.beaten_at = self.printed_at = float("-inf")
        self.env_wait_share: float | None = None
        """Share of this process's agent steps in which the learner had nothing to do but wait for environments."""

    @property
    def rate(self) -> float | None:
        """Agent steps per second of one run (offline: updates), over the last minute of beats.

        None where there is nothing to go by: at the start, and in a burst of updates after the seed phase.
        """
        if len(self.history) < 2 or self.history[-1][1] == self.history[-2][1]:
            return None
        (since, before), (until, after) = self.history[0], self.history[-1]
        return (after - before) / (until - since)

    def resumed(self, at: int) -> None:
        """Training goes on from a checkpoint at `at` on the runs' clock: the rate counts from here."""
        self.history.clear()
        self.note(f"resumed at {at * self.specs[0].action_repeat:,} {self._axis}")

    def tick(self, at: int, wall_s: Sequence[float]) -> None:
        """Called at every step, with where the runs' clock stands; beats and prints when it is time to."""
        now = time.monotonic()
        if now - self.beaten_at >= BEAT_EVERY_S:
            self.history.append((now, at))
            while now - self.history[0][0] > RATE_OVER_S:
                self.history.popleft()
            for run in range(len(self.runs)):
                self._beat(run, at, self.rate, wall_s[run])
            self.beaten_at = now
        if self.console is not None and now - self.printed_at >= LINE_EVERY_S:
            self._line(at)
            self.printed_at = now

    def _beat(self, run: int, at: int, rate: float | None, wall_s: float) -> None:
        spec = self.specs[run]
        progress = {spec.axis: at * spec.action_repeat, f"{spec.clock}_per_s": rate and round(rate, 3)}
        self.runs[run].beat(
            **progress,
            wall_s=round(wall_s, 3),
            fleet=len(self.runs),
            pack=self.pack,
            device=self.device.type,
            **{self._measure: self.returns[run]},
            **self.resources(),
        )

    def final_beat(self, run: int, at: int, wall_s: float) -> None:
        """The last word of a run that reached its budget."""
        self._beat(run, at, at / wall_s if wall_s else None, wall_s)

    def resources(self) -> dict[str, Any]:
        """Peak GPU memory of this process in GB (None on a CPU); share of its time that it waited for environments."""
        on_gpu = self.device.type == "cuda"
        return {
            "peak_gpu_gb": round(torch.cuda.max_memory_allocated(self.device) / 1e9, 3) if on_gpu else None,
            "env_wait_share": self.env_wait_share and round(self.env_wait_share, 4),
        }

    def train_return(self, run: int, value: float) -> None:
        """The return to show until there is an evaluation."""
        if not self.evaluated[run]:
            self.returns[run] = value

    def eval_return(self, run: int, value: float) -> None:
        """The return to show from now on; offline, the normalised score."""
        self.evaluated[run], self.returns[run] = True, value

    def note(self, text: str) -> None:
        """A line of its own."""
        if self.console is not None:
            self.console.print(f"{self._names()}: {text}", highlight=False)

    def _names(self) -> str:
        tasks = list(dict.fromkeys(spec.task for spec in self.specs))
        task = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"
        seeds = ",".join(str(seed) for seed in dict.fromkeys(spec.seed for spec in self.specs))
        return f"{self.specs[0].agent} {task} seed {seeds}"

    @property
    def _axis(self) -> str:
        return self.specs[0].axis.replace("_", " ")

    @property
    def _measure(self) -> str:
        return "return" if self.specs[0].offline is None else "score"

    def _line(self, at: int) -> None:
        spec, rate = self.specs[0], self.rate
        shown = " ".join("–" if value is None else f"{value:.0f}" for value in self.returns)
        speed = f"{rate * len(self.runs):.1f}" if rate else "–"
        left = duration((spec.clock_budget - at) / rate) if rate else "–"
        reached, clock = at * spec.action_repeat, spec.clock.replace("_", " ")
        self.note(
            f"{reached:,}/{spec.budget:,} {self._axis} · {self._measure} {shown} · {speed} {clock}/s · ETA {left}"
        )
