"""One run directory, read: its evaluations, its row of `runs`, and what could not be used.

- An evaluation of a task is one row, the mean over its episodes. A torn or damaged row of eval.csv is left out and
  named.
- An episode written twice counts once, as written last.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.tables import Failure
from bench import atomic
from bench.errors import UserError
from bench.rundir import RunDir
from bench.runspec import RunSpec, decisive
from bench.schema import EVAL_CSV, OFFLINE_EVAL_CSV
from bench.tasks import get as get_task

DAMAGE = (UserError, KeyError, TypeError, AttributeError, ValueError, OSError)
"""What reading a damaged JSON file of a run directory can raise."""
MEASURED = {
    "env_steps": "int64",
    "agent_steps": "int64",
    "updates": "int64",
    "wall_s": "float64",
    "return": "float64",
    "success": "float64",
    "of_task": "int64",
}
"""What eval.csv gives. `updates` is -1 online; `of_task` is the place of the task in `RunRead.tasks`."""
SHARED = ("run_id", "agent", "variant", "obs", "seed")
"""Columns of `evals` that are the same for all evaluations of a run."""
SETTLED = ("pending", "failed", "done")
"""States that the files alone decide; running and stale also depend on the clock and on whether a process lives."""


@dataclass
class RunRead:
    """All that one run directory tells."""

    path: str
    row: dict[str, Any] | None = None
    """Of `runs`; None where run.json cannot be used."""
    shared: dict[str, Any] = field(default_factory=dict)
    """The columns `SHARED`."""
    tasks: list[list[str]] = field(default_factory=list)
    """Task, domain and domain version of each task that it is evaluated on."""
    evals: dict[str, NDArray[Any]] = field(default_factory=dict)
    """The columns `MEASURED`: (evaluations,), in order of env steps, or of updates and then of tasks."""
    problems: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """Problems that leave nothing of the run to compare: its run.json or its eval.csv cannot be read."""
    configuration: str = ""
    """JSON of what tells configurations apart."""
    failure: Failure | None = None
    settled: bool = True
    """Whether reading the same files again gives the same, whatever the time: no live run, no file that was refused."""

    def refuse(self, message: str, error: BaseException) -> None:
        """Note that a file could not be read."""
        self.problems.append(f"{message}: {_one_line(error)}")
        self.settled = False

    def lose(self, message: str, error: BaseException) -> None:
        """Note that the file which says what the run is, or its evaluations, could not be read."""
        self.unread.append(f"{message}: {_one_line(error)}")
        self.settled = False


def read_run(run: RunDir) -> RunRead:
    """Read a run directory; what is damaged in it is named in `problems`."""
    read = RunRead(run.path.as_posix(), evals={name: np.zeros(0, kind) for name, kind in MEASURED.items()})
    try:
        info, spec = run.info(), run.spec
        attempts = [dict(attempt) for attempt in info["attempts"]]
    except DAMAGE as error:
        read.lose("left out, its run.json cannot be used", error)
        return read
    if info.get("hash") != spec.hash:
        read.problems.append(f"hash {info.get('hash')} of run.json is not that of its specification ({spec.hash})")
    read.shared = {name: getattr(spec, name) for name in SHARED}
    read.tasks = _tasks(spec)
    read.configuration = _configuration_key(spec)
    _read_evals(read, run, spec)
    _read_row(read, run, spec, attempts)
    return read


def _tasks(spec: RunSpec) -> list[list[str]]:
    if spec.offline is None:
        return [[spec.task, spec.domain, spec.domain_version]]
    found = []
    for name in spec.offline.tasks:
        try:
            domain = get_task(name).domain
        except UserError:
            domain = "unknown"  # a task of the user's that is not installed here
        found.append([name, domain, spec.offline.domain_versions.get(domain, "unknown")])
    return found


def _read_evals(read: RunRead, run: RunDir, spec: RunSpec) -> None:
    offline = spec.offline is not None
    try:
        if os.path.islink(run.eval_csv) and not os.path.exists(run.eval_csv):
            raise UserError(f"it links to {os.readlink(run.eval_csv)}, which does not exist")
        episodes, remarks = read_eval_csv(run.eval_csv, spec.tasks if offline else ())
    except DAMAGE as error:
        read.lose("eval.csv cannot be read", error)
        return
    read.problems += remarks
    episodes = episodes.sort_values([spec.axis, "of_task"], kind="stable")
    axis, of_task = episodes[spec.axis].to_numpy(), episodes["of_task"].to_numpy()
    moved = (np.diff(axis, prepend=-1.0) != 0) | (np.diff(of_task, prepend=-1.0) != 0)
    first = np.flatnonzero(moved)  # the first episode of each evaluation of a task
    if not len(first):
        return
    count = np.diff(first, append=len(axis))
    means = {name: np.add.reduceat(episodes[name].to_numpy(), first) / count for name in ("return", "success")}
    columns = means | {
        "env_steps": np.zeros(len(first)) if offline else axis[first],
        "agent_steps": np.zeros(len(first)) if offline else episodes["agent_steps"].to_numpy()[first],
        "updates": axis[first] if offline else np.full(len(first), -1),
        "wall_s": np.maximum.reduceat(episodes["wall_s"].to_numpy(), first),
        "of_task": of_task[first],
    }
    read.evals = {name: columns[name].astype(kind) for name, kind in MEASURED.items()}
    short = axis[first][count < spec.eval_episodes]
    if len(short):
        read.problems.append(
            f"{len(short)} of {len(first)} evaluations have fewer than {spec.eval_episodes} episodes (first at "
            f"{int(short[0]):,} {spec.axis.replace('_', ' ')}): their mean is over those there are"
        )


def _read_row(read: RunRead, run: RunDir, spec: RunSpec, attempts: list[dict[str, Any]]) -> None:
    """The row of `runs` of one directory."""
    beat, done, failed = (_read_json(read, run, name) for name in ("heartbeat", "done.json", "failed.json"))
    state, reached = None, None
    try:
        progress = run.progress(spec.budget)
        state, reached = progress.state, progress.reached
        read.settled &= state in SETTLED
    except DAMAGE as error:
        read.refuse("state unknown", error)
    if failed:
        read.failure = Failure(*(str(failed.get(key, "")) for key in ("class", "message", "traceback")))
    last = attempts[-1] if attempts else {}
    wall_s = _number(done.get("wall_s", beat.get("wall_s")))
    versions = last.get("versions")
    offline = spec.offline is not None
    read.row = {key: last.get(key) for key in ("commit", "dirty", "host", "gpu", "job_id")} | {
        "run_id": spec.run_id,
        "hash": spec.hash,
        **{key: getattr(spec, key) for key in ("agent", "variant", "task", "obs", "seed", "budget_env_steps")},
        "state": state,
        "env_steps": 0 if offline else reached,
        "updates": reached if offline else None,
        "budget_updates": spec.budget if offline else None,
        "attempts": len(attempts),
        "job_id": None if last.get("job_id") is None else str(last["job_id"]),
        "versions": None if versions is None else json.dumps(versions, sort_keys=True),
        "wall_s": wall_s,
        "gpu_h": _gpu_h(last, wall_s),
        "peak_gpu_gb": _number(done.get("peak_gpu_gb", beat.get("peak_gpu_gb"))),
        "started": attempts[0].get("started") if attempts else None,
        "ended": done.get("ended") or failed.get("ended"),
        "error_class": failed.get("class"),
        "path": read.path,
    }


def _read_json(read: RunRead, run: RunDir, name: str) -> dict[str, Any]:
    """A JSON file of the directory as a dictionary, empty where it is absent; a damaged one is a problem."""
    try:
        return dict(run.read_json(name) or {})
    except DAMAGE as error:
        read.refuse(f"{name} cannot be read", error)
        return {}


def read_eval_csv(path: Path, tasks: Sequence[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """The episodes in an eval.csv, in order, and what was left out of it.

    Args:
        path: the file.
        tasks: of a run that learns offline, whose file names the task of each episode.

    Returns:
        A table with the numbers of `EVAL_CSV` or `OFFLINE_EVAL_CSV` (float64, NaN where the file says nan) and
        `of_task`, the place of each episode's task in `tasks` (0 without them); and remarks.

    Raises:
        UserError: the file has other columns.
    """
    columns = list(OFFLINE_EVAL_CSV if tasks else EVAL_CSV)
    key = ["updates", "of_task", "episode"] if tasks else ["env_steps", "episode"]
    regular = _read_regular(path, columns, key, tasks)
    if regular is not None:
        return regular, []
    lines = atomic.whole_lines(path)
    remarks = []
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        remarks.append("eval.csv ends in a torn row: left out")
    if not lines:
        return pd.DataFrame(columns=[*columns, "of_task"], dtype="float64"), remarks
    header = lines[0].split(",")
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(f"it has no column {', '.join(missing)}")
    whole = [line for line in lines[1:] if line.count(",") == len(header) - 1]
    text = pd.read_csv(io.StringIO("\n".join([lines[0], *whole]) + "\n"), dtype="string", keep_default_na=False)
    text = _place_tasks(text[columns], tasks)
    episodes = text.apply(lambda column: pd.to_numeric(column.astype("object"), errors="coerce"))
    usable = episodes[[*key, *([] if tasks else ["agent_steps"])]].notna().all(axis=1)
    damaged = len(lines) - 1 - int(usable.sum())
    if damaged:
        remarks.append(f"eval.csv has {damaged} damaged rows: left out")
    episodes = episodes[usable].astype("float64")
    twice = int(episodes.duplicated(key).sum())
    if twice:
        remarks.append(f"eval.csv has {twice} episodes twice: the last written counts")
    return episodes.drop_duplicates(key, keep="last"), remarks


def _place_tasks(table: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The table with `of_task` in place of `task`; NaN where it is none of them."""
    if not tasks:
        return table.assign(of_task=0.0)
    place = table["task"].map({name: float(number) for number, name in enumerate(tasks)})
    return table.drop(columns="task").assign(of_task=place)


