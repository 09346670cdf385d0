"""Published learning curves in the suite's own tables.

`analysis.score_rule` says where they have scores. The final score of a run is its last evaluation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.published_csv import HEADER
from analysis.published_layout import (
    LEAVES_OUT,
    RAGGED,
    Irregularity,
    RawPart,
    Series,
    find_parts,
    part_identity,
    read_part,
    regular,
)
from analysis.published_sources import Part, Source, recognise
from analysis.score_rule import Floats, Ints
from analysis.tables import Problem, Tables, frame, write_tables
from bench import atomic, tasks
from bench.errors import UserError
from bench.schema import EVALS, RUNS

SIDECAR = "published.json"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Provenance:
    """Where a part came from."""

    part: str
    agent: str
    variant: str
    obs: str
    runs: int
    source: str
    """`repository@commit:folder`, or the user's own name for it."""
    commit: str
    licence: str
    verified: bool
    """Byte for byte the files of the pinned commit."""
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """Curves read, before they are written."""

    tables: Tables
    provenance: tuple[Provenance, ...]
    irregularities: tuple[Irregularity, ...]

    def only(self, source: Source) -> Imported:
        """The parts that are exactly those of a source; a repository may hold other curves too."""
        parts = [one for one in self.provenance if one.verified and one.part in source.parts]
        keys = {(one.agent, one.variant, one.obs) for one in parts}
        evals, runs = (
            table[[key in keys for key in zip(table["agent"], table["variant"], table["obs"], strict=True)]]
            for table in (self.tables.evals, self.tables.runs)
        )
        names = {one.part for one in parts}
        irregularities = tuple(one for one in self.irregularities if one.part in names)
        return Imported(Tables(evals, runs, self.tables.problems), tuple(parts), irregularities)


def merged(several: Sequence[Imported]) -> Imported:
    """Several imports as one.

    Raises:
        UserError: two of them hold the same agent from the same kind of observation.
    """
    provenance: dict[tuple[str, str, str], Provenance] = {}
    for one in (one for imported in several for one in imported.provenance):
        key = (one.agent, one.variant, one.obs)
        if key in provenance:
            raise UserError(f"{one.source} and {provenance[key].source} are both {one.agent}: import them apart")
        provenance[key] = one
    evals = pd.concat([one.tables.evals for one in several], ignore_index=True)
    runs = pd.concat([one.tables.runs for one in several], ignore_index=True)
    problems = tuple(problem for one in several for problem in one.tables.problems)
    tables = Tables(
        evals.sort_values(["run_id", "env_steps"], kind="stable", ignore_index=True),
        runs.sort_values("path", kind="stable", ignore_index=True),
        problems,
    )
    return Imported(tables, tuple(provenance.values()), tuple(one for i in several for one in i.irregularities))


def read_published(folder: Path, name: str = "", progress: Callable[[str], None] | None = None) -> Imported:
    """Read everything below a folder that is laid out as published curves are.

    Args:
        name: how tables cite files that are not those of a pinned commit; the folder by default.
        progress: called with a line about what is going on.

    Raises:
        UserError: nothing to read, two parts of one agent, or numbers whose meaning cannot be told.
    """
    parts, problems = find_parts(folder)
    if not parts:
        more = f" that can be read ({problems[0].path}: {problems[0].message})" if problems else ""
        raise UserError(f"no published curves below {folder}{more}: give <agent>/<task>.csv with header {HEADER}")
    builder = _Builder(name or folder.as_posix(), problems)
    for part in parts:
        if progress is not None:
            progress(f"{part.name}: {len(part.files)} file{'s' * (len(part.files) > 1)}")
        builder.add(part)
    return builder.imported()


