"""The two collected tables and what goes with them: written, read back and checked against `bench.schema`.

A folder of collected tables holds `evals.parquet`, `runs.parquet`, the same two as CSV for other tools, and
`tables.json` with the schema version, the problems met while collecting, every agent's configuration and the errors of
failed runs. The Parquet files also carry the schema version in their metadata.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench import atomic
from bench.errors import UserError
from bench.schema import ADDED_IN_2, EVALS, READABLE_VERSIONS, RUNS, SCHEMA_VERSION

VERSION_KEY = b"tdmpc2_bench.schema_version"
SIDECAR = "tables.json"
TABLES = "tables"
"""The folder inside a results folder where `bench collect` writes unless told."""
SCHEMAS = {"evals": EVALS, "runs": RUNS}


@dataclass(frozen=True)
class Problem:
    """Something in the collected folder that could not be used as it stands."""

    path: str
    message: str
    kind: Literal["not read", "left out", "note"] = "left out"
    """Results that could not be read at all; rows or runs left out; something to know where nothing is left out."""
    agent: str = ""
    """Whose results they are; empty where that is unknown."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.path}: {self.message}"


@dataclass(frozen=True)
class Configuration:
    """All that was set for some runs of an agent, and how many runs that was."""

    agent: str
    variant: str
    obs: str
    hyperparameters: Mapping[str, Any]
    num_envs: int
    eval_episodes: int
    runs: int
    tasks: tuple[str, ...] = ()
    """Where it was used; an agent may have settings by the task."""


@dataclass(frozen=True)
class Failure:
    """The error that stopped a run."""

    error_class: str
    message: str
    traceback: str


@dataclass(frozen=True)
class Tables:
    """Everything the analysis knows: the only thing that crosses from runs to statistics and figures."""

    evals: pd.DataFrame
    """One row for each evaluation; columns of `bench.schema.EVALS`."""
    runs: pd.DataFrame
    """One row for each run directory; columns of `bench.schema.RUNS`."""
    problems: tuple[Problem, ...] = ()
    configurations: tuple[Configuration, ...] = ()
    failures: Mapping[str, Failure] = field(default_factory=dict)
    """By the `path` of the run."""


def frame(rows: list[dict[str, Any]], schema: Mapping[str, str]) -> pd.DataFrame:
    """Rows as a table with exactly the columns and types of `schema`."""
    return pd.DataFrame(rows, columns=list(schema)).astype(dict(schema))


def write_tables(tables: Tables, folder: Path) -> list[Path]:
    """Write the tables as CSV and Parquet with their sidecar; the same tables give the same bytes.

    Returns:
        The files written.

    Raises:
        UserError: the folder cannot be written.
    """
    sidecar = {
        "schema_version": SCHEMA_VERSION,
        "tables": {name: dict(schema) for name, schema in SCHEMAS.items()},
        "problems": [asdict(problem) for problem in tables.problems],
        "configurations": [asdict(configuration) for configuration in tables.configurations],
        "failures": {path: asdict(failure) for path, failure in sorted(tables.failures.items())},
    }
    written = []
    sha256: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _digests(folder)
        for name, table in (("evals", tables.evals), ("runs", tables.runs)):
            csv, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
            data = _parquet(table)
            sha256[parquet.name] = _sha256(data)
            atomic.write_bytes(parquet, data)
            # Text takes seconds for large tables: the file that was made from these very bytes stays, if it is whole.
            on_disk = _sha256(csv.read_bytes()) if csv.exists() else None
            if on_disk is None or [sha256[parquet.name], on_disk] != [before.get(parquet.name), before.get(csv.name)]:
                text = table.to_csv(index=False, lineterminator="\n").encode()
                atomic.write_bytes(csv, text)
                on_disk = _sha256(text)
            sha256[csv.name] = on_disk
            written += [csv, parquet]
        atomic.write_json(folder / SIDECAR, sidecar | {"sha256": sha256})
    except OSError as error:
        raise UserError(f"cannot write tables to {folder}: {error.strerror}; choose another folder with -o") from error
    return [*written, folder / SIDECAR]


def _digests(folder: Path) -> dict[str, Any]:
    """SHA-256 of the files that `write_tables` left in a folder, by name; empty where that is not known."""
    try:
        return dict(json.loads((folder / SIDECAR).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parquet(table: pd.DataFrame) -> bytes:
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), VERSION_KEY: str(SCHEMA_VERSION).encode()})
    buffer = io.BytesIO()
    pq.write_table(arrow, buffer)
    return buffer.getvalue()


