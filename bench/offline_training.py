"""The offline training loop of one fleet: batch by batch from a data set; evaluate and checkpoint at safe points.

Resuming is exact on a CPU: a checkpoint holds the agent, what the sampler goes on from, and the rows of an evaluation
that has begun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.multitask import SomeTasks
from bench import contract
from bench.datasets.dataset import Dataset
from bench.errors import UserError
from bench.evaluation import Evaluator
from bench.fleet import Fleet, TrainOptions
from bench.offline import evaluation_spec
from bench.progress import Monitor
from bench.rundir import RunDir
from bench.runspec import OfflineSpec
from bench.schema import OFFLINE_TRAIN_CSV_FIRST
from bench.sinks import Sink
from bench.tasks import Task
from bench.tasks import get as get_task

LOG_EVERY_UPDATES = 1000
MOST_ENVIRONMENTS = 50
"""Of each run, in an evaluation at a time: as many tasks of one shape are played together as have no more. Where all
tasks together have no more, their simulators are kept from one evaluation to the next."""
MOST_KEPT_PROCESSES = 8
"""That hold kept simulators."""


class OfflineFleet(Fleet):
    """R runs that learn the same tasks from one data set; see `Fleet`. Its safe points are before an update, or before
    the evaluation of some tasks.

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
        first = runs[0].spec
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
        super().__init__(runs, options, sinks, monitor, interrupted)
        drawn = self.agent.replay
        self.sampler = dataset.sampler(drawn.batch_size, drawn.length, self.seeds, self.device)
        self.updates = 0
        self._metrics: Mapping[str, torch.Tensor] = {}
        # Of the evaluation in progress: how many groups were played, and the rows of each run.
        self._groups_played = 0
        self._rows: list[list[dict[str, Any]]] = [[] for _ in runs]

    @property
    def at(self) -> int:
        """Updates of each run."""
        return self.updates

    @property
    def metrics(self) -> Mapping[str, torch.Tensor]:
        """What the last update said."""
        return self._metrics

    def _begin(self) -> None:
        found = self._load()
        if found is None:
            return
        self.updates, states = found
        self.sampler.load_state_dict([state["sampler"] for state in states])
        self._groups_played = states[0]["groups_played"]
        self._rows = [list(state["rows"]) for state in states]
        self.monitor.resumed(self.updates)

    def _advance(self) -> None:
        settled = bool(self._metrics)
        self._metrics = self.agent.update(self.sampler.sample())
        if not settled:
            contract.check_metrics(self.agent, self._metrics, len(self.dirs))
        self.updates += 1
        if self.updates % min(LOG_EVERY_UPDATES, self.offline.eval_every_updates) == 0:
            self._log()

    # What is written down

    def _stamp(self, run: int) -> dict[str, Any]:
        return {"updates": self.updates, "wall_s": round(self.wall_s[run], 3)}

    def _log(self) -> None:
        """A row of train.csv for each run."""
        found = self._values()
        self._tick()
        rate = self.monitor.rate
        for run, (run_dir, values) in enumerate(zip(self.dirs, found, strict=True)):
            row = {**self._stamp(run), "updates_per_s": "" if rate is None else round(rate, 3), **values}
            run_dir.append_rows(run_dir.train_csv, [*OFFLINE_TRAIN_CSV_FIRST, *values], [row])
            self._tell_row(run, row)

    def _evaluate(self) -> bool:
        """Play the next tasks of the evaluation in progress; with the last ones it is complete, and written down."""
        group = self._groups_played
        numbers = self.groups[group]
        # In processes of their own: one that played other tasks next would keep the memory of these.
        evaluator = self.evaluators.get(group) or self._make_evaluator(
            [evaluation_spec(spec, self.tasks[number]) for spec in self.specs for number in numbers]
        )
        self.evaluators[group] = evaluator
        view: Any = SomeTasks(self.agent, self.spec, numbers)
        results = evaluator.evaluate(view, self.device, self.updates)
        for place, (spec, rows) in enumerate(zip(evaluator.specs, results, strict=True)):
            run = place // len(numbers)
            self._film(run, f"{self.updates:010d}-{spec.task}", evaluator.frames[place])
            if any(math.isnan(row["return"]) for row in rows):
                self._nan(run, f"an evaluation action on {spec.task} is not a number")
            self._rows[run] += [{"task": spec.task, **row} for row in rows]
        if not self.keeps_simulators:
            self.evaluators.pop(group).close()
        self._groups_played += 1
        if self._groups_played == len(self.groups):
            self._write_evaluation()
        return True

    def _write_evaluation(self) -> None:
        self._tick()
        place = {task.name: number for number, task in enumerate(self.tasks)}
        for run, run_dir in enumerate(self.dirs):
            if run not in self.failures:
                rows = sorted(self._rows[run], key=lambda row: (place[row["task"]], row["episode"]))
                run_dir.append_eval([self._stamp(run) | row for row in rows])
                self._tell_scores(run, rows)
        self.evaluated_at, self._groups_played = self.updates, 0
        self._rows = [[] for _ in self.dirs]

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

    def _state(self, run: int) -> dict[str, Any]:
        return {
            "groups_played": self._groups_played,
            "rows": self._rows[run],
            "sampler": self.sampler.state_dict(run),
        }

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