class _Builder:
    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.name = name
        self.problems = problems
        self.evals: list[pd.DataFrame] = []
        self.runs: list[dict[str, Any]] = []
        self.provenance: list[Provenance] = []
        self.irregularities: list[Irregularity] = []

    def add(self, raw: RawPart) -> None:
        known = recognise(raw.name, list(raw.files))
        agent, obs = part_identity(raw.name)
        part = known[1] if known else Part(agent, "default", obs, "")
        place = known[0].place(raw.name) if known else f"{self.name}/{raw.name}"
        taken = [one for one in self.provenance if (one.agent, one.variant, one.obs) == _key(part)]
        if taken:
            raise UserError(f"{place} and {taken[0].source} are both {part.agent}: import them apart, or rename one")
        read = read_part(raw)
        self.problems += read.problems
        self.irregularities += read.irregularities
        self.provenance.append(
            Provenance(
                part=raw.name,
                agent=part.agent,
                variant=part.variant,
                obs=part.obs,
                runs=len(read.series),
                source=place,
                commit=known[0].commit if known else UNKNOWN,
                licence=known[0].licence if known else UNKNOWN,
                verified=known is not None,
                assumptions=tuple(read.assumptions),
            )
        )
        self.add_series(raw, part, known[0] if known else None, place, read.series)

    def add_series(self, raw: RawPart, part: Part, source: Source | None, place: str, series: list[Series]) -> None:
        clean: list[tuple[Series, Ints, Floats]] = []
        for one in series:
            try:
                env_steps, values, remarks = regular(one, raw.name)
            except UserError as error:
                cited = _cited(place, one)
                text = f"seed {one.seed}: {error}"
                self.problems.append(Problem(cited, text, "not read", part.agent))
                continue
            self.irregularities += remarks
            if len(env_steps):
                clean.append((one, env_steps, values))
        furthest: dict[str, int] = {}
        for one, env_steps, _ in clean:
            furthest[one.task] = max(furthest.get(one.task, 0), int(env_steps[-1]))
        grid = _grids(clean)
        for one, env_steps, values in clean:
            self.irregularities += _shape(one, raw.name, env_steps, furthest[one.task], grid[one.task])
            self.append(raw, part, source, place, one, env_steps, values, furthest[one.task])
        self.irregularities += _missing_seeds([one for one, _, _ in clean], raw.name)

    def append(
        self,
        raw: RawPart,
        part: Part,
        source: Source | None,
        place: str,
        one: Series,
        env_steps: Ints,
        values: Floats,
        furthest: int,
    ) -> None:
        task = tasks.get(one.task)
        versions = source.domain_versions if source else {}
        cited = _cited(place, one)
        shared = {
            "run_id": f"{part.agent}/{task.name}/seed{one.seed}-{raw.name}",
            "agent": part.agent,
            "variant": part.variant,
            "task": task.name,
            "obs": part.obs,
            "seed": one.seed,
        }
        of_return = task.metric == "return"
        nothing = np.full(len(values), np.nan)
        self.evals.append(
            pd.DataFrame(
                {
                    **shared,
                    "domain": task.domain,
                    "domain_version": versions.get(task.domain, UNKNOWN),
                    "env_steps": env_steps,
                    "agent_steps": env_steps // task.action_repeat,
                    "wall_s": np.nan,
                    "return": values if of_return else nothing,
                    "success": nothing if of_return else values,
                    "score": [task.score(value, value) for value in values.tolist()],
                    "source": cited,
                }
            )
        )
        whole = env_steps[-1] >= RAGGED * furthest
        self.runs.append(
            shared
            | {
                "hash": "",
                "state": "done" if whole else None,
                "env_steps": int(env_steps[-1]),
                "budget_env_steps": furthest,
                "commit": source.commit if source else None,
                "path": f"{cited}#seed{one.seed}",
            }
        )

    def imported(self) -> Imported:
        if not self.evals:
            said = f" ({self.problems[0].path}: {self.problems[0].message})" if self.problems else ""
            raise UserError(f"{self.name}: no row of any file can be used{said}")
        evals = pd.concat(self.evals, ignore_index=True).assign(updates=pd.NA)[list(EVALS)].astype(EVALS)
        evals = evals.sort_values(["run_id", "env_steps"], kind="stable", ignore_index=True)
        runs = frame(self.runs, RUNS).sort_values("path", kind="stable", ignore_index=True)
        tables = Tables(evals, runs, (*self.problems, *self.summary()))
        return Imported(tables, tuple(self.provenance), tuple(self.irregularities))

    def summary(self) -> Iterable[Problem]:
        """A problem for each irregularity; of the files of a pinned commit, whose irregularities are known, a count."""
        known = {one.part: one for one in self.provenance}
        counted: Counter[tuple[str, str]] = Counter()
        for one in self.irregularities:
            origin = known[one.part]
            if origin.verified:
                counted[one.part, one.kind] += 1
            else:
                kind: Literal["left out", "note"] = "left out" if one.kind in LEAVES_OUT else "note"
                yield Problem(one.place, f"{one.kind}: {one.text}", kind, origin.agent)
        for (part, kind_), count in sorted(counted.items()):
            text = f"{count} {kind_}: `bench published check` lists them"
            yield Problem(known[part].source, text, "note", known[part].agent)


