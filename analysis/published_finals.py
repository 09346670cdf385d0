"""Final scores of published runs: one small table, committed, so that a fresh clone can compare without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.published import UNKNOWN, Imported
from analysis.published_sources import SOURCES
from analysis.tables import checked
from bench import atomic, tasks
from bench.errors import UserError
from bench.schema import EVALS

PUBLISHED = Path(__file__).parents[1] / "results" / "published"
"""The committed tables of a clone of this repository."""
CURVES = PUBLISHED / "curves"
"""Where `bench published import` writes unless told otherwise; not committed."""
FINAL_SCORES = "final_scores.csv"
SHORT_COMMIT = 10
FINALS: dict[str, str] = {
    "agent": "string",
    "variant": "string",
    "obs": "string",
    "task": "string",
    "seed": "int64",
    "env_steps": "int64",  # of the run's last evaluation
    "score": "float64",  # 0-100, of that evaluation
    "repository": "string",
    "commit": "string",
    "licence": "string",
}
"""Columns of the table of final scores: one row for each run."""


def finals_of(imported: Imported) -> pd.DataFrame:
    """The last evaluation of every run; columns of `FINALS`."""
    last = imported.tables.evals.sort_values("env_steps", kind="stable").groupby("run_id").tail(1)
    origin = {(one.agent, one.variant, one.obs): one for one in imported.provenance}
    of = [origin[key] for key in zip(last["agent"], last["variant"], last["obs"], strict=True)]
    table = last.assign(
        score=last["score"].round(4),
        repository=[one.source.partition("@")[0] for one in of],
        commit=[one.commit[:SHORT_COMMIT] for one in of],
        licence=[one.licence for one in of],
    )[list(FINALS)]
    order = ["obs", "agent", "variant", "task", "seed"]
    return table.sort_values(order, key=lambda column: column.map(_state_first), ignore_index=True)


def _state_first(value: Any) -> Any:
    return {"state": "0", "rgb": "1"}.get(value, value)


def write_finals(imported: Imported, folder: Path) -> Path:
    """Write the table of final scores into a folder."""
    path = folder / FINAL_SCORES
    atomic.write_text(path, finals_of(imported).to_csv(index=False, lineterminator="\n"))
    return path


def load_finals(path: Path = PUBLISHED / FINAL_SCORES) -> pd.DataFrame:
    """The committed final scores; columns of `FINALS`.

    Raises:
        UserError: no such table, or other columns.
    """
    if not path.exists():
        raise UserError(f"no {path}: it comes with a clone of this repository; `bench published import` also writes it")
    return checked(pd.read_csv(path, dtype="string", keep_default_na=False), FINALS, path)


def finals_as_evals(finals: pd.DataFrame) -> pd.DataFrame:
    """Final scores as an `evals` table of one evaluation for each run; columns of `EVALS`."""
    versions = {source.repository: source.domain_versions for source in SOURCES}
    known = {name: tasks.get(name) for name in finals["task"].unique()}
    of = [known[name] for name in finals["task"]]
    score = finals["score"].to_numpy("float64")
    is_return = np.array([task.metric == "return" for task in of], dtype=bool)
    pairs = zip(finals["repository"], of, strict=True)
    table = finals.assign(
        run_id=finals["agent"] + "/" + finals["variant"] + "/" + finals["task"] + "/seed" + finals["seed"].astype(str),
        domain=[task.domain for task in of],
        domain_version=[versions.get(repository, {}).get(task.domain, UNKNOWN) for repository, task in pairs],
        agent_steps=finals["env_steps"].to_numpy() // np.array([task.action_repeat for task in of], dtype="int64"),
        wall_s=np.nan,
        **{"return": np.where(is_return, score * 10, np.nan), "success": np.where(is_return, np.nan, score / 100)},
        source=finals["repository"] + "@" + finals["commit"],
    )
    return table.assign(updates=pd.NA)[list(EVALS)].astype(EVALS)
