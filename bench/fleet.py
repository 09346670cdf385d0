"""Runs that learn in lockstep in one process: what learning online (`bench.training`) and offline
(`bench.offline_training`) have in common. Evaluate and checkpoint at safe points; one failing run leaves the others.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.protocol import Agent
from agents.registry import get as get_agent
from bench import agent_spec, checkpoint, contract, cuda_graphs
from bench.cpu import choose_matmul
from bench.errors import UserError
from bench.evaluation import Evaluator
from bench.failures import NaNError, RunsFailed
from bench.progress import Monitor
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.sinks import Sink
from bench.video import VIDEO_FPS, write_mp4


@dataclass(frozen=True)
class TrainOptions:
    """How a fleet is executed; none of it changes a result."""

    device: str = "cpu"
    env_workers: int = 1
    """Processes that step the environments; 0 steps them in the learner's process."""
    threads: int = 2
    """Threads of the learner on a CPU."""
    checkpoint_every_s: float = 300.0
    video: bool = False
    keep_replay: bool = False
    """Keep the replay log of a finished run, so that it can be extended to a larger budget."""
    sinks: tuple[str, ...] = ()
    pack: int = 1
    """Workers that share this one's device, itself included: noted with the speed that it had."""
    cuda_graphs: bool = False
    """Record acting and updating as CUDA graphs, if the agent allows it."""