def _cited(place: str, one: Series) -> str:
    return place if place.endswith(one.file) else f"{place}/{one.file}"


def _key(part: Part) -> tuple[str, str, str]:
    return part.agent, part.variant, part.obs


def _grids(clean: Sequence[tuple[Series, Ints, Floats]]) -> dict[str, int]:
    """Task -> the spacing of its evaluations: the smallest in its file."""
    grids: dict[str, int] = {}
    for one, env_steps, _ in clean:
        if len(env_steps) > 1:
            spacing = int(np.diff(env_steps).min())
            grids[one.task] = min(grids.get(one.task, spacing), spacing)
        grids.setdefault(one.task, int(env_steps[-1]) or 1)
    return grids


def _shape(one: Series, part: str, env_steps: Ints, furthest: int, grid: int) -> Iterable[Irregularity]:
    """Where a curve starts late, has holes or ends early."""
    place = (part, one.task, one.seed)
    if env_steps[0] > 0:
        yield Irregularity("late start", *place, f"first row at {env_steps[0]:,}")
    # Episodes come a little before or after the grid: only a whole missing evaluation is a hole.
    gaps = np.diff(env_steps)
    holes = gaps >= 1.9 * grid if grid >= 10_000 else np.zeros(len(gaps), dtype=bool)
    if holes.any():
        missing = int(np.round(gaps[holes] / grid).sum()) - int(holes.sum())
        widest = int(np.argmax(gaps))
        text = (
            f"{missing} evaluations in {int(holes.sum())} holes, widest {env_steps[widest]:,}-{env_steps[widest + 1]:,}"
        )
        yield Irregularity("hole", *place, text)
    if env_steps[-1] < furthest:
        kind = "ragged end" if env_steps[-1] >= RAGGED * furthest else "stopped early"
        yield Irregularity(kind, *place, f"at {env_steps[-1]:,} of {furthest:,}")


def _missing_seeds(series: Sequence[Series], part: str) -> Iterable[Irregularity]:
    seeds = {one.seed for one in series}
    there: dict[str, set[int]] = {}
    for one in series:
        there.setdefault(one.task, set()).add(one.seed)
    for task, found in sorted(there.items()):
        for seed in sorted(seeds - found):
            yield Irregularity("missing seed", part, task, seed, f"has seeds {', '.join(map(str, sorted(found)))}")


def write_published(imported: Imported, folder: Path) -> list[Path]:
    """Write the tables and `published.json` with provenance and irregularities.

    Raises:
        UserError: the folder cannot be written.
    """
    written = write_tables(imported.tables, folder)
    sidecar = {
        "parts": [asdict(one) for one in imported.provenance],
        "irregularities": [asdict(one) for one in imported.irregularities],
        "problems": [asdict(one) for one in imported.tables.problems if one.kind == "not read"],
    }
    atomic.write_json(folder / SIDECAR, sidecar)
    return [*written, folder / SIDECAR]


def read_sidecar(folder: Path) -> tuple[list[Provenance], list[Irregularity], list[Problem]]:
    """What an import said about its parts.

    Raises:
        UserError: nothing was imported there.
    """
    path = folder / SIDECAR
    if not path.exists():
        raise UserError(f"no {path}: run `bench published import` first, or give its folder")
    try:
        value = json.loads(path.read_text())
        parts = [Provenance(**{**one, "assumptions": tuple(one["assumptions"])}) for one in value["parts"]]
        problems = [Problem(**one) for one in value.get("problems", [])]
        return parts, [Irregularity(**one) for one in value["irregularities"]], problems
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): run `bench published import` again") from error
