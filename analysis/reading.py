"""One run directory, read: its evaluations, its row of `runs`, and what could not be used.

- An evaluation is one row, the mean over its episodes; a torn or damaged row of eval.csv is left out and named.
- An episode written twice counts once, as written last.
"""

from __future__ import annotations

import io
import json
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
from bench.runspec import RunSpec
from bench.schema import EVAL_CSV

DAMAGE = (UserError, KeyError, TypeError, AttributeError, ValueError, OSError)
"""What reading a damaged JSON file of a run directory can raise."""
MEASURED = {
    "env_steps": "int64",
    "agent_steps": "int64",
    "wall_s": "float64",
    "return": "float64",
    "success": "float64",
}
"""Columns of `evals` that eval.csv gives."""
SHARED = ("run_id", "agent", "variant", "domain", "domain_version", "task", "obs", "seed")
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
    evals: dict[str, NDArray[Any]] = field(default_factory=dict)
    """The columns `MEASURED`: (evaluations,), in order of env steps."""
    problems: list[str] = field(default_factory=list)
    configuration: str = ""
    """JSON of what tells configurations apart."""
    failure: Failure | None = None
    settled: bool = True
    """Whether reading the same files again gives the same, whatever the time: no live run, no file that was refused."""

    def refuse(self, message: str, error: BaseException) -> None:
        """Note that a file could not be read."""
        self.problems.append(f"{message}: {_one_line(error)}")
        self.settled = False


def read_run(run: RunDir) -> RunRead:
    """Read a run directory; what is damaged in it is named in `problems`."""
    read = RunRead(run.path.as_posix(), evals={name: np.zeros(0, kind) for name, kind in MEASURED.items()})
    try:
        info, spec = run.info(), run.spec
        attempts = [dict(attempt) for attempt in info["attempts"]]
    except DAMAGE as error:
        read.refuse("left out, its run.json cannot be used", error)
        return read
    if info.get("hash") != spec.hash:
        read.problems.append(f"hash {info.get('hash')} of run.json is not that of its specification ({spec.hash})")
    read.shared = {name: getattr(spec, name) for name in SHARED}
    read.configuration = _configuration_key(spec)
    _read_evals(read, run, spec)
    _read_row(read, run, spec, attempts)
    return read


def _read_evals(read: RunRead, run: RunDir, spec: RunSpec) -> None:
    try:
        episodes, remarks = read_eval_csv(run.eval_csv)
    except DAMAGE as error:
        read.refuse("eval.csv cannot be read", error)
        return
    read.problems += remarks
    episodes = episodes.sort_values("env_steps", kind="stable")
    env_steps = episodes["env_steps"].to_numpy()
    first = np.flatnonzero(np.diff(env_steps, prepend=-1.0))  # the first episode of each evaluation
    if not len(first):
        return
    count = np.diff(first, append=len(env_steps))
    means = {name: np.add.reduceat(episodes[name].to_numpy(), first) / count for name in ("return", "success")}
    columns = means | {
        "env_steps": env_steps[first],
        "agent_steps": episodes["agent_steps"].to_numpy()[first],
        "wall_s": np.maximum.reduceat(episodes["wall_s"].to_numpy(), first),
    }
    read.evals = {name: columns[name].astype(kind) for name, kind in MEASURED.items()}
    short = read.evals["env_steps"][count < spec.eval_episodes]
    if len(short):
        read.problems.append(
            f"{len(short)} of {len(first)} evaluations have fewer than {spec.eval_episodes} episodes (first at "
            f"{short[0]:,} env steps): their mean is over those there are"
        )


def _read_row(read: RunRead, run: RunDir, spec: RunSpec, attempts: list[dict[str, Any]]) -> None:
    """The row of `runs` of one directory."""
    beat, done, failed = (_read_json(read, run, name) for name in ("heartbeat", "done.json", "failed.json"))
    state, env_steps = None, None
    try:
        reached = run.progress(spec.budget_env_steps)
        state, env_steps = reached.state, reached.env_steps
        read.settled &= state in SETTLED
    except DAMAGE as error:
        read.refuse("state unknown", error)
    if failed:
        read.failure = Failure(*(str(failed.get(key, "")) for key in ("class", "message", "traceback")))
    last = attempts[-1] if attempts else {}
    wall_s = _number(done.get("wall_s", beat.get("wall_s")))
    versions = last.get("versions")
    read.row = {key: last.get(key) for key in ("commit", "dirty", "host", "gpu", "job_id")} | {
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
        "path": read.path,
    }


def _read_json(read: RunRead, run: RunDir, name: str) -> dict[str, Any]:
    """A JSON file of the directory as a dictionary, empty where it is absent; a damaged one is a problem."""
    try:
        return dict(run.read_json(name) or {})
    except DAMAGE as error:
        read.refuse(f"{name} cannot be read", error)
        return {}


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
    sharers = max(1, int(attempt.get("fleet") or 1)) * max(1, int(attempt.get("pack") or 1))
    return wall_s / 3600 / sharers


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
