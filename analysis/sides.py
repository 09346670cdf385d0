"""The sides of a comparison: one's own results or published ones, as one `evals` table with a name for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.alignment import labels
from analysis.problems import refuse_lost
from analysis.published import read_published
from analysis.published_finals import CURVES, finals_as_evals, load_finals
from analysis.tables import SIDECAR, VERSION_KEY, Problem, check_version, checked, frame, load_tables
from bench.errors import UserError, unknown
from bench.schema import EVALS, RUNS

NEAR_END = 0.95
"""A final score counts for a budget that its run reached to this share."""


@dataclass(frozen=True)
class Side:
    """The results of one or several agents from one place."""

    evals: pd.DataFrame
    runs: pd.DataFrame
    """Columns of `bench.schema.RUNS`; empty where the place holds none."""
    only_finals: bool = False
    """Whether there is one score for each run, its last."""
    assumptions: tuple[str, ...] = ()
    """What had to be assumed to read it."""
    problems: tuple[Problem, ...] = ()
    """What could not be used."""

    @property
    def agents(self) -> set[str]:
        """Names without variants."""
        return set(self.evals["agent"])


def load_side(place: str, progress: Callable[[str], None] | None = None) -> Side:
    """Results from a folder or a file: run directories, collected tables, an `evals` table, the authors' layout.

    Raises:
        UserError: nothing there that can be read.
    """
    path = Path(place)
    if path.is_file():
        return Side(_read_evals(path), frame([], RUNS))
    if not path.is_dir():
        raise UserError(f"no folder or file {place}: give results, a table that `bench collect` wrote, or CSV curves")
    if any((path / name).exists() for name in (SIDECAR, "evals.parquet", "evals.csv")) or any(path.rglob("run.json")):
        tables = load_tables(path, progress)
        return Side(tables.evals, tables.runs, problems=tables.problems)
    imported = read_published(path, progress=progress)
    assumptions = tuple(dict.fromkeys(said for part in imported.provenance for said in part.assumptions))
    return Side(imported.tables.evals, frame([], RUNS), assumptions=assumptions, problems=imported.tables.problems)


def _read_evals(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            if VERSION_KEY in (table.schema.metadata or {}):  # other tools write none: their columns decide
                check_version(table.schema.metadata[VERSION_KEY].decode(), path)
            return checked(table.to_pandas(), EVALS, path)
        return checked(pd.read_csv(path, dtype="string", keep_default_na=False, na_values=[""]), EVALS, path)
    except (pa.ArrowException, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no table of evaluations ({error}): give evals.parquet or evals.csv") from error


def published_side(name: str, obs: str, curves: Path = CURVES) -> Side:
    """A published agent, by the name that figures give it: whole curves where imported, final scores otherwise.

    Raises:
        UserError: no such agent from this kind of observation.
    """
    only_finals = not (curves / SIDECAR).exists()
    tables = None if only_finals else load_tables(curves)
    evals = finals_as_evals(load_finals()) if tables is None else tables.evals
    evals = evals[evals["obs"] == obs]
    names = pd.Series(labels(evals, with_obs=False), index=evals.index)
    if name not in set(names):
        raise unknown(f"published agent (observations: {obs}) or results folder", name, names.unique())
    side = Side(evals[names == name], frame([], RUNS), only_finals, problems=tables.problems if tables else ())
    return replace(side, problems=tuple(problem for problem in side.problems if problem.agent in side.agents))


def chosen(side: Side, agent: str | None) -> tuple[str, Side]:
    """One agent of a place; its name and its results.

    Raises:
        UserError: there are several and none was chosen, or no such agent.
    """
    with_obs = side.evals["obs"].nunique() > 1
    names = pd.Series(labels(side.evals, with_obs), index=side.evals.index, dtype="object")
    found = sorted(set(names))
    if not found:
        raise UserError("these results hold no evaluation yet: nothing can be compared")
    if agent is None and len(found) > 1:
        raise UserError(f"these results hold {len(found)} agents: choose one with --agent ({', '.join(found)})")
    name = agent or found[0]
    if name not in found:
        raise unknown("agent in these results", name, found)
    one = replace(side, evals=side.evals[names == name])
    of_others = set(side.evals["agent"]) - one.agents
    return name, replace(one, problems=tuple(problem for problem in side.problems if problem.agent not in of_others))


def named(evals: pd.DataFrame, name: str) -> pd.DataFrame:
    """`evals` under one name, whatever agent and variant they are of."""
    return evals.assign(agent=name, variant="default", run_id=name + " " + evals["run_id"])


def placed_finals(finals: Mapping[str, pd.DataFrame], mine: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Final scores of several agents moved to where they can be compared, the same place for all of them.

    Of a published run only the last score is known, at the end of its budget. Where one's own runs reached that budget
    to 95 %, the final scores count there; where they did not, there is nothing to compare with, and the task is left
    out by the alignment.
    """
    furthest = mine.groupby("task")["env_steps"].max()
    places: dict[str, int] = {}
    for table in finals.values():
        for task, end in table.groupby("task")["env_steps"].max().items():
            if task in furthest:
                places[task] = min(places.get(task, int(end)), int(end), int(furthest[task]))
    moved = {}
    for name, table in finals.items():
        end = table.groupby("task")["env_steps"].transform("max")
        place = table["task"].map(places)
        near = (place >= NEAR_END * end).fillna(False).to_numpy(dtype=bool)
        there = table[near]
        to = place[near].astype("int64")
        agent_steps = (there["agent_steps"] * to / there["env_steps"]).round().astype("int64")
        moved[name] = there.assign(env_steps=to, agent_steps=agent_steps)
    return moved


