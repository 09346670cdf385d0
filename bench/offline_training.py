"""The offline training loop of one fleet: batch by batch from a data set; evaluate and checkpoint at safe points.

Resuming is exact on a CPU: a checkpoint holds the agent, what the sampler goes on from, and the rows of an evaluation
that has begun.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.multitask import SomeTasks
from agents.registry import get as get_agent
from bench import agent_spec, checkpoint, contract
from bench.cpu import choose_matmul
from bench.datasets.dataset import Dataset
from bench.errors import UserError
from bench.evaluation import Evaluator
from bench.failures import NaNError, RunsFailed
from bench.offline import evaluation_spec
from bench.progress import Monitor
from bench.rundir import RunDir
from bench.runspec import OfflineSpec
from bench.schema import OFFLINE_TRAIN_CSV_FIRST
from bench.sinks import Sink
from bench.tasks import Task
from bench.tasks import get as get_task
from bench.training import VIDEO_FPS, TrainOptions
from bench.video import write_mp4

LOG_EVERY_UPDATES = 1000
MOST_ENVIRONMENTS = 50
"""Of each run, in an evaluation at a time: as many tasks of one shape are played together as have no more. Where all
tasks together have no more, their simulators are kept from one evaluation to the next."""
MOST_KEPT_PROCESSES = 8
"""That hold kept simulators."""


@dataclass
class Counters:
    """Where a fleet is: the same for all its runs, since they train in lockstep."""

    updates: int = 0
    evaluated_at: int = -1
    groups_played: int = 0
    """Of the evaluation in progress."""
    rows: list[list[dict[str, Any]]] = field(default_factory=list)
    """Of the evaluation in progress, for each run."""
    wall_s: list[float] = field(default_factory=list)


class OfflineFleet:
    """R runs trained in lockstep in this process on the same tasks of one data set.

    Args:
        runs: run directories with equal specifications but for the seed.
        options: how to execute them.
        sinks: trackers to tell, beside the local files.
        monitor: heartbeat and progress line.
        interrupted: asked at every safe point (before an update, or the evaluation of some tasks); true makes the fleet
            checkpoint and stop.

    Raises:
        UserError: the data set is not there, or not the one that the runs began with.
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
        first, seeds = self.specs[0], [spec.seed for spec in self.specs]
        assert first.offline is not None
        self.offline = first.offline
        self.tasks = [get_task(name) for name in self.offline.tasks]
        self.groups = evaluation_groups(self.tasks, first.eval_episodes)
        self.keeps_simulators = (
            len(self.tasks) * first.eval_episodes <= MOST_ENVIRONMENTS
            and len(self.groups) * options.env_workers <= MOST_KEPT_PROCESSES
        )
        self.evaluators: dict[int, Evaluator] = {}
        """By the number of their group; those that live."""
        dataset = open_dataset(self.offline)
        self.spec = agent_spec.of_run(first)
        entry = get_agent(first.agent)
        agent_class = entry.load()
        contract.check_class(agent_class)
        hyperparameters = entry.hyperparameters_model()(**first.hyperparameters)
        self.agent = agent_class(self.spec, hyperparameters, seeds, self.device)
        contract.check_instance(self.agent)
        choose_matmul(self.agent)
        drawn = self.agent.replay
        self.sampler = dataset.sampler(drawn.batch_size, drawn.length, seeds, self.device)
        self.counters = Counters(wall_s=[0.0] * len(runs), rows=[[] for _ in runs])
        self.metrics: Mapping[str, torch.Tensor] = {}
        self.failures: dict[int, BaseException] = {}
        self._clock = self._saved_at = time.monotonic()

    # The loop

    def train(self) -> bool:
        """Train to the budget. Returns false if interrupted (a checkpoint was taken).

        Raises:
            RunsFailed: some runs failed; the others can go on from their newest checkpoint.
        """
        self._resume()
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
                self._evaluate_group()
            elif self.counters.updates >= self.offline.updates:
                self._checkpoint()
                self._finish()
                return True
            else:
                self._update()

    def _update(self) -> None:
        settled = bool(self.metrics)
        self.metrics = self.agent.update(self.sampler.sample())
        if not settled:
            contract.check_metrics(self.agent, self.metrics, len(self.dirs))
        counters = self.counters
        counters.updates += 1
        if counters.updates % min(LOG_EVERY_UPDATES, self.offline.eval_every_updates) == 0:
            self._log()

    def _nan(self, run: int, what: str) -> None:
        metrics = {name: float(values[run]) for name, values in self.metrics.items()}
        self.failures[run] = NaNError(f"{what} at update {self.counters.updates}; last metrics {metrics}")

    def _tick(self) -> None:
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        self.counters.wall_s = [wall_s + elapsed for wall_s in self.counters.wall_s]
        self.monitor.tick(self.counters.updates, self.counters.wall_s)

    # What is written down

    def _stamp(self, run: int) -> dict[str, Any]:
        return {"updates": self.counters.updates, "wall_s": round(self.counters.wall_s[run], 3)}

    def _log(self) -> None:
        """A row of train.csv for each run."""
        metrics = {name: values.cpu().numpy() for name, values in self.metrics.items()}
        self._tick()
        rate = self.monitor.rate
        for run, run_dir in enumerate(self.dirs):
            values = {name: float(column[run]) for name, column in metrics.items()}
            if not all(map(math.isfinite, values.values())):
                self._nan(run, "a loss is not a number")
            row = {**self._stamp(run), "updates_per_s": "" if rate is None else round(rate, 3), **values}
            run_dir.append_rows(run_dir.train_csv, [*OFFLINE_TRAIN_CSV_FIRST, *values], [row])
            self._tell(run, {f"train/{key}": value for key, value in row.items() if isinstance(value, float)})

    def _tell(self, run: int, numbers: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.log(run, self.counters.updates, numbers)

    def _evaluation_due(self) -> bool:
        counters, every = self.counters, self.offline.eval_every_updates
        if counters.evaluated_at < 0:
            return True
        reached = counters.updates // every > counters.evaluated_at // every
        at_end = counters.updates >= self.offline.updates
        return reached or (at_end and counters.evaluated_at < counters.updates)

    def _evaluate_group(self) -> None:
        """Play the next tasks of the evaluation in progress; with the last ones it is complete, and written down."""
        group = self.counters.groups_played
        numbers = self.groups[group]
        evaluator = self.evaluators.get(group) or self._evaluator([self.tasks[number] for number in numbers])
        self.evaluators[group] = evaluator
        view: Any = SomeTasks(self.agent, self.spec, numbers)
        results = evaluator.evaluate(view, self.device, self.counters.updates)
        for place, (spec, rows) in enumerate(zip(evaluator.specs, results, strict=True)):
            run = place // len(numbers)
            self._film(run, spec.task, evaluator.frames[place])
            if any(math.isnan(row["return"]) for row in rows):
                self._nan(run, f"an evaluation action on {spec.task} is not a number")
            self.counters.rows[run] += [{"task": spec.task, **row} for row in rows]
        if not self.keeps_simulators:
            self.evaluators.pop(group).close()
        self.counters.groups_played += 1
        if self.counters.groups_played == len(self.groups):
            self._write_evaluation()

    def _evaluator(self, tasks: Sequence[Task]) -> Evaluator:
        """The simulators of some tasks, in processes of their own: one that played other tasks next would keep the
        memory of these."""
        specs = [evaluation_spec(spec, task) for spec in self.specs for task in tasks]
        workers = self.options.env_workers
        if self.options.video:
            try:
                return Evaluator(specs, max(1, workers), True, self._tick)
            except UserError as error:
                self.monitor.note(f"no videos, training goes on: {error}")
        return Evaluator(specs, workers, alive=self._tick)

    def _film(self, run: int, task: str, frames: Sequence[np.ndarray]) -> None:
        if frames:
            path = self.dirs[run].path / "videos" / f"{self.counters.updates:010d}-{task}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_mp4(Path(path), np.stack(frames), VIDEO_FPS)

    def _write_evaluation(self) -> None:
        counters = self.counters
        self._tick()
        for run, run_dir in enumerate(self.dirs):
            if run not in self.failures:
                place = {task.name: number for number, task in enumerate(self.tasks)}
                rows = sorted(counters.rows[run], key=lambda row: (place[row["task"]], row["episode"]))
                run_dir.append_eval([self._stamp(run) | row for row in rows])
                self._tell_scores(run, rows)
        counters.evaluated_at, counters.groups_played = counters.updates, 0
        counters.rows = [[] for _ in self.dirs]

    def _tell_scores(self, run: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The normalised score, the mean over tasks, and each task's."""
        scores = {}
        for task in self.tasks:
            mine = [row for row in rows if row["task"] == task.name]
            means = (float(np.mean([row[key] for row in mine])) for key in ("return", "success"))
            scores[task.name] = task.score(*means)
        score = float(np.mean(list(scores.values())))
        self._tell(run, {"eval/score": score, **{f"eval/score/{task}": value for task, value in scores.items()}})
        self.monitor.eval_return(run, score)

    # Checkpoints

    def _checkpoint(self) -> None:
        """Checkpoint every run that has not failed."""
        counters = self.counters
        for run, run_dir in enumerate(self.dirs):
            if run not in self.failures:
                state = {
                    "evaluated_at": counters.evaluated_at,
                    "groups_played": counters.groups_played,
                    "rows": counters.rows[run],
                    "wall_s": counters.wall_s[run],
                    "agent": self.agent.state_dict(run),
                    "sampler": self.sampler.state_dict(run),
                }
                checkpoint.save(run_dir, counters.updates, state)
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        """Go on from the newest checkpoint that all runs share, if there is one."""
        found = checkpoint.load_common(self.dirs)
        updates, states = found if found else (-1, [])
        for run, run_dir in enumerate(self.dirs):
            checkpoint.discard_after(run_dir, updates)
            run_dir.rewind(states[run]["evaluated_at"] if found else -1, updates)
        if not found:
            return
        self.agent.load_state_dict([state["agent"] for state in states])
        self.sampler.load_state_dict([state["sampler"] for state in states])
        self.counters = Counters(
            updates=updates,
            evaluated_at=states[0]["evaluated_at"],
            groups_played=states[0]["groups_played"],
            rows=[list(state["rows"]) for state in states],
            wall_s=[state["wall_s"] for state in states],
        )
        self.monitor.resumed(updates)

    def _finish(self) -> None:
        for run, run_dir in enumerate(self.dirs):
            if run not in self.failures:
                self.monitor.final_beat(run, self.counters.updates, self.counters.wall_s[run])
                run_dir.mark_done(**self._stamp(run), **self.monitor.resources())

    def close(self) -> None:
        """End the sampler's thread and the environments' processes."""
        self.sampler.close()
        for evaluator in self.evaluators.values():
            evaluator.close()


def open_dataset(offline: OfflineSpec) -> Dataset:
    """The data set of a run.

    Raises:
        UserError: it is not there, or not the one that the run began with.
    """
    dataset = Dataset.open(Path(offline.data), offline.tasks)
    if dataset.layout.fingerprint != offline.dataset:
        raise UserError(
            f"{offline.data} holds another data set than the run began with: put that one back, or train anew with "
            "this one"
        )
    return dataset


def evaluation_groups(tasks: Sequence[Task], episodes: int) -> list[list[int]]:
    """Tasks, by their numbers, that are evaluated together: of one shape, so that one plan serves all, and not so many
    that their simulators would fill the memory.

    It decides which random numbers an evaluation gets, so it depends on the tasks and episodes alone.
    """
    most = max(1, MOST_ENVIRONMENTS // episodes)
    by_shape: dict[tuple[object, ...], list[int]] = {}
    for number, task in enumerate(tasks):
        shape = (task.domain, task.obs_size, task.action_size, task.episode_agent_steps)
        by_shape.setdefault(shape, []).append(number)
    return [same[start : start + most] for same in by_shape.values() for start in range(0, len(same), most)]