class Fleet(ABC):
    """R runs trained in lockstep in this process.

    Args:
        runs: run directories with equal specifications but for task and seed.
        options: how to execute them.
        sinks: trackers to tell, beside the local files.
        monitor: heartbeat and progress line.
        interrupted: asked at every safe point; true makes the fleet checkpoint and stop.
    """

    def __init__(
        self,
        runs: Sequence[RunDir],
        options: TrainOptions,
        sinks: Sequence[Sink],
        monitor: Monitor,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.dirs = list(runs)
        self.options, self.sinks, self.monitor, self.interrupted = options, sinks, monitor, interrupted
        self.specs = [run.spec for run in runs]
        self.seeds = [spec.seed for spec in self.specs]
        self.device = torch.device(options.device)
        first = self.specs[0]
        self.spec = agent_spec.of_fleet(self.specs)
        entry = get_agent(first.agent)
        agent_class = entry.load()
        contract.check_class(agent_class)
        hyperparameters = entry.hyperparameters_model()(**first.hyperparameters)
        self.agent: Agent = agent_class(self.spec, hyperparameters, self.seeds, self.device)
        contract.check_instance(self.agent)
        choose_matmul(self.agent)
        if options.cuda_graphs and entry.capturable:
            cuda_graphs.attach(self.agent)
        self.failures: dict[int, BaseException] = {}
        self.evaluated_at = -1
        """Where on the runs' clock the last evaluation was; -1 before the first."""
        self.wall_s = [0.0] * len(runs)
        self._clock = self._saved_at = time.monotonic()

    # What each kind of learning is

    @property
    @abstractmethod
    def at(self) -> int:
        """Where the fleet is on the runs' clock: agent steps, or updates."""

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, torch.Tensor]:
        """What the last update said, (R,) each; empty before the first."""

    @abstractmethod
    def _begin(self) -> None:
        """Go on from the newest checkpoint, or start anew."""

    @abstractmethod
    def _advance(self) -> None:
        """One step of the clock."""

    @abstractmethod
    def _evaluate(self) -> bool:
        """An evaluation, or a part of it; false if it was interrupted."""

    @abstractmethod
    def _stamp(self, run: int) -> dict[str, Any]:
        """The first columns of a row that is written now."""

    @abstractmethod
    def _state(self, run: int) -> dict[str, Any]:
        """What the checkpoint of a run holds besides what every one does."""

    @abstractmethod
    def close(self) -> None:
        """End threads and processes."""

    # The loop

    def train(self) -> bool:
        """Train to the budget. Returns false if interrupted (a checkpoint was taken).

        Raises:
            RunsFailed: some runs failed; the others can go on from their newest checkpoint.
        """
        self._begin()
        while True:
            self._tick()
            if self.failures:
                self._checkpoint()
                raise RunsFailed(self.failures)
            if self.interrupted():
                self._checkpoint()
                return False
            if time.monotonic() - self._saved_at > self.options.checkpoint_every_s:
                self._checkpoint()
            if self._evaluation_due():
                if not self._evaluate():
                    return False
            elif self.at >= self.specs[0].clock_budget:
                self._values()  # of a short run nothing has looked at the losses yet
                if self.failures:
                    continue
                self._checkpoint()
                self._finish()
                return True
            else:
                self._advance()

    def _tick(self) -> None:
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        self.wall_s = [wall_s + elapsed for wall_s in self.wall_s]
        self.monitor.tick(self.at, self.wall_s)

    def _nan(self, run: int, what: str) -> None:
        metrics = {name: float(values[run]) for name, values in self.metrics.items()}
        clock = self.specs[0].clock.removesuffix("s").replace("_", " ")
        self.failures[run] = NaNError(f"{what} at {clock} {self.at}; last metrics {metrics}")

    # What is written down

    def _values(self) -> list[dict[str, float]]:
        """The last metrics of each run; one that is not a number fails its run."""
        metrics = {name: values.cpu().numpy() for name, values in self.metrics.items()}
        found = [{name: float(column[run]) for name, column in metrics.items()} for run in range(len(self.dirs))]
        for run, values in enumerate(found):
            if not all(map(math.isfinite, values.values())):
                self._nan(run, "a loss is not a number")
        return found

    def _tell(self, run: int, numbers: Mapping[str, float]) -> None:
        """Tell the trackers, at where the run is on its axis."""
        for sink in self.sinks:
            sink.log(run, self.at * self.specs[run].action_repeat, numbers)

    def _tell_row(self, run: int, row: Mapping[str, Any]) -> None:
        """Tell them the numbers of a row of train.csv."""
        self._tell(run, {f"train/{key}": value for key, value in row.items() if isinstance(value, float)})

    def _film(self, run: int, name: str, frames: Sequence[np.ndarray]) -> None:
        """An mp4 of an evaluation episode, where there are pictures of it."""
        if frames:
            path = self.dirs[run].path / "videos" / f"{name}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_mp4(path, np.stack(frames), VIDEO_FPS)

    # Evaluation

    def _evaluation_due(self) -> bool:
        if self.evaluated_at < 0:
            return True
        first = self.specs[0]
        reached = self.at // first.clock_between_evals > self.evaluated_at // first.clock_between_evals
        at_end = self.at >= first.clock_budget
        return reached or (at_end and self.evaluated_at < self.at)

    def _make_evaluator(self, specs: Sequence[RunSpec], interrupted: Callable[[], bool] = lambda: False) -> Evaluator:
        workers = self.options.env_workers
        if self.options.video:
            try:
                # OpenGL is settled when a process loads MuJoCo, so frames come from a process of their own.
                return Evaluator(specs, max(1, workers), True, self._tick, interrupted)
            except UserError as error:
                self.monitor.note(f"no videos, training goes on: {error}")
        return Evaluator(specs, workers, alive=self._tick, interrupted=interrupted)

    # Checkpoints

    def _checkpoint(self) -> None:
        """Checkpoint every run that has not failed."""
        for run, run_dir in enumerate(self.dirs):
            if run not in self.failures:
                state = {
                    "evaluated_at": self.evaluated_at,
                    "wall_s": self.wall_s[run],
                    "agent": self.agent.state_dict(run),
                    **self._state(run),
                }
                checkpoint.save(run_dir, self.at, state)
        self._saved_at = time.monotonic()

    def _load(self) -> tuple[int, list[dict[str, Any]]] | None:
        """Take over from the newest checkpoint that all runs share what every kind of fleet has in it, and take back
        what was written after it.

        Returns:
            Where it is on the clock, and the state of each run; None where there is no checkpoint.
        """
        found = checkpoint.load_common(self.dirs)
        at, states = found if found else (-1, [])
        for run, run_dir in enumerate(self.dirs):
            checkpoint.discard_after(run_dir, at)
            run_dir.rewind(states[run]["evaluated_at"] if found else -1, at)
        if found:
            self.agent.load_state_dict([state["agent"] for state in states])
            self.evaluated_at = states[0]["evaluated_at"]
            self.wall_s = [state["wall_s"] for state in states]
        return found

    def _finish(self, **facts: Any) -> None:
        """Every run that has not failed is done."""
        for run, run_dir in enumerate(self.dirs):
            if run not in self.failures:
                self.monitor.final_beat(run, self.at, self.wall_s[run])
                run_dir.mark_done(**self._stamp(run), **self.monitor.resources(), **facts)