def _read_regular(path: Path, columns: Sequence[str], key: Sequence[str], tasks: Sequence[str]) -> pd.DataFrame | None:
    """An eval.csv in which nothing is damaged, torn, doubled or out of order, read in one go; None for any other.

    It is what nearly every run leaves, and several times faster than looking at every line.
    """
    try:
        raw = path.read_bytes()
        kinds = {name: "string" if name == "task" else "float64" for name in columns}
        table = pd.read_csv(io.BytesIO(raw), dtype=kinds)
    except (OSError, ValueError):  # the careful way says what is wrong
        return None
    if not raw.endswith(b"\n") or list(table.columns) != list(columns) or raw.count(b"\n") != len(table) + 1:
        return None
    table = _place_tasks(table, tasks).astype("float64")
    ordered = np.zeros(max(0, len(table) - 1), dtype=bool)
    for name in reversed(key):  # in the order of the first column, then of the next, ...
        moved = np.diff(table[name].to_numpy())
        ordered = (moved > 0) | ((moved == 0) & ordered)
    if np.isnan(table.to_numpy()).any() or not ordered.all():
        return None
    return table


def _configuration_key(spec: RunSpec) -> str:
    facts = {name: getattr(spec, name) for name in ("agent", "variant", "obs", "num_envs", "eval_episodes")}
    return json.dumps({**facts, "hyperparameters": decisive(spec.hyperparameters)}, sort_keys=True)


def _gpu_h(attempt: dict[str, Any], wall_s: float | None) -> float | None:
    if wall_s is None:
        return None
    if not str(attempt.get("device", "cpu")).startswith("cuda"):
        return 0.0
    sharers = max(1, int(attempt.get("fleet") or 1)) * max(1, int(attempt.get("pack") or 1))
    return wall_s / 3600 / sharers


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