def load_tables(path: Path, progress: Callable[[str], None] | None = None) -> Tables:
    """The tables of a folder of run directories (collected now) or of a folder of collected tables (read).

    Args:
        path: a folder; it counts as collected tables where it holds `tables.json`, `evals.parquet` or `evals.csv`.
        progress: called with a line about what is going on.

    Raises:
        UserError: no such folder, nothing in it, or tables with other columns or of another version.
    """
    if not path.is_dir():
        raise UserError(f"no folder {path}: give a results folder, or one that `bench collect` wrote")
    if any((path / name).exists() for name in (SIDECAR, "evals.parquet", "evals.csv")):
        return _read_folder(path)
    from analysis.collect import collect
    from analysis.collect_cache import Cache

    return collect(path, progress, Cache.load(path / TABLES))


def _read_folder(folder: Path) -> Tables:
    sidecar: dict[str, Any] = {}
    if (folder / SIDECAR).exists():
        try:
            sidecar = json.loads((folder / SIDECAR).read_text())
            check_version(sidecar.get("schema_version"), folder / SIDECAR)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{folder / SIDECAR} is damaged ({error}): run `bench collect` again") from error
    evals, runs = (_read_table(folder, name, bool(sidecar)) for name in ("evals", "runs"))
    try:
        return Tables(
            evals=evals,
            runs=runs,
            problems=tuple(Problem(**problem) for problem in sidecar.get("problems", [])),
            configurations=tuple(
                Configuration(**value | {"tasks": tuple(value.get("tasks", ()))})
                for value in sidecar.get("configurations", [])
            ),
            failures={path: Failure(**value) for path, value in sidecar.get("failures", {}).items()},
        )
    except (TypeError, AttributeError) as error:
        raise UserError(f"{folder / SIDECAR} is damaged ({error}): run `bench collect` again") from error


def _read_table(folder: Path, name: str, version_known: bool) -> pd.DataFrame:
    parquet, csv = folder / f"{name}.parquet", folder / f"{name}.csv"
    if parquet.exists():
        try:
            arrow = pq.read_table(parquet)
        except pa.ArrowException as error:
            raise UserError(f"{parquet} is damaged ({error}): run `bench collect` again") from error
        check_version((arrow.schema.metadata or {}).get(VERSION_KEY, b"").decode() or None, parquet)
        return checked(arrow.to_pandas(), SCHEMAS[name], parquet)
    if csv.exists():
        if not version_known:
            raise UserError(f"{csv} has no {SIDECAR} beside it, which says its version: run `bench collect` again")
        text = pd.read_csv(csv, dtype="string", keep_default_na=False, na_values=[""])
        return checked(text, SCHEMAS[name], csv)
    raise UserError(f"{folder} has no {name} table ({parquet.name} or {csv.name}): run `bench collect` again")


def check_version(version: object, where: Path) -> None:
    """Refuse a table of a version that cannot be read.

    Raises:
        UserError: `version` is none of `bench.schema.READABLE_VERSIONS`.
    """
    known = tuple(map(str, READABLE_VERSIONS))
    if str(version) not in known:
        raise UserError(
            f"{where} has schema version {version}, this code reads {' and '.join(known)}: collect the run "
            "directories again"
        )


def checked(table: pd.DataFrame, schema: Mapping[str, str], where: Path) -> pd.DataFrame:
    """`table` with the columns of `schema` in their order and types; those of version 2 may be missing.

    Raises:
        UserError: a column is missing or unknown, or holds a value of another type.
    """
    added = [column for column in ADDED_IN_2 if column in schema and column not in table.columns]
    table = table.assign(**dict.fromkeys(added, pd.NA))
    missing = [column for column in schema if column not in table.columns]
    extra = [column for column in table.columns if column not in schema]
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(extra)}"] * bool(extra)
        raise UserError(f"{where} {' and '.join(said)}: its columns must be {', '.join(schema)}")
    table = table[list(schema)]
    for column, kind in schema.items():
        try:
            values = table[column]
            if kind == "boolean" and values.dtype == "string":
                values = values.map({"True": True, "False": False})
            elif kind != "string" and values.dtype == "string":
                values = pd.to_numeric(values.astype("object"))
            table = table.assign(**{column: values.astype(kind)})
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: column {column} is not {kind} ({error})") from error
    return table
