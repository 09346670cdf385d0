"""The online training loop of one fleet: act, step, store, update; evaluate and checkpoint at safe points.

Resuming is exact on a CPU: a checkpoint is taken between agent steps and holds the agent, every random generator and
the actions of the episodes in progress; finished episodes lie in the run directory's replay log.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.protocol import Finetunable
from bench import pretrained
from bench.collector import Collector
from bench.evaluation import Abandoned, Evaluator
from bench.fleet import Fleet, TrainOptions
from bench.loop import Loop
from bench.progress import Monitor
from bench.replay import Replay
from bench.replay_log import ReplayLog
from bench.rundir import RunDir
from bench.runspec import Init
from bench.schema import TRAIN_CSV_FIRST
from bench.sinks import Sink
from bench.tasks import get as get_task


class OnlineFleet(Fleet):
    """R runs that learn from their environments; see `Fleet`."""

    def __init__(
        self,
        runs: Sequence[RunDir],
        options: TrainOptions,
        sinks: Sequence[Sink],
        monitor: Monitor,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(runs, options, sinks, monitor, interrupted)
        self.replay = Replay.of_agent(self.agent.replay, self.spec, self.seeds, self.device)
        self.logs = [ReplayLog(run.replay, check=run.guard) for run in runs]
        self.collector = Collector.of_runs(self.specs, options.env_workers, self.spec)
        self.loop = Loop(
            self.agent,
            self.spec,
            self.seeds,
            self.collector,
            self.replay,
            self.device,
            overlap=self._can_overlap(),
            diverged=self._nan,
            alive=self._tick,
        )
        self.evaluator: Evaluator | None = None
        self._logged_at = 0
        self._log_positions: list[int | None] = [None] * len(runs)
        self._saved_at_steps = -1

    def _can_overlap(self) -> bool:
        """Whether environments can step while the learner computes: elsewhere than it, and never ending an episode
        at a moment that is not known beforehand."""
        elsewhere = self.options.env_workers > 0 or self.device.type == "cuda"
        return elsewhere and not any(get_task(spec.task).terminates for spec in self.specs)

    @property
    def at(self) -> int:
        """Agent steps of each run, over its environments."""
        return self.loop.agent_steps

    @property
    def metrics(self) -> Mapping[str, torch.Tensor]:
        """What the last update said."""
        return self.loop.metrics

    # The loop

    def _begin(self) -> None:
        if not self._resume():
            if self.specs[0].init is not None:
                self._start_from(self.specs[0].init)
            self.collector.start()
            self.replay.begin(self.collector.obs)

    def _start_from(self, init: Init) -> None:
        """Parameters from a checkpoint, before the first step; later ones are in the runs' own checkpoints."""
        pretrained.check_unchanged(init)
        assert isinstance(self.agent, Finetunable)
        self.agent.start_from(Path(init.path), init.embedding)

    def _advance(self) -> None:
        self.loop.agent_step()
        for run, episode in self.replay.pop_finished():
            self.logs[run].append([episode])
        if self.at - self._logged_at >= self.spec.episode_agent_steps:
            self._log()

    def _tick(self) -> None:
        self.monitor.env_wait_share = self.loop.env_wait_share
        super()._tick()

    # What is written down

    def _stamp(self, run: int) -> dict[str, Any]:
        return {
            "env_steps": self.at * self.specs[run].action_repeat,
            "agent_steps": self.at,
            "wall_s": round(self.wall_s[run], 3),
        }

    def _log(self) -> None:
        """A row of train.csv for each run: what its agent and its episodes said since the last one."""
        finished, self.collector.finished = self.collector.finished, []
        rate = self.monitor.rate
        for run, (run_dir, values) in enumerate(zip(self.dirs, self._values(), strict=True)):
            own = [(return_, success) for number, return_, success in finished if number == run]
            row = {
                **self._stamp(run),
                "return": float(np.mean([return_ for return_, _ in own])) if own else "",
                "success": float(np.mean([success for _, success in own])) if own else "",
                "agent_steps_per_s": "" if rate is None else round(rate, 3),
                **values,
            }
            # The agent's metrics exist only after its first update: no row before that, so the columns are settled.
            if values:
                run_dir.append_rows(run_dir.train_csv, [*TRAIN_CSV_FIRST, *values], [row])
            self._tell_row(run, row)
            if own:
                self.monitor.train_return(run, row["return"])
        self._logged_at = self.at

    def _evaluate(self) -> bool:
        """Evaluate every run; false if interrupted. It may take long, so there is always a checkpoint from which it can
        be done anew: the agent's noise in evaluation goes on from one to the next."""
        if self._saved_at_steps != self.at:
            self._checkpoint()
        if self.evaluator is None:
            self.evaluator = self._make_evaluator(self.specs, self.interrupted)
        try:
            results = self.evaluator.evaluate(self.agent, self.device, self.at)
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
            self._tell(run, {f"eval/{key}": value for key, value in mean.items()})
            self.monitor.eval_return(run, mean["return"])
            self._film(run, f"{stamp['env_steps']:010d}", self.evaluator.frames[run])
        self.evaluated_at = self.at
        return True

    # Checkpoints

    def _state(self, run: int) -> dict[str, Any]:
        return {
            "logged_at": self._logged_at,
            "replay": self.replay.state_dict(run),
            "replay_log": self.logs[run].position(),
            "collector": self.collector.state_dict(run),
            "finished": [(ret, success) for number, ret, success in self.collector.finished if number == run],
            "random_actions": self.loop.rngs[run].bit_generator.state,
        }

    def _checkpoint(self) -> None:
        super()._checkpoint()
        for run, log in enumerate(self.logs):
            if run not in self.failures:
                # The two checkpoints that are kept may need episodes from before the older one, and nothing earlier.
                older = self._log_positions[run]
                if older is not None and self._saved_at_steps != self.at:
                    log.discard_before(older, self.agent.replay.capacity)
                self._log_positions[run] = log.position()
        self._saved_at_steps = self.at

    def _resume(self) -> bool:
        """Go on from the newest checkpoint that all runs share; false where there is none."""
        found = self._load()
        if found is None:
            for log in self.logs:
                log.truncate(0)
            return False
        steps, states = found
        for run, (log, state) in enumerate(zip(self.logs, states, strict=True)):
            log.truncate(state["replay_log"])
            self.loop.rngs[run].bit_generator.state = state["random_actions"]
            episodes = log.read(state["replay_log"], self.agent.replay.capacity)
            self.replay.load(run, state["replay"], episodes)
            self.collector.finished += [(run, ret, success) for ret, success in state["finished"]]
        if not self.collector.restore([state["collector"] for state in states], self.replay):
            self.monitor.note("a simulator did not repeat its episode exactly: the run goes on from what it shows now")
        self.loop.agent_steps = self._saved_at_steps = steps
        self._logged_at = states[0]["logged_at"]
        self.monitor.resumed(steps)
        return True

    def _finish(self, **facts: Any) -> None:
        super()._finish(**facts, replay_kept=self.options.keep_replay)
        if not self.options.keep_replay:
            for run, run_dir in enumerate(self.dirs):
                if run not in self.failures:
                    shutil.rmtree(run_dir.replay, ignore_errors=True)

    def close(self) -> None:
        """End the environments' processes."""
        self.collector.close()
        if self.evaluator is not None:
            self.evaluator.close()