@dataclass(frozen=True)
class Gathered:
    """All sides of a comparison in one table."""

    mine: str
    evals: pd.DataFrame
    clocks: dict[str, pd.DataFrame]
    """Clock -> `evals` with its seconds in place of env steps, where every side knows it."""
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
    """What had to be assumed to read the sides."""
    problems: tuple[Problem, ...]
    """What of the sides could not be used."""


def gather(
    mine: str,
    others: Sequence[str],
    agent: str | None,
    curves: Path,
    progress: Callable[[str], None] | None = None,
    allow_missing: bool = False,
) -> Gathered:
    """Load and name the sides of a comparison.

    A published agent is called by its name; where that is also the name of one's own, the two are told apart.

    Raises:
        UserError: a place or a file of an agent that cannot be read, an unknown agent, or several agents where one is
            meant.
    """
    own_name, own = chosen(load_side(mine, progress), agent)
    kinds = sorted(own.evals["obs"].unique())
    if len(kinds) > 1:
        raise UserError(f"{own_name} was run from {' and '.join(kinds)}: choose one with --agent")
    sides: dict[str, Side] = {}
    notes = []
    for other in others:
        if Path(other).exists():
            side = load_side(other, progress)
            side = replace(side, evals=side.evals[side.evals["obs"] == kinds[0]])
            if side.evals.empty:
                raise UserError(f"{other} holds no evaluation from {kinds[0]} observations, as those of {own_name} are")
            for name in sorted(set(labels(side.evals, with_obs=False))):
                where = name if name not in (own_name, *sides) else f"{name} ({Path(other).name})"
                sides[where] = chosen(side, name)[1]
        else:
            side = published_side(other, kinds[0], curves)
            if side.only_finals:
                notes.append(
                    f"{other}: only published final scores are here; they count at the end of the budget, where "
                    f"{own_name} reached {NEAR_END:.0%} of it. `bench published import` brings whole curves."
                )
            sides[other if other not in (own_name, *sides) else f"{other} (published)"] = side
    for name, side in sides.items():
        sides[name], beyond = _on_tasks_of(own, side)
        if beyond:
            notes.append(f"{name}: {beyond} tasks that {own_name} was not run on are left out")
    finals = {name: side.evals for name, side in sides.items() if side.only_finals}
    for name, placed in placed_finals(finals, own.evals).items():
        sides[name] = Side(placed, sides[name].runs, True)
    title = f"{own_name} (mine)" if any(name.partition(" (")[0] == own_name for name in sides) else own_name
    everyone = {title: own, **sides}
    assumptions = tuple(f"{name}: {said}" for name, side in everyone.items() for said in side.assumptions)
    problems = tuple(dict.fromkeys(problem for side in everyone.values() for problem in side.problems))
    refuse_lost(problems, set().union(*(side.agents for side in everyone.values())), allow_missing)
    evals = pd.concat([named(side.evals, name) for name, side in everyone.items()], ignore_index=True)
    absent = [name for name, side in everyone.items() if side.evals.empty]
    if absent:
        raise UserError(
            f"nothing of {', '.join(absent)} can be compared: only final scores are here, and {own_name} did not reach "
            f"{NEAR_END:.0%} of the budget on any task; run `bench published import` for whole curves"
        )
    return Gathered(title, evals, _clocks(everyone), tuple(notes), assumptions, problems)


def _on_tasks_of(own: Side, side: Side) -> tuple[Side, int]:
    """`side` without the tasks that only it has, where it has others, and their number: published agents have 104."""
    shared = side.evals["task"].isin(set(own.evals["task"]))
    if shared.all() or not shared.any():
        return side, 0
    return replace(side, evals=side.evals[shared]), int(side.evals[~shared]["task"].nunique())


def _clocks(sides: Mapping[str, Side]) -> dict[str, pd.DataFrame]:
    """Tables over wall-clock and GPU seconds, for the clocks that all sides know."""
    found = {}
    for clock in ("wall-clock", "GPU"):
        parts = [named(_timed(side, clock), name) for name, side in sides.items()]
        if all(len(part) for part in parts):
            found[clock] = pd.concat(parts, ignore_index=True)
    return found


def _timed(side: Side, clock: str) -> pd.DataFrame:
    evals = side.evals[np.isfinite(side.evals["wall_s"].to_numpy("float64"))]
    seconds = evals["wall_s"]
    if clock == "GPU":
        runs = side.runs[(side.runs["wall_s"] > 0) & (side.runs["gpu_h"] > 0)].drop_duplicates("run_id")
        share = (runs["gpu_h"] * 3600 / runs["wall_s"]).set_axis(runs["run_id"]).astype("float64")
        evals = evals[evals["run_id"].isin(set(share.index))]
        seconds = evals["wall_s"] * evals["run_id"].map(share)
    return evals.assign(env_steps=seconds.round().astype("int64"))
