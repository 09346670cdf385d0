"""Reading learning curves as others publish them: the TD-MPC2 authors' CSV folders and DreamerV3's gzipped JSON.

    <agent>/<task>.csv                  step,reward,seed or step,success,seed; env steps; success as 0-1 or 0-100
    dmc_<vision|proprio>-<agent>.json.gz    rows of task, method, seed, xs (env steps), ys (returns)

What is decided by a look at the numbers is an assumption and is said; what cannot be decided is refused.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.score_rule import Floats, Ints
from bench import tasks
from bench.errors import UserError

HEADER = "step,reward,seed or step,success,seed"
MAX_RETURN = 1000.0
EPISODE_WINDOW_ENV_STEPS = 20_000
"""Single training episodes are averaged over windows of this length, the grid of that repository's other curves."""
JSON_NAME = re.compile(r"dmc_(vision|proprio)-([a-z0-9_]+)\.json(\.gz)?")


@dataclass(frozen=True)
class RawPart:
    """The files of one agent from one kind of observation, not read yet."""

    name: str
    """Of the folder or the file."""
    files: tuple[Path, ...]


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


def find_parts(folder: Path) -> tuple[list[RawPart], list[Path]]:
    """Everything below a folder that is laid out as published curves are, and the CSV files that are not."""
    parts = []
    others = []
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*.csv")):
        with path.open(encoding="utf-8", errors="replace") as file:
            columns = set(file.readline().strip().split(","))
        if {"step", "seed"} <= columns and columns & {"reward", "success"}:
            by_folder.setdefault(path.parent, []).append(path)
        else:
            others.append(path)
    parts += [RawPart(parent.resolve().name, tuple(files)) for parent, files in by_folder.items()]
    found = [path for path in sorted(folder.rglob("*.json*")) if JSON_NAME.fullmatch(path.name)]
    parts += [RawPart(path.name, (path,)) for path in found]
    return parts, others


def read_part(part: RawPart) -> tuple[list[Series], list[str]]:
    """The series of a part, and what was assumed about them.

    Raises:
        UserError: an unknown task, a file that cannot be read, or numbers whose unit cannot be told.
    """
    if part.files[0].suffix == ".csv":
        return _read_csv_part(part)
    return _read_json_part(part)


def _read_csv_part(part: RawPart) -> tuple[list[Series], list[str]]:
    said = ["`step` counts env steps (agent steps x action repeat), as in the authors' files"]
    tables: dict[str, tuple[Path, pd.DataFrame]] = {}
    short_names = 0
    for path in part.files:
        try:
            task = tasks.get(path.stem)
        except UserError as error:
            raise UserError(f"{path} is no result file of a known task: {error}; rename or move it away") from error
        if task.name in tables:
            raise UserError(f"{path} and {tables[task.name][0]} are both {task.name}: move one of them away")
        short_names += task.published_name != task.name == path.stem
        tables[task.name] = path, _read_csv(path)
    if short_names:
        said.append(f"{short_names} files named myo-* are what the authors call myo-hand-*")
    percent = _percent(part, tables, said)
    series = []
    for name, (path, table) in tables.items():
        column = _column(name, table)
        scale = 0.01 if column in percent and tasks.get(name).metric == "success" else 1.0
        for seed, rows in table.groupby("seed", sort=True):
            values = rows[column].to_numpy("float64") * scale
            series.append(Series(name, int(seed), path.name, rows["step"].to_numpy("float64"), values))
    return series, said


def _read_csv(path: Path) -> pd.DataFrame:
    """A file as numbers, NaN where it holds none; the seeds must be there."""
    try:
        table = pd.read_csv(path).apply(pd.to_numeric, errors="coerce")
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}): its header must be {HEADER}") from error
    seeds = table["seed"]
    if not (seeds.notna() & (seeds >= 0) & (seeds == seeds.round())).all():
        raise UserError(f"{path}: column seed must hold whole numbers from 0, so that runs can be told apart")
    return table


def _column(task: str, table: pd.DataFrame) -> str:
    metric = {"return": "reward", "success": "success"}[tasks.get(task).metric]
    return metric if metric in table else "reward"


