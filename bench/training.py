"""The online training loop of one fleet: act, step, store, update; evaluate and checkpoint at safe points.

Resuming is exact on a CPU: a checkpoint is taken between agent steps and holds the agent, every random generator and
the actions of the episodes in progress; finished episodes lie in the run directory's replay log.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.protocol import Agent, Finetunable
from agents.registry import get as get_agent
from bench import agent_spec, checkpoint, contract, pretrained
from bench.collector import Collector
from bench.cpu import choose_matmul
from bench.errors import UserError
from bench.evaluation import Abandoned, Evaluator
from bench.failures import NaNError, RunsFailed
from bench.loop import Loop
from bench.progress import Monitor
from bench.replay import Replay
from bench.replay_log import ReplayLog
from bench.rundir import RunDir
from bench.runspec import Init
from bench.schema import TRAIN_CSV_FIRST
from bench.sinks import Sink
from bench.tasks import get as get_task
from bench.video import write_mp4

VIDEO_FPS = 30


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


@dataclass
class Counters:
    """Where a fleet is: the same for all its runs, since they train in lockstep."""

    evaluated_at: int = -1
    logged_at: int = 0
    wall_s: list[float] = field(default_factory=list)


class Fleet:
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
        self.device = torch.device(options.device)
        seeds = [spec.seed for spec in self.specs]
        entry, first = get_agent(self.specs[0].agent), self.specs[0]
        spec = agent_spec.of_run(first)
        self.spec = spec
        agent_class = entry.load()
        contract.check_class(agent_class)
        self.agent: Agent = agent_class(
            spec, entry.hyperparameters_model()(**first.hyperparameters), seeds, self.device
        )
        contract.check_instance(self.agent)
        choose_matmul(self.agent)
        self.replay = Replay.of_agent(self.agent.replay, spec, seeds, self.device)
        self.logs = [ReplayLog(run.replay, check=run.guard) for run in runs]
        self.collector = Collector.of_runs(self.specs, options.env_workers, spec.episode_agent_steps)
        self.loop = Loop(
            self.agent,
            spec,
            seeds,
            self.collector,
            self.replay,
            self.device,
            overlap=self._can_overlap(),
            diverged=self._nan,
            alive=self._tick,
        )
        self.evaluator: Evaluator | None = None
        self.counters = Counters(wall_s=[0.0] * len(runs))
        self._log_positions: list[int | None] = [None] * len(runs)
        self.failures: dict[int, BaseException] = {}
        self._clock = self._saved_at = time.monotonic()
        self._saved_at_steps = -1

    def _can_overlap(self) -> bool:
        """Whether environments can step while the learner computes: elsewhere than it, and never ending an episode
        at a moment that is not known beforehand."""
        elsewhere = self.options.env_workers > 0 or self.device.type == "cuda"
        return elsewhere and not any(get_task(spec.task).terminates for spec in self.specs)

    # The loop

    def train(self) -> bool:
        """Train to the budget. Returns false if interrupted (a checkpoint was taken).

        Raises:
            RunsFailed: some runs failed; the others can go on from their newest checkpoint.
        """
        if not self._resume():
            if self.specs[0].init is not None:
                self._start_from(self.specs[0].init)
            self.collector.start()
            self.replay.begin(self.collector.obs)
        while True:
            self._tick()
            if self.failures:
                self._checkpoint()
                raise RunsFailed(self.failures)
            if self.interrupted():
                self._checkpoint()
                return False
            if self._evaluation_due():
                if not self._evaluate():
                    return False
                continue
            if self.loop.agent_steps >= self.spec.budget_agent_steps:
                self._checkpoint()
                self._finish()
                return True
            if time.monotonic() - self._saved_at > self.options.checkpoint_every_s:
                self._checkpoint()
            self._agent_step()

    def _start_from(self, init: Init) -> None:
        """Parameters from a checkpoint, before the first step; later ones are in the runs' own checkpoints."""
        pretrained.check_unchanged(init)
        assert isinstance(self.agent, Finetunable)
        self.agent.start_from(Path(init.path), init.embedding)

    def _agent_step(self) -> None:
        self.loop.agent_step()
        for run, episode in self.replay.pop_finished():
            self.logs[run].append([episode])
        if self.loop.agent_steps - self.counters.logged_at >= self.spec.episode_agent_steps:
            self._log()

    def _nan(self, run: int, what: str) -> None:
        metrics = {name: float(values[run]) for name, values in self.loop.metrics.items()}
        self.failures[run] = NaNError(f"{what} at agent step {self.loop.agent_steps}; last metrics {metrics}")

    def _tick(self) -> None:
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        self.counters.wall_s = [wall_s + elapsed for wall_s in self.counters.wall_s]
        self.monitor.env_wait_share = self.loop.env_wait_share
        self.monitor.tick(self.loop.agent_steps, self.counters.wall_s)

    # What is written down

    def _stamp(self, run: int) -> dict[str, Any]:
        return {
            "env_steps": self.loop.agent_steps * self.specs[run].action_repeat,
            "agent_steps": self.loop.agent_steps,
            "wall_s": round(self.counters.wall_s[run], 3),
        }

    def _log(self) -> None:
        """A row of train.csv for each run: what its agent and its episodes said since the last one."""
        counters = self.counters
        finished, self.collector.finished = self.collector.finished, []
        metrics = {name: values.cpu().numpy() for name, values in self.loop.metrics.items()}
        rate = self.monitor.rate
        for run, run_dir in enumerate(self.dirs):
            own = [(return_, success) for number, return_, success in finished if number == run]
            values = {name: float(column[run]) for name, column in metrics.items()}
            if not all(map(math.isfinite, values.values())):
                self._nan(run, "a loss is not a number")
            row = {
                **self._stamp(run),
                "return": float(np.mean([return_ for return_, _ in own])) if own else "",
                "success": float(np.mean([success for _, success in own])) if own else "",
                "agent_steps_per_s": "" if rate is None else round(rate, 3),
            }
            # The agent's metrics exist only after its first update: no row before that, so the columns are settled.
            if values:
                run_dir.append_rows(run_dir.train_csv, [*TRAIN_CSV_FIRST, *values], [row | values])
            numbers = {f"train/{key}": value for key, value in (row | values).items() if isinstance(value, float)}
            for sink in self.sinks:
                sink.log(run, row["env_steps"], numbers)
            if own:
                self.monitor.train_return(run, row["return"])
        counters.logged_at = self.loop.agent_steps

    def _evaluation_due(self) -> bool:
        counters, every = self.counters, self.specs[0].eval_every_env_steps // self.specs[0].action_repeat
        if counters.evaluated_at < 0:
            return True
        reached = self.loop.agent_steps // every > counters.evaluated_at // every
        at_end = self.loop.agent_steps >= self.spec.budget_agent_steps
        return reached or (at_end and counters.evaluated_at < self.loop.agent_steps)

    def _make_evaluator(self) -> Evaluator:
        workers = self.options.env_workers
        if self.options.video:
            try:
                # OpenGL is settled when a process loads MuJoCo, so frames come from a process of their own.
                return Evaluator(self.specs, max(1, workers), True, self._tick, self.interrupted)
            except UserError as error:
                self.monitor.note(f"no videos, training goes on: {error}")
        return Evaluator(self.specs, workers, alive=self._tick, interrupted=self.interrupted)

    def _evaluate(self) -> bool:
        """Evaluate every run; false if interrupted. It may take long, so there is always a checkpoint from which it can
        be done anew: the agent's noise in evaluation goes on from one to the next."""
        if self._saved_at_steps != self.loop.agent_steps:
            self._checkpoint()
        if self.evaluator is None:
            self.evaluator = self._make_evaluator()
        try:
            results = self.evaluator.evaluate(self.agent, self.device, self.loop.agent_steps)
        except Abandoned:
            return False
        self._tick()
        for run, (run_dir, rows) in enumerate(zip(self.dirs, results, strict=True)):
            if any(math.isnan(row["return"]) for row in rows):
                self._nan(run, "an evaluation action is not a number")
                continue
            stamp = self._stamp(run)
            run_dir.append_eval([stamp | row for row in rows])
            mean = {key: float(np.mean([row[key] for row in rows])) for key in ("return", "success")}
            for sink in self.sinks:
                sink.log(run, stamp["env_steps"], {f"eval/{key}": value for key, value in mean.items()})
            self.monitor.eval_return(run, mean["return"])
            if self.evaluator.video:
                path = Path(run_dir.path / "videos" / f"{stamp['env_steps']:010d}.mp4")
                path.parent.mkdir(exist_ok=True)
                write_mp4(path, np.stack(self.evaluator.frames[run]), VIDEO_FPS)
        self.counters.evaluated_at = self.loop.agent_steps
        return True

    # Checkpoints

    def _checkpoint(self) -> None:
        """Checkpoint every run that has not failed."""
        counters = self.counters
        for run, run_dir in enumerate(self.dirs):
            if run in self.failures:
                continue
            log = self.logs[run]
            state = {
                "evaluated_at": counters.evaluated_at,
                "logged_at": counters.logged_at,
                "wall_s": counters.wall_s[run],
                "agent": self.agent.state_dict(run),
                "replay": self.replay.state_dict(run),
                "replay_log": log.position(),
                "collector": self.collector.state_dict(run),
                "finished": [(ret, success) for number, ret, success in self.collector.finished if number == run],
                "random_actions": self.loop.rngs[run].bit_generator.state,
            }
            checkpoint.save(run_dir, self.loop.agent_steps, state)
            # The two checkpoints that are kept may need episodes from before the older one, and nothing earlier.
            older = self._log_positions[run]
            if older is not None and self._saved_at_steps != self.loop.agent_steps:
                log.discard_before(older, self.agent.replay.capacity)
            self._log_positions[run] = log.position()
        self._saved_at, self._saved_at_steps = time.monotonic(), self.loop.agent_steps

    def _resume(self) -> bool:
        """Go on from the newest checkpoint that all runs share; false where there is none."""
        found = checkpoint.load_common(self.dirs)
        steps, states = found if found else (-1, [])
        for run, run_dir in enumerate(self.dirs):
            checkpoint.discard_after(run_dir, steps)
            run_dir.rewind(states[run]["evaluated_at"] if found else -1, steps)
            self.logs[run].truncate(states[run]["replay_log"] if found else 0)
        if not found:
            return False
        self.agent.load_state_dict([state["agent"] for state in states])
        for run, state in enumerate(states):
            self.loop.rngs[run].bit_generator.state = state["random_actions"]
            episodes = self.logs[run].read(state["replay_log"], self.agent.replay.capacity)
            self.replay.load(run, state["replay"], episodes)
            self.collector.finished += [(run, ret, success) for ret, success in state["finished"]]
        if not self.collector.restore([state["collector"] for state in states], self.replay):
            self.monitor.note("a simulator did not repeat its episode exactly: the run goes on from what it shows now")
        self.loop.agent_steps = steps
        self.counters = Counters(
            evaluated_at=states[0]["evaluated_at"],
            logged_at=states[0]["logged_at"],
            wall_s=[state["wall_s"] for state in states],
        )
        self._saved_at_steps = steps
        self.monitor.resumed(steps)
        return True

    def _finish(self) -> None:
        for run, run_dir in enumerate(self.dirs):
            if run in self.failures:
                continue
            self.monitor.final_beat(run, self.loop.agent_steps, self.counters.wall_s[run])
            run_dir.mark_done(**self._stamp(run), **self.monitor.resources(), replay_kept=self.options.keep_replay)
            if not self.options.keep_replay:
                shutil.rmtree(run_dir.replay, ignore_errors=True)

    def close(self) -> None:
        """End the environments' processes."""
        self.collector.close()
        if self.evaluator is not None:
            self.evaluator.close()
