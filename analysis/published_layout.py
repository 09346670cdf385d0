"""Reading learning curves as others publish them: the TD-MPC2 authors' CSV folders and DreamerV3's gzipped JSON.

    <agent>/<task>.csv                  step,reward,seed or step,success,seed; env steps; success as 0-1 or 0-100
    dmc_<vision|proprio>-<agent>.json.gz    rows of task, method, seed, xs (env steps), ys (returns)

What is decided by a look at the numbers is an assumption and is said; what cannot be decided is refused. Nothing is
left out without a `Problem` or an `Irregularity`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.published_csv import HEADER, SUFFIX, Rows, curve_table, read_rows
from analysis.score_rule import Floats, Ints
from analysis.tables import Problem
from bench import tasks
from bench.errors import UserError
from bench.results_tree import walk
from bench.tasks import Task

EPISODE_WINDOW_ENV_STEPS = 20_000
"""Single training episodes are averaged over windows of this length, the grid of that repository's other curves."""
JSON_NAME = re.compile(r"dmc_(vision|proprio)-([a-z0-9_]+)\.json(\.gz)?")


@dataclass(frozen=True)
class RawPart:
    """The files of one agent from one kind of observation, not read yet."""

    name: str
    """Of the folder or the file."""
    files: tuple[Path, ...]

    @property
    def agent(self) -> str:
        """By the name of the folder or file."""
        return part_identity(self.name)[0]


@dataclass(frozen=True)
class Series:
    """The rows of one seed on one task, in the order of the file."""

    task: str
    seed: int
    file: str
    env_steps: Floats
    """(rows,), NaN where the file holds no number"""
    values: Floats
    """(rows,): return, or success as a fraction; NaN where the file holds no number"""


@dataclass
class PartRead:
    """All that a part tells."""

    series: list[Series] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    irregularities: list[Irregularity] = field(default_factory=list)


def find_parts(folder: Path) -> tuple[list[RawPart], list[Problem]]:
    """Everything below a folder that is laid out as published curves are, and what is not read.

    A file of another layout counts as lost results of an agent where its name is that of a task.
    """
    folders, unreadable = walk(folder)
    problems = [Problem(one.path.as_posix(), one.reason, "not read") for one in unreadable]
    parts, jsons = [], []
    for here in folders:
        curves = []
        for name in [name for name in here.files if SUFFIX.search(name)]:
            reason = _no_curves(here.path / name)
            if reason is None:
                curves.append(here.path / name)
            else:
                problems.append(_not_curves(here.path / name, reason))
        problems += [
            _not_curves(here.path / name, "it is a folder")
            for name in here.folders
            if SUFFIX.search(name) and _task_of(name) is not None
        ]
        if curves:
            parts.append(RawPart(here.path.resolve().name, tuple(curves)))
        jsons += [RawPart(name, (here.path / name,)) for name in here.files if JSON_NAME.fullmatch(name)]
    return parts + jsons, problems


def _no_curves(path: Path) -> str | None:
    """Why a file holds no curves; None where it does."""
    try:
        rows = read_rows(path)
    except UserError as error:
        return str(error)
    return None if rows.has_curves else f"its columns are {', '.join(rows.header)[:60]}, not {HEADER}"


def _not_curves(path: Path, reason: str) -> Problem:
    lost = _task_of(path.name) is not None
    agent = part_identity(path.parent.resolve().name)[0] if lost else ""
    return Problem(path.as_posix(), reason, "not read" if lost else "left out", agent)


def _task_of(file: str) -> Task | None:
    """The task that a file is named after, whatever its case; None where there is none."""
    name = SUFFIX.sub("", file)
    try:
        return tasks.get(name)
    except UserError:
        like = name.casefold().replace("_", "-")
        same = [task for task in tasks.tasks() if like in (task.name.casefold(), task.published_name.casefold())]
        return same[0] if len(same) == 1 else None


def read_part(part: RawPart) -> PartRead:
    """The series of a part, and what was assumed, refused and left out."""
    read = PartRead()
    if JSON_NAME.fullmatch(part.name):
        _read_json_part(part, read)
    else:
        _read_csv_part(part, read)
    return read