def _percent(part: RawPart, tables: dict[str, tuple[Path, pd.DataFrame]], said: list[str]) -> set[str]:
    """The columns in which success is 0-100: one unit for each column of a part, told by its largest value."""
    largest: dict[str, float] = {}
    for name, (path, table) in tables.items():
        if tasks.get(name).metric == "return":
            if "reward" not in table:
                raise UserError(f"{path}: {name} is scored by its return, so the file needs a column reward")
            high = float(table["reward"].max())
            if high > MAX_RETURN * 1.001:
                raise UserError(f"{path}: a return of {high:g} is above {MAX_RETURN:g}, the most {name} can pay")
            continue
        column = _column(name, table)
        low, high = float(table[column].min()), float(table[column].max())
        if low < 0 or high > 100:
            raise UserError(f"{path}: {column} between {low:g} and {high:g} is no success rate (0-1 or 0-100)")
        largest[column] = max(largest.get(column, 0.0), high)
    if 0 < largest.get("reward", 0) <= 1:
        raise UserError(
            f"{part.name}: no value under `reward` exceeds {largest['reward']:g} on tasks scored by success; a rate of "
            "0-1, of 0-100 and a return look alike here: name the column `success` (0-1)"
        )
    if "reward" in largest:
        said.append("`reward` on tasks scored by success is the success rate in percent (0-100)")
    if "success" in largest:
        unit = (
            "in percent (0-100): it goes above 1" if largest["success"] > 1 else "a rate (0-1): it never goes above 1"
        )
        said.append(f"`success` is {unit}")
    return {column for column, high in largest.items() if high > 1}


def _read_json_part(part: RawPart) -> tuple[list[Series], list[str]]:
    [path] = part.files
    try:
        raw = path.read_bytes()
        rows = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
        series = [_json_series(row, path.name) for row in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no list of rows with task, method, seed, xs, ys ({error!r})") from error
    said = ["xs counts env steps, ys are returns"]
    singles = [i for i, one in enumerate(series) if _is_episodes(one.env_steps)]
    if singles:
        said.append(
            f"single training episodes, not evaluations: averaged over windows of {EPISODE_WINDOW_ENV_STEPS:,} env "
            "steps, each placed at the last episode in it"
        )
    for index in singles:
        series[index] = _windowed(series[index])
    return series, said


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


def part_identity(part: RawPart) -> tuple[str, str]:
    """Agent and kind of observation, by the name of the folder or file."""
    match = JSON_NAME.fullmatch(part.name)
    if match:
        return match[2], "rgb" if match[1] == "vision" else "state"
    for ending in ("-pixels", "-rgb"):
        if part.name.endswith(ending):
            return part.name.removesuffix(ending), "rgb"
    return part.name, "state"


@dataclass(frozen=True)
class Irregularity:
    """Something in published curves that is not a full, regular run. Nothing is dropped without one."""

    kind: str
    """One of `KINDS`."""
    part: str
    task: str
    seed: int
    text: str


KINDS = {
    "not a number": "rows without a number: left out",
    "restarted": "several runs in one file: the one that went furthest is kept, the first of equals",
    "duplicate": "several rows at one step: the last counts",
    "late start": "the first row is after step 0: the curve begins there",
    "hole": "evaluations missing on the grid of the file: the last score before a hole holds within it",
    "ragged end": "ends before the furthest run of its agent and task, within 5 %: its last score is its final one",
    "stopped early": "ends more than 5 % before the furthest run of its agent and task: its last score is kept",
    "missing seed": "other tasks of the agent have this seed",
    "empty": "a seed without any row that can be used",
}
RAGGED = 0.95


def regular(series: Series, part: str) -> tuple[Ints, Floats, Iterator[Irregularity]]:
    """A series with strictly increasing env steps, and what had to be left out for it."""
    found: list[Irregularity] = []

    def note(kind: str, text: str) -> None:
        found.append(Irregularity(kind, part, series.task, series.seed, text))

    good = np.isfinite(series.env_steps) & np.isfinite(series.values)
    if not good.all():
        note("not a number", f"{int((~good).sum())} of {len(good)} rows")
    env_steps, values = series.env_steps[good].astype("int64"), series.values[good]
    ends = np.append(np.flatnonzero(np.diff(env_steps) < 0) + 1, len(env_steps))
    if len(ends) > 1:
        starts = np.concatenate([[0], ends[:-1]])
        kept = max(range(len(ends)), key=lambda run: (int(env_steps[ends[run] - 1]), -run))
        spans = [f"{env_steps[i]:,}-{env_steps[j - 1]:,}" for i, j in zip(starts, ends, strict=True)]
        note("restarted", f"runs over {' and '.join(spans)}: {spans[kept]} is kept")
        env_steps, values = env_steps[starts[kept] : ends[kept]], values[starts[kept] : ends[kept]]
    last = np.append(np.diff(env_steps) > 0, True)[: len(env_steps)]
    if not last.all():
        note("duplicate", f"{int((~last).sum())} rows, first at {env_steps[~last][0]:,}")
    env_steps, values = env_steps[last], values[last]
    if not len(env_steps):
        note("empty", "no row")
    return env_steps, values, iter(found)
