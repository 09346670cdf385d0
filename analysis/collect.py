"""From run directories to the `evals` and `runs` tables.

Nothing is dropped without a word: what cannot be used is in `Tables.problems`. `analysis.reading` has the rules for one
directory; a run id found in several: `evals` takes the first by path that has evaluations, `runs` lists them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.collect_cache import Cache
from analysis.reading import MEASURED, SHARED, RunRead
from analysis.tables import Configuration, Problem, Tables, frame
from bench import tasks
from bench.errors import UserError
from bench.rundir import find_runs
from bench.schema import EVALS, RUNS


def collect(folder: Path, progress: Callable[[str], None] | None = None, cache: Cache | None = None) -> Tables:
    """Read every run directory below `folder`.

    Args:
        folder: results of one or several sweeps. Paths in the tables begin with it, as it was given.
        progress: called with a line now and then.
        cache: what an earlier collection read; directories in it that have not changed are not read again.

    Raises:
        UserError: no such folder, or no run directory in it.
    """
    found, unreadable = find_runs(folder)
    if not found:
        said = f" that can be read ({unreadable[0]})" if unreadable else ""
        raise UserError(f"no run directory below {folder}{said}: give one that holds runs, such as results/quickstart")
    cache = cache or Cache()
    collector = _Collector()
    collector.problems += [Problem(one.path.as_posix(), one.reason, "not read") for one in unreadable]
    for number, run in enumerate(found, 1):
        collector.add(cache.read(run))
        if progress is not None and number % 1000 == 0:
            progress(f"read {number} of {len(found)} run directories")
    return collector.tables()


class _Collector:
    def __init__(self) -> None:
        self.reads: list[RunRead] = []
        self.problems: list[Problem] = []
        self.first_path: dict[str, str] = {}
        self.with_evals: dict[str, RunRead] = {}

    def add(self, read: RunRead) -> None:
        agent = read.shared.get("agent", "")
        self.problems += [Problem(read.path, message, "not read", agent) for message in read.unread]
        self.problems += [Problem(read.path, message, agent=agent) for message in read.problems]
        if read.row is None:
            return
        self.reads.append(read)
        run_id = read.row["run_id"]
        first = self.first_path.setdefault(run_id, read.path)
        if first != read.path:
            self.problems.append(Problem(read.path, f"run {run_id} is also in {first}"))
        if not len(read.evals["env_steps"]):
            return
        used = self.with_evals.setdefault(run_id, read)
        if used is not read:
            self.problems.append(Problem(read.path, f"evaluations not used: those in {used.path} come first by path"))

    def tables(self) -> Tables:
        evals = self.evals()
        rows = [read.row for read in self.reads if read.row is not None]
        runs = frame(rows, RUNS).sort_values("path", kind="stable", ignore_index=True)
        failures = {read.path: read.failure for read in self.reads if read.failure is not None}
        return Tables(evals, runs, tuple(self.problems), self._configurations(), failures)

    def _configurations(self) -> tuple[Configuration, ...]:
        """Each with the number of its runs and the tasks they are on."""
        of_runs: dict[str, list[str]] = {}
        runs: dict[str, int] = {}
        for read in self.reads:
            of_runs.setdefault(read.configuration, []).extend(task for task, *_ in read.tasks)
            runs[read.configuration] = runs.get(read.configuration, 0) + 1
        return tuple(
            Configuration(**json.loads(key), runs=runs[key], tasks=tuple(sorted(set(of_runs[key]))))
            for key in sorted(of_runs)
        )

    def evals(self) -> pd.DataFrame:
        """All evaluations, by run id and env steps, or updates and then tasks."""
        used = [self.with_evals[run_id] for run_id in sorted(self.with_evals)]
        if not used:
            return frame([], EVALS)
        counts = [len(read.evals["env_steps"]) for read in used]
        shared = {name: [read.shared[name] for read in used] for name in SHARED}
        shared["source"] = [read.path for read in used]
        columns = {name: np.repeat(np.array(values, dtype=object), counts) for name, values in shared.items()}
        columns |= {name: np.concatenate([read.evals[name] for read in used]) for name in MEASURED}
        offline = columns["updates"] >= 0
        columns["updates"] = pd.array(np.where(offline, columns["updates"], 0), dtype="Int64")
        columns["updates"][~offline] = pd.NA
        # Where each run's tasks begin in the list of all of them.
        begin = np.cumsum([0, *(len(read.tasks) for read in used)])[:-1]
        place = np.repeat(begin, counts) + columns.pop("of_task")
        tasks_of = np.array([row for read in used for row in read.tasks], dtype=object)
        columns |= {name: tasks_of[place, at] for at, name in enumerate(("task", "domain", "domain_version"))}
        columns["score"] = np.array([score for read in used for score in self.scores(read)], dtype="float64")
        return pd.DataFrame(columns, columns=list(EVALS)).astype(EVALS)

    def scores(self, read: RunRead) -> list[float]:
        """(evaluations,), 0-100; NaN where the task is unknown here."""
        score: list[Callable[[float, float], float]] = []
        for name, *_ in read.tasks:
            try:
                score.append(tasks.get(name).score)
            except UserError as error:
                score.append(lambda return_, success: float("nan"))
                self.problems.append(
                    Problem(read.path, f"no score, only return and success: {' '.join(str(error).split())}")
                )
        rows = zip(*(read.evals[name].tolist() for name in ("of_task", "return", "success")), strict=True)
        return [score[of_task](*pair) for of_task, *pair in rows]
