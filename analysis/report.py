"""One self-contained HTML page about a folder of results, with its figures as PNG, PDF and CSV beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis import figures, offline, report_parts, statistics
from analysis.alignment import Comparison, Note, align, label, labels, mixes_obs, sample_efficiency_scores
from analysis.figures import Drawn
from analysis.tables import Configuration, Tables
from bench import atomic
from bench.errors import UserError

STATES = ("done", "running", "pending", "stale", "failed", "unknown")


@dataclass(frozen=True)
class Section:
    """Figures under one heading."""

    heading: str
    figures: tuple[Drawn, ...]


def write_report(
    tables: Tables,
    out: Path,
    source: str,
    reps: int = statistics.REPS,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of some tables; the same tables give the same bytes.

    Args:
        out: the HTML file; figures go to the folder `<its name>_files` beside it.
        source: what the report is about, as the user named it.
        reps: bootstrap resamples.
        progress: called with a line about what is going on.

    Returns:
        `out`.

    Raises:
        UserError: no run at all, or a place that cannot be written.
    """
    if tables.runs.empty and tables.evals.empty:
        raise UserError(f"{source} holds no run that can be read: {_first_problem(tables)}")
    say = progress or (lambda line: None)
    say(f"{len(tables.runs)} runs, {len(tables.evals)} evaluations")
    comparison = align(tables.evals)
    folder = out.with_name(f"{out.stem}_files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():  # an earlier report may have had more pages
            if old.name.startswith((*figures.NAMES, offline.NAME)):
                old.unlink()
        sections, aggregates, panels = _draw(comparison, folder, reps, say)
        learnt_offline = offline.evaluations(tables)
        offline_finals = offline.final_scores(learnt_offline, reps)
        if not learnt_offline.empty:
            say("runs that learn offline")
            drawn = offline.draw(offline.score_curves(learnt_offline, reps), folder)
            sections.append(Section("Several tasks, offline", (drawn,)))
            figures.write_csv(offline_finals, folder, "offline_final_scores")
        finals = final_scores(comparison, reps)
        figures.write_csv(finals, folder, "final_scores")
        extra = {
            "panels": panels,
            "by_group": report_parts.group_rows(report_parts.group_aggregates(comparison, reps)),
            "legend": report_parts.legend(comparison.agents),
            "panel": {"width": report_parts.WIDTH, "height": report_parts.HEIGHT, "margin": report_parts.MARGIN},
            "offline_finals": report_parts.offline_rows(offline_finals),
            "cost": report_parts.cost(tables),
            "videos": report_parts.videos(tables, out),
        }
        atomic.write_text(
            out, _render(tables, comparison, sections, aggregates, finals, source, folder.name, reps, extra)
        )
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}): choose another place with -o") from error
    return out


def _first_problem(tables: Tables) -> str:
    return tables.problems[0].message if tables.problems else "the tables are empty"


def _draw(
    comparison: Comparison, folder: Path, reps: int, say: Callable[[str], None]
) -> tuple[list[Section], pd.DataFrame, list[report_parts.Panel]]:
    aggregates = statistics.aggregates(comparison.matrices, reps)
    if not comparison.tasks:
        return [], aggregates, []
    sections = []
    if comparison.common_tasks:
        say("aggregate statistics")
        drawn = [figures.draw_intervals(comparison, aggregates, folder)]
        efficiency = statistics.sample_efficiency(*sample_efficiency_scores(comparison), reps)
        if not efficiency.empty:
            drawn.append(figures.draw_sample_efficiency(comparison, efficiency, folder))
        profiles = statistics.performance_profiles(comparison.matrices, reps=reps)
        drawn.append(figures.draw_profile(comparison, profiles, folder))
        improvements = statistics.improvements(comparison.matrices, reps)
        if not improvements.empty:
            drawn.append(figures.draw_improvement(comparison, improvements, folder))
        sections.append(Section("Aggregates", tuple(drawn)))
    say("learning curves")
    curves = figures.learning_curve_table(comparison, reps)
    pages = figures.draw_learning_curves(comparison, curves, folder, say)
    shown = pages if len(pages) == 1 else []  # many pages stay beside the report; the small panels show all tasks
    sections.append(Section("Learning curves", tuple(shown)))
    return sections, aggregates, report_parts.small_multiples(comparison, curves) if len(pages) > 1 else []


