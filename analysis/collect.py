"""From run directories to the `evals` and `runs` tables.

Nothing is dropped without a word: what cannot be used is in `Tables.problems`. Rules:
- an evaluation is one row, the mean over its episodes; a torn or damaged row of eval.csv is left out and named;
- an episode written twice counts once, as written last;
- a run id found in several directories: `evals` takes the first by path that has evaluations; `runs` lists them all.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables import Configuration, Failure, Problem, Tables, frame
from bench import atomic, tasks
from bench.errors import UserError
from bench.rundir import RunDir, find_runs
from bench.runspec import RunSpec
from bench.schema import EVAL_CSV, EVALS, RUNS

DAMAGE = (UserError, KeyError, TypeError, AttributeError, ValueError, OSError)
"""What reading a damaged JSON file of a run directory can raise."""


def collect(folder: Path, progress: Callable[[str], None] | None = None) -> Tables:
    """Read every run directory below `folder`.

    Args:
        folder: results of one or several sweeps. Paths in the tables begin with it, as it was given.
        progress: called with a line now and then.

    Raises:
        UserError: no such folder, or no run directory in it.
    """
    found = list(find_runs(folder))
    if not found:
        raise UserError(f"no run directory below {folder}: give one that holds runs, for example results/quickstart")
    collector = _Collector()
    for number, run in enumerate(found, 1):
        collector.add(run)
        if progress is not None and number % 100 == 0:
            progress(f"read {number} of {len(found)} run directories")
    return collector.tables()


class _Collector:
    def __init__(self) -> None:
        self.evals: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.problems: list[Problem] = []
        self.configurations: Counter[str] = Counter()
        self.failures: dict[str, Failure] = {}
        self.first_path: dict[str, str] = {}
        self.evals_path: dict[str, str] = {}

    def problem(self, run: RunDir, message: str) -> None:
        self.problems.append(Problem(run.path.as_posix(), message))

    def add(self, run: RunDir) -> None:
        try:
            info, spec = run.info(), run.spec
            attempts = [dict(attempt) for attempt in info["attempts"]]
        except DAMAGE as error:
            self.problem(run, f"left out, its run.json cannot be used: {_one_line(error)}")
            return
        if info.get("hash") != spec.hash:
            self.problem(run, f"hash {info.get('hash')} of run.json is not that of its specification ({spec.hash})")
        path = run.path.as_posix()
        rows = self.read_evals(run, spec)
        first = self.first_path.setdefault(spec.run_id, path)
        if first != path:
            self.problem(run, f"run {spec.run_id} is also in {first}")
        if rows and self.evals_path.setdefault(spec.run_id, path) == path:
            self.evals += rows
        elif rows:
            self.problem(run, f"evaluations not used: those in {self.evals_path[spec.run_id]} come first by path")
        self.runs.append(self.run_row(run, spec, attempts))
        self.configurations[_configuration_key(spec)] += 1

    def read_evals(self, run: RunDir, spec: RunSpec) -> list[dict[str, Any]]:
        """One row of `evals` for each evaluation of a run."""
        try:
            episodes, remarks = read_eval_csv(run.eval_csv)
        except DAMAGE as error:
            self.problem(run, f"eval.csv cannot be read: {_one_line(error)}")
            return []
        for remark in remarks:
            self.problem(run, remark)
        episodes = episodes.sort_values("env_steps", kind="stable")
        env_steps = episodes["env_steps"].to_numpy()
        first = np.flatnonzero(np.diff(env_steps, prepend=-1.0))  # the first episode of each evaluation
        if not len(first):
            return []
        count = np.diff(first, append=len(env_steps))
        mean = {name: np.add.reduceat(episodes[name].to_numpy(), first) / count for name in ("return", "success")}
        wall_s = np.maximum.reduceat(episodes["wall_s"].to_numpy(), first)
        agent_steps = episodes["agent_steps"].to_numpy()
        rows = [
            {
                "run_id": spec.run_id,
                **{key: getattr(spec, key) for key in _SHARED},
                "env_steps": int(env_steps[start]),
                "agent_steps": int(agent_steps[start]),
                "wall_s": float(wall_s[i]),
                "return": float(mean["return"][i]),
                "success": float(mean["success"][i]),
                "source": run.path.as_posix(),
            }
            for i, start in enumerate(first)
        ]
        short = [int(env_steps[start]) for start in first[count < spec.eval_episodes]]
        if short:
            self.problem(
                run,
                f"{len(short)} of {len(rows)} evaluations have fewer than {spec.eval_episodes} episodes (first at "
                f"{short[0]:,} env steps): their mean is over those there are",
            )
        self.add_scores(run, spec, rows)
        return rows

    def add_scores(self, run: RunDir, spec: RunSpec, rows: list[dict[str, Any]]) -> None:
        try:
            score = tasks.get(spec.task).score
        except UserError as error:
            if rows:
                self.problem(run, f"no score, only return and success: {_one_line(error)}")
            for row in rows:
                row["score"] = float("nan")
            return
        for row in rows:
            row["score"] = float(score(row["return"], row["success"]))

    def run_row(self, run: RunDir, spec: RunSpec, attempts: list[dict[str, Any]]) -> dict[str, Any]:
        """The row of `runs` of one directory."""
        path = run.path.as_posix()
        beat, done, failed = (self.read_json(run, name) for name in ("heartbeat", "done.json", "failed.json"))
        state, env_steps = None, None
        try:
            reached = run.progress(spec.budget_env_steps)
            state, env_steps = reached.state, reached.env_steps
        except DAMAGE as error:
            self.problem(run, f"state unknown: {_one_line(error)}")
        if failed:
            self.failures[path] = Failure(*(str(failed.get(key, "")) for key in ("class", "message", "traceback")))
        last = attempts[-1] if attempts else {}
        wall_s = _number(done.get("wall_s", beat.get("wall_s")))
        row = {key: last.get(key) for key in ("commit", "dirty", "host", "gpu", "job_id")}
        versions = last.get("versions")
        return row | {
            "run_id": spec.run_id,
            "hash": spec.hash,
            **{key: getattr(spec, key) for key in ("agent", "variant", "task", "obs", "seed", "budget_env_steps")},
            "state": state,
            "env_steps": env_steps,
            "attempts": len(attempts),
            "job_id": None if last.get("job_id") is None else str(last["job_id"]),
            "versions": None if versions is None else json.dumps(versions, sort_keys=True),
            "wall_s": wall_s,
            "gpu_h": _gpu_h(last, wall_s),
            "peak_gpu_gb": _number(done.get("peak_gpu_gb", beat.get("peak_gpu_gb"))),
            "started": attempts[0].get("started") if attempts else None,
            "ended": done.get("ended") or failed.get("ended"),
            "error_class": failed.get("class"),
            "path": path,
        }

    def read_json(self, run: RunDir, name: str) -> dict[str, Any]:
        """A JSON file of the directory as a dictionary, empty where it is absent; a damaged one is a problem."""
        try:
            return dict(run.read_json(name) or {})
        except DAMAGE as error:
            self.problem(run, f"{name} cannot be read: {_one_line(error)}")
            return {}

    def tables(self) -> Tables:
        evals = frame(self.evals, EVALS).sort_values(["run_id", "env_steps"], kind="stable", ignore_index=True)
        runs = frame(self.runs, RUNS).sort_values("path", kind="stable", ignore_index=True)
        configurations = tuple(
            Configuration(**json.loads(key), runs=count) for key, count in sorted(self.configurations.items())
        )
        return Tables(evals, runs, tuple(self.problems), configurations, self.failures)


_SHARED = ("agent", "variant", "domain", "domain_version", "task", "obs", "seed")


def read_eval_csv(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The episodes in an eval.csv, in order, and what was left out of it.

    Returns:
        A table with the columns of `EVAL_CSV` (numbers as float64, NaN where the file says nan), and remarks.

    Raises:
        UserError: the file has other columns.
    """
    regular = _read_regular(path)
    if regular is not None:
        return regular, []
    lines = atomic.whole_lines(path)
    remarks = []
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        remarks.append("eval.csv ends in a torn row: left out")
    if not lines:
        return pd.DataFrame(columns=list(EVAL_CSV), dtype="float64"), remarks
    header = lines[0].split(",")
    missing = [column for column in EVAL_CSV if column not in header]
    if missing:
        raise UserError(f"it has no column {', '.join(missing)}")
    whole = [line for line in lines[1:] if line.count(",") == len(header) - 1]
    text = pd.read_csv(io.StringIO("\n".join([lines[0], *whole]) + "\n"), dtype="string", keep_default_na=False)
    episodes = text[list(EVAL_CSV)].apply(lambda column: pd.to_numeric(column.astype("object"), errors="coerce"))
    usable = episodes[["env_steps", "agent_steps", "episode"]].notna().all(axis=1)
    damaged = len(lines) - 1 - int(usable.sum())
    if damaged:
        remarks.append(f"eval.csv has {damaged} damaged rows: left out")
    episodes = episodes[usable].astype("float64")
    twice = int(episodes.duplicated(["env_steps", "episode"]).sum())
    if twice:
        remarks.append(f"eval.csv has {twice} episodes twice: the last written counts")
    return episodes.drop_duplicates(["env_steps", "episode"], keep="last"), remarks