def _read_csv_part(part: RawPart, read: PartRead) -> None:
    read.assumptions.append("`step` counts env steps (agent steps x action repeat), as in the authors' files")

    def refuse(path: Path, reason: str) -> None:
        read.problems.append(Problem(path.as_posix(), reason, "not read", part.agent))

    of_task: dict[str, list[Path]] = {}
    for path in part.files:
        task = _task_of(path.name)
        if task is None:
            refuse(path, _unknown_task(path))
        else:
            of_task.setdefault(task.name, []).append(path)
    curves = []
    short_names = 0
    for name, paths in of_task.items():
        if len(paths) > 1:
            for path in paths:
                others = ", ".join(other.name for other in paths if other != path)
                refuse(path, f"{path.name} and {others} are both {name}: move one of them away")
            continue
        [path] = paths
        task = tasks.get(name)
        short_names += task.published_name != name == SUFFIX.sub("", path.name)
        try:
            curves += _curves(part, task, path, read)
        except UserError as error:
            refuse(path, str(error))
    if short_names:
        read.assumptions.append(f"{short_names} files named myo-* are what the authors call myo-hand-*")
    _settle_units(curves, read, refuse)


def _unknown_task(path: Path) -> str:
    try:
        tasks.get(SUFFIX.sub("", path.name))
    except UserError as error:
        return f"{error}; rename or move it away"
    return "no known task"


@dataclass(frozen=True)
class _Curve:
    """One seed of a file, in the unit of the file."""

    series: Series
    path: Path
    column: str


def _curves(part: RawPart, task: Task, path: Path, read: PartRead) -> list[_Curve]:
    """The seeds of a file.

    Raises:
        UserError: the file cannot be read, or has no column for the metric of the task.
    """
    rows: Rows = read_rows(path)
    found = curve_table(rows)
    table = found.table
    if task.metric == "return" and "reward" not in table:
        raise UserError(f"{task.name} is scored by its return, so the file needs a column reward")
    column = "success" if task.metric == "success" and "success" in table else "reward"
    read.irregularities += [Irregularity("damaged row", part.name, task.name, None, text) for text in found.left_out]
    return [
        _Curve(
            Series(task.name, int(seed), path.name, of["step"].to_numpy("float64"), of[column].to_numpy("float64")),
            path,
            column,
        )
        for seed, of in table.groupby("seed", sort=True)
    ]