def final_scores(comparison: Comparison, reps: int = statistics.REPS) -> pd.DataFrame:
    """The score of every agent on every task at the compared env steps, over all its seeds.

    Returns:
        Columns task, domain, env_steps, agent, score, low, high, seeds; no row where an agent has no score.
    """
    rows = []
    for (task, agent), group in comparison.finals.groupby(["task", "agent"], sort=True):
        mean, low, high = statistics.mean_interval(group[["score"]].to_numpy(), reps)
        shared = (task, comparison.domains[task], comparison.final_env_steps[task], agent)
        rows.append((*shared, mean[0], low[0], high[0], len(group)))
    return pd.DataFrame(rows, columns=["task", "domain", "env_steps", "agent", "score", "low", "high", "seeds"])


def _render(
    tables: Tables,
    comparison: Comparison,
    sections: list[Section],
    aggregates: pd.DataFrame,
    finals: pd.DataFrame,
    source: str,
    files: str,
    reps: int,
    extra: Mapping[str, Any],
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda value: "" if pd.isna(value) else f"{int(value):,}"
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template("report.html").render(
        source=source,
        files=files,
        reps=reps,
        comparison=comparison,
        summary=_summary(tables, comparison),
        sections=sections,
        aggregates=_aggregate_rows(aggregates),
        metrics=statistics.METRICS,
        finals=_final_rows(comparison, finals),
        notes=[*_matrix_notes(tables), *comparison.notes, *comparison.surplus],
        problems=tables.problems,
        unfinished=_unfinished(tables),
        configurations=_configurations(tables),
        provenance=_provenance(tables.runs),
        **extra,
    )


def _summary(tables: Tables, comparison: Comparison) -> dict[str, Any]:
    runs = tables.runs
    states = runs["state"].fillna("unknown").value_counts()
    return {
        "runs": len(runs),
        "states": [(state, int(states[state])) for state in STATES if state in states],
        "missing": len(_missing(tables)),
        "agents": comparison.agents,
        "tasks": len(comparison.tasks) or runs["task"].nunique(),
        "seeds": ", ".join(str(seed) for seed in sorted(set(runs["seed"]) | set(tables.evals["seed"]))),
        "evaluations": len(tables.evals),
        "wall_h": float(runs["wall_s"].fillna(0).sum()) / 3600,
        "gpu_h": float(runs["gpu_h"].fillna(0).sum()),
    }


def _missing(tables: Tables) -> tuple[str, ...]:
    """Runs that would complete agents × tasks × seeds of what is there; those that learn offline are no such matrix."""
    runs = tables.runs[tables.runs["budget_updates"].isna()]
    names = labels(runs, mixes_obs(tables.evals))
    there = set(zip(names, runs["task"], runs["seed"], strict=True))
    return tuple(
        f"{agent} · {task} · seed {seed}"
        for agent in sorted(set(names))
        for task in sorted(set(runs["task"]))
        for seed in sorted(set(runs["seed"]))
        if (agent, task, seed) not in there
    )


def _matrix_notes(tables: Tables) -> list[Note]:
    notes = []
    missing = _missing(tables)
    if missing:
        notes.append(Note("runs missing from the matrix of agents × tasks × seeds found here", missing))
    silent = tables.runs[~tables.runs["run_id"].isin(tables.evals["run_id"])]
    if len(silent):
        notes.append(Note("runs without any evaluation yet: in no figure", tuple(silent["path"])))
    return notes


def _aggregate_rows(aggregates: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for agent, group in aggregates.groupby("agent", sort=True):
        cells = {row.metric: _cell(row.value, row.low, row.high) for row in group.itertuples()}
        first = group.iloc[0]
        rows.append({"agent": agent, "seeds": int(first["seeds"]), "tasks": int(first["tasks"]), "cells": cells})
    return rows


def _final_rows(comparison: Comparison, finals: pd.DataFrame) -> list[dict[str, Any]]:
    """For the template: a row for each task, a cell for each agent; the best mean of a task is marked."""
    rows = []
    for task, group in finals.groupby("task", sort=True):
        cells: dict[str, dict[str, Any] | None] = dict.fromkeys(comparison.agents)
        best = group["score"].max()
        for row in group.itertuples():
            best_here = len(group) > 1 and row.score == best
            cells[row.agent] = _cell(row.score, row.low, row.high) | {"seeds": row.seeds, "best": best_here}
        first = group.iloc[0]
        rows.append({"task": task, "domain": first["domain"], "env_steps": int(first["env_steps"]), "cells": cells})
    return rows


def _cell(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": float(value), "interval": None if pd.isna(low) else (float(low), float(high))}


def _unfinished(tables: Tables) -> list[dict[str, Any]]:
    """Every run that is not done: failed ones first, with their error."""
    runs = tables.runs
    rows = []
    for row in runs[runs["state"].fillna("unknown") != "done"].to_dict("records"):
        failure = tables.failures.get(row["path"])
        state = "unknown" if pd.isna(row["state"]) else row["state"]
        learns_offline = not pd.isna(row["budget_updates"])
        rows.append(
            {**row, "state": state, "failure": failure if state == "failed" else None, "offline": learns_offline}
        )
    return sorted(rows, key=lambda row: (row["state"] != "failed", row["state"], row["path"]))


def _configurations(tables: Tables) -> list[dict[str, Any]]:
    """Every agent's settings; several for one name are a warning, unless each belongs to tasks of its own."""
    mixed = mixes_obs(tables.evals)
    by_name: dict[str, list[Configuration]] = {}
    for configuration in tables.configurations:
        name = label(configuration.agent, configuration.variant, configuration.obs if mixed else "")
        by_name.setdefault(name, []).append(configuration)
    found = []
    for name, group in sorted(by_name.items()):
        settings = [_settings(configuration) for configuration in group]
        keys = list(dict.fromkeys(key for values in settings for key in values))
        rows = [(key, [values.get(key, "–") for values in settings]) for key in keys]
        differing = [key for key, values in rows if len(set(values)) > 1]
        found.append(
            {
                "name": name,
                "runs": [item.runs for item in group],
                "tasks": [item.tasks for item in group],
                "rows": rows,
                "differing": differing,
                "by_task": _disjoint([item.tasks for item in group]),
            }
        )
    return found


def _disjoint(groups: Sequence[Sequence[str]]) -> bool:
    """Whether no task is in two groups; unknown tasks (tables of before they were kept) may be in any."""
    names = [name for group in groups for name in group]
    return len(set(names)) == len(names) and (len(groups) == 1 or all(groups))


def _settings(configuration: Configuration) -> dict[str, str]:
    shared = {
        "obs": configuration.obs,
        "num_envs": configuration.num_envs,
        "eval_episodes": configuration.eval_episodes,
    }
    values: Mapping[str, Any] = shared | dict(configuration.hyperparameters)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _provenance(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Where the runs' last attempts come from: one entry for each commit, host, GPU and set of versions."""
    rows = []
    columns = ["commit", "dirty", "host", "gpu", "versions"]
    started = runs[runs["attempts"].fillna(0) > 0]
    for values, group in started.groupby(columns, dropna=False, sort=True):
        entry = {key: None if pd.isna(value) else value for key, value in zip(columns, values, strict=True)}
        entry["versions"] = json.loads(entry["versions"]) if entry["versions"] else {}
        times = [time for time in (group["started"].min(), group["ended"].max()) if not pd.isna(time)]
        rows.append({**entry, "runs": len(group), "times": times})
    return rows