def _read_regular(path: Path) -> pd.DataFrame | None:
    """An eval.csv in which nothing is damaged, torn, doubled or out of order, read in one go; None for any other.

    It is what nearly every run leaves, and several times faster than looking at every line.
    """
    try:
        raw = path.read_bytes()
        table = pd.read_csv(io.BytesIO(raw), dtype="float64")
    except (OSError, ValueError):  # the careful way says what is wrong
        return None
    if not raw.endswith(b"\n") or list(table.columns) != list(EVAL_CSV) or raw.count(b"\n") != len(table) + 1:
        return None
    values = table.to_numpy()
    moved = np.diff(values[:, [table.columns.get_loc("env_steps"), table.columns.get_loc("episode")]], axis=0)
    if np.isnan(values).any() or not ((moved[:, 0] > 0) | ((moved[:, 0] == 0) & (moved[:, 1] > 0))).all():
        return None
    return table


def _configuration_key(spec: RunSpec) -> str:
    names = ("agent", "variant", "obs", "hyperparameters", "num_envs", "eval_episodes")
    return json.dumps({name: getattr(spec, name) for name in names}, sort_keys=True)


def _gpu_h(attempt: dict[str, Any], wall_s: float | None) -> float | None:
    if wall_s is None:
        return None
    if not str(attempt.get("device", "cpu")).startswith("cuda"):
        return 0.0
    return wall_s / 3600 / max(1, int(attempt.get("fleet") or 1))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