def _settle_units(curves: list[_Curve], read: PartRead, refuse: Callable[[Path, str], None]) -> None:
    """Check returns, and bring success rates to fractions: the unit is that of one seed of one file."""
    units: dict[tuple[str, str], list[_Curve]] = {}
    for curve in curves:
        finite = curve.series.values[np.isfinite(curve.series.values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        task, seed = tasks.get(curve.series.task), curve.series.seed
        if task.metric == "return":
            if (reason := _beyond_range(task, low, high, read)) is not None:
                refuse(curve.path, f"seed {seed}: {reason}")
            else:
                read.series.append(curve.series)
        elif low < 0 or high > 100:
            what = f"{curve.column} between {low:g} and {high:g} is no success rate (0-1 or 0-100)"
            refuse(curve.path, f"seed {seed}: {what}, by which {task.name} is scored")
        elif curve.column == "reward" and 0 < high <= 1:
            refuse(
                curve.path,
                f"seed {seed}: no value under `reward` exceeds {high:g}; a rate of 0-1, of 0-100 and a return look "
                "alike here: name the column `success` (0-1)",
            )
        else:
            unit = "percent" if high > 1 else "rate" if high > 0 else "none"
            units.setdefault((curve.column, unit), []).append(curve)
    for column in ("reward", "success"):
        percent, rates = units.get((column, "percent"), []), units.get((column, "rate"), [])
        for curve in list(rates):
            if percent and np.isin(curve.series.values[np.isfinite(curve.series.values)], (0, 1)).all():
                rates.remove(curve)
                refuse(
                    curve.path,
                    f"seed {curve.series.seed}: its {column} is 0 or 1, which is 1 % or 100 %, as other curves of the "
                    "agent are in percent: give all in one unit",
                )
        if percent and column == "reward":
            read.assumptions.append("`reward` on tasks scored by success is the success rate in percent (0-100)")
        elif percent:
            where = f" in {_places(percent)}" if rates else ""
            read.assumptions.append(f"`success` is in percent (0-100){where}: it goes above 1")
        if rates:
            where = f" in {_places(rates)}" if percent else ""
            read.assumptions.append(f"`success` is a rate (0-1){where}: it never goes above 1")
        read.series += [
            Series(one.task, one.seed, one.file, one.env_steps, one.values * 0.01)
            for one in (curve.series for curve in percent)
        ]
        read.series += [curve.series for curve in (*rates, *units.get((column, "none"), []))]
    read.series.sort(key=lambda one: (one.task, one.seed))


def _beyond_range(task: Task, low: float, high: float, read: PartRead) -> str | None:
    """Why returns cannot be those of a task; of a user's task, whose range may be exceeded, it is said only."""
    least, most = task.return_range
    margin = 0.001 * (most - least)
    if task in tasks.built_in():
        if high > most + margin:
            return f"a return of {high:g} is above {most:g}, the most {task.name} can pay"
        return None
    if low < least - margin or high > most + margin:
        read.assumptions.append(
            f"returns of {task.name} from {low:g} to {high:g} are meant, although its return_range is {least:g} to "
            f"{most:g}: scores lie outside 0-100"
        )
    return None


def _places(curves: list[_Curve]) -> str:
    """`mw-push.csv (seed 1)`, three at most."""
    shown = [f"{curve.path.name} (seed {curve.series.seed})" for curve in curves[:3]]
    return ", ".join(shown) + (f" and {len(curves) - 3} more" if len(curves) > 3 else "")


def _read_json_part(part: RawPart, read: PartRead) -> None:
    [path] = part.files
    try:
        raw = path.read_bytes()
        rows = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        series = [_json_series(row, path.name) for row in rows]
    except UserError as error:
        read.problems.append(Problem(path.as_posix(), f"{error}", "not read", part.agent))
        return
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it is no list of rows with task, method, seed, xs, ys ({error!r})"
        read.problems.append(Problem(path.as_posix(), reason, "not read", part.agent))
        return
    read.assumptions.append("xs counts env steps, ys are returns")
    singles = [i for i, one in enumerate(series) if _is_episodes(one.env_steps)]
    if singles:
        read.assumptions.append(
            f"single training episodes, not evaluations: averaged over windows of {EPISODE_WINDOW_ENV_STEPS:,} env "
            "steps, each placed at the last episode in it"
        )
    for index in singles:
        series[index] = _windowed(series[index])
    for one in series:
        task = tasks.get(one.task)
        finite = one.values[np.isfinite(one.values)]
        beyond = _beyond_range(task, float(finite.min()), float(finite.max()), read) if len(finite) else None
        if beyond is None:
            read.series.append(one)
        else:
            text = f"{one.task} seed {one.seed}: {beyond}"
            read.problems.append(Problem(path.as_posix(), text, "not read", part.agent))


def _json_series(row: dict[str, Any], file: str) -> Series:
    name = row["task"].removeprefix("dmc_").replace("ball_in_cup", "cup").replace("_", "-")
    env_steps, values = np.asarray(row["xs"], dtype="float64"), np.asarray(row["ys"], dtype="float64")
    if len(env_steps) != len(values):
        raise ValueError(f"{row['task']} seed {row['seed']}: {len(env_steps)} xs, {len(values)} ys")
    return Series(tasks.get(name).name, int(row["seed"]), file, env_steps, values)


def _is_episodes(env_steps: Floats) -> bool:
    return len(env_steps) > 2 and float(np.median(np.diff(env_steps))) < EPISODE_WINDOW_ENV_STEPS / 10


def _windowed(series: Series) -> Series:
    window = np.ceil(series.env_steps / EPISODE_WINDOW_ENV_STEPS)
    means = pd.DataFrame({"x": series.env_steps, "y": series.values}).groupby(window).agg({"x": "max", "y": "mean"})
    return Series(series.task, series.seed, series.file, means["x"].to_numpy(), means["y"].to_numpy())


def part_identity(part: str) -> tuple[str, str]:
    """Agent and kind of observation, by the name of the folder or file."""
    match = JSON_NAME.fullmatch(part)
    if match:
        return match[2], "rgb" if match[1] == "vision" else "state"
    for ending in ("-pixels", "-rgb"):
        if part.endswith(ending):
            return part.removesuffix(ending), "rgb"
    return part, "state"


@dataclass(frozen=True)
class Irregularity:
    """Something in published curves that is not a full, regular run. Nothing is dropped without one."""

    kind: str
    """One of `KINDS`."""
    part: str
    task: str
    seed: int | None
    """None of a whole file."""
    text: str

    @property
    def place(self) -> str:
        """`sac · walker-run · seed 1`."""
        return " · ".join([self.part, self.task, *([] if self.seed is None else [f"seed {self.seed}"])])


KINDS = {
    "damaged row": "rows that hold no curve's point: left out",
    "not a number": "rows without a number: left out",
    "restarted": "several runs of one seed in one file: the one that went furthest is kept",
    "resumed": "evaluations written again after a crash: the later ones count",
    "duplicate": "the same rows twice: one of them is kept",
    "not in order": "rows not in order of steps: sorted",
    "late start": "the first row is after step 0: the curve begins there",
    "hole": "evaluations missing on the grid of the file: no score is known there",
    "ragged end": "ends before the furthest run of its agent and task, within 5 %: its last score is its final one",
    "stopped early": "ends more than 5 % before the furthest run of its agent and task: its last score is kept",
    "missing seed": "other tasks of the agent have this seed",
    "empty": "a seed without any row that can be used",
}
LEAVES_OUT = ("damaged row", "not a number", "restarted", "resumed", "duplicate", "empty")
"""Kinds that leave rows or a run out."""
RAGGED = 0.95
"""A run that reaches this share of the furthest one is whole."""


def regular(series: Series, part: str) -> tuple[Ints, Floats, list[Irregularity]]:
    """A series with strictly increasing env steps, and what had to be left out for it.

    Raises:
        UserError: two values at one step, or several whole runs: which of them counts is unknown.
    """
    found: list[Irregularity] = []

    def note(kind: str, text: str) -> None:
        found.append(Irregularity(kind, part, series.task, series.seed, text))

    good = np.isfinite(series.env_steps) & np.isfinite(series.values)
    if not good.all():
        note("not a number", f"{int((~good).sum())} of {len(good)} rows")
    rows = pd.DataFrame({"step": series.env_steps[good].astype("int64"), "value": series.values[good]})
    once = rows.drop_duplicates()
    if not once["step"].is_unique:
        once = _one_run(rows, note)
    elif len(once) < len(rows):
        first = int(rows["step"][rows.duplicated()].iloc[0])
        note("duplicate", f"{len(rows) - len(once)} rows, first at {first:,}")
    if not once["step"].is_monotonic_increasing:
        note("not in order", f"{int((np.diff(once['step']) < 0).sum())} times a row comes after a later one")
        once = once.sort_values("step")
    if once.empty:
        note("empty", "no row")
    return once["step"].to_numpy("int64"), once["value"].to_numpy("float64"), found


def _one_run(rows: pd.DataFrame, note: Callable[[str, str], None]) -> pd.DataFrame:
    """One run of rows with several values at some steps: where steps fall back, a run was resumed or begun again."""
    pieces = [piece for _, piece in rows.groupby((rows["step"].diff() < 0).cumsum())]
    for piece in pieces:
        twice = piece.drop_duplicates()["step"].duplicated(keep=False)
        if twice.any() or len(rows) < 3 * len(pieces) > 9:  # no run, but rows in any order
            _refuse_two_values(rows)
    distinct: list[pd.DataFrame] = []
    for piece in [piece.drop_duplicates().reset_index(drop=True) for piece in pieces]:
        if not any(piece.equals(other) for other in distinct):
            distinct.append(piece)
    if len(rows) > sum(map(len, distinct)):
        note("duplicate", f"{len(rows) - sum(map(len, distinct))} rows")
    runs: list[pd.DataFrame] = []
    for piece in distinct:
        if runs and _resumes(piece, runs[-1]):
            before = runs[-1][runs[-1]["step"] < piece["step"].iloc[0]]
            note("resumed", f"at {piece['step'].iloc[0]:,}: {len(runs[-1]) - len(before)} earlier rows left out")
            runs[-1] = pd.concat([before, piece])
        else:
            runs.append(piece)
    furthest = max(int(run["step"].iloc[-1]) for run in runs)
    whole = [run for run in runs if run["step"].iloc[-1] >= RAGGED * furthest]
    if len(whole) > 1:
        raise UserError(
            f"{len(whole)} whole runs under one seed, to {furthest:,}: give each a seed of its own, or keep one"
        )
    spans = [f"{run['step'].iloc[0]:,}-{run['step'].iloc[-1]:,}" for run in runs]
    [kept] = [span for span, run in zip(spans, runs, strict=True) if run is whole[0]]
    if len(runs) > 1:
        note("restarted", f"runs over {' and '.join(spans)}: {kept} is kept")
    return whole[0]


def _resumes(piece: pd.DataFrame, run: pd.DataFrame) -> bool:
    """Whether steps that fall back go on with a run from a checkpoint of it, and do not begin another."""
    first, last, reached = piece["step"].iloc[0], piece["step"].iloc[-1], run["step"].iloc[-1]
    return bool(first > run["step"].iloc[0] and first >= reached / 2 and last >= reached)


def _refuse_two_values(rows: pd.DataFrame) -> None:
    once = rows.drop_duplicates()
    steps = once["step"][once["step"].duplicated()].drop_duplicates()
    values = once["value"][once["step"] == steps.iloc[0]]
    more = f" and at {len(steps) - 1} more steps" if len(steps) > 1 else ""
    raise UserError(
        f"two values at step {steps.iloc[0]:,} ({values.iloc[0]:g} and {values.iloc[1]:g}){more}: keep the rows of one "
        "run"
    )
