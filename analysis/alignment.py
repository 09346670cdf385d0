"""From the long table of evaluations to curves and to the full (runs × tasks) matrices that rliable wants.

The rules, the same everywhere; whatever they leave out is a `Note`:
- The score of a run at S env steps is that of its last evaluation at or before S. A run that stopped earlier keeps its
  last score and is named.
- Final scores of a task are taken at the largest env-step count that every compared agent has reached on it with at
  least one seed.
- Aggregates are over the tasks that all agents have. Of each agent they use the same number of seeds on every task, the
  lowest ones; the surplus is named.
- A score that is not a number is left out and named, and so are runs that learn offline (see `analysis.offline`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Note:
    """What a rule left out or mended: one sentence, and the runs or tasks that it is about."""

    text: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunCurve:
    """The evaluations of one run with a score, in order of env steps."""

    run_id: str
    seed: int
    env_steps: Ints
    """(evaluations,)"""
    scores: Floats
    """(evaluations,), 0-100"""


@dataclass(frozen=True)
class Comparison:
    """Agents side by side on the same tasks at the same env steps."""

    agents: tuple[str, ...]
    tasks: tuple[str, ...]
    """Every task that any agent has a score on."""
    common_tasks: tuple[str, ...]
    """Those that all agents have: the columns of `matrices`."""
    domains: dict[str, str]
    """Task -> domain."""
    final_env_steps: dict[str, int]
    """Task -> env steps at which final scores are taken."""
    curves: dict[tuple[str, str], tuple[RunCurve, ...]]
    """(agent, task) -> its runs, by seed."""
    finals: pd.DataFrame
    """One row for each run: agent, task, domain, seed, env_steps (of the evaluation), score, in_aggregates, run_id."""
    matrices: dict[str, Floats]
    """Agent -> final scores (runs, common tasks); no columns where no task is common."""
    notes: tuple[Note, ...]

    def seeds(self, agent: str) -> int:
        """Runs on each task behind an agent's aggregates."""
        return len(self.matrices[agent])

    def used(self, agent: str, task: str) -> tuple[RunCurve, ...]:
        """The runs of a common task that count in the aggregates."""
        final = self.final_env_steps[task]
        return tuple(run for run in self.curves[agent, task] if run.env_steps[0] <= final)[: self.seeds(agent)]


def score_at(run: RunCurve, env_steps: Ints) -> Floats:
    """The score of a run at given env steps: the last evaluation at or before, NaN before the first.

    Args:
        env_steps: (points,)

    Returns:
        (points,)
    """
    index = np.searchsorted(run.env_steps, env_steps, side="right") - 1
    return np.where(index >= 0, run.scores[np.maximum(index, 0)], np.nan)


def align(evals: pd.DataFrame) -> Comparison:
    """Compare all agents of an `evals` table by the rules of this module; runs that learn offline have no env steps."""
    notes: list[Note] = []
    offline = evals["updates"].notna()
    if offline.any():
        text = "runs that learn offline, over updates: not among what is compared over env steps"
        notes.append(Note(text, tuple(sorted(evals[offline]["run_id"].unique()))))
        evals = evals[~offline]
    table = _labelled(evals, notes)
    curves = _curves(table, notes)
    agents = tuple(sorted({agent for agent, _ in curves}))
    silent = sorted(set(labels(evals, mixes_obs(evals))) - set(agents))
    if silent:
        notes.append(Note("agents without a single score that is a number: left out", tuple(silent)))
    tasks = tuple(sorted({task for _, task in curves}))
    domains = dict(zip(table["task"].tolist(), table["domain"].tolist(), strict=True))
    final_env_steps = {
        task: min(
            max(int(run.env_steps[-1]) for run in curves[agent, task]) for agent in agents if (agent, task) in curves
        )
        for task in tasks
    }
    finals = _finals(curves, final_env_steps, domains, notes)
    common = _common_tasks(agents, tasks, finals, notes)
    matrices = _matrices(agents, common, finals, notes)
    return Comparison(agents, tasks, common, domains, final_env_steps, curves, finals, matrices, tuple(notes))


def label(agent: str, variant: str, obs: str = "") -> str:
    """How an agent is called in figures and tables: `agent`, or `agent (variant)` where it is not the default."""
    said = [part for part in (variant if variant != "default" else "", obs) if part]
    return f"{agent} ({', '.join(said)})" if said else agent


def labels(table: pd.DataFrame, with_obs: bool) -> list[str]:
    """The label of each row of `evals` or `runs`; says the kind of observation where a comparison mixes them."""
    rows = zip(table["agent"], table["variant"], table["obs"], strict=True)
    return [label(agent, variant, obs if with_obs else "") for agent, variant, obs in rows]


def mixes_obs(evals: pd.DataFrame) -> bool:
    """Whether a table holds several kinds of observation, so that labels must tell them apart."""
    return bool(evals["obs"].nunique() > 1)


def _labelled(evals: pd.DataFrame, notes: list[Note]) -> pd.DataFrame:
    """`evals` with the column `label`, without scores that are not numbers."""
    table = evals.assign(label=labels(evals, mixes_obs(evals)))
    versions = table.groupby("domain")["domain_version"].unique()
    for domain, found in versions.items():
        if len(found) > 1:
            notes.append(Note(f"{domain} was simulated in {len(found)} versions, which need not agree", tuple(found)))
    finite = np.isfinite(table["score"].to_numpy(dtype=float))
    if not finite.all():
        bad = table[~finite].groupby("run_id", sort=True).size()
        text = f"{int((~finite).sum())} evaluations have a score that is not a number: left out"
        notes.append(Note(text, tuple(f"{run} ({count})" for run, count in bad.items())))
    return table[finite]


def _curves(table: pd.DataFrame, notes: list[Note]) -> dict[tuple[str, str], tuple[RunCurve, ...]]:
    """Every run as a curve; of several runs with one label, task and seed the one that went furthest."""
    by_seed: dict[tuple[str, str, int], list[RunCurve]] = {}
    repeated = []
    for (name, task, seed, run_id), rows in table.groupby(["label", "task", "seed", "run_id"], sort=True):
        rows = rows.sort_values("env_steps", kind="stable")
        once = rows.drop_duplicates("env_steps", keep="last")
        if len(once) < len(rows):
            repeated.append(f"{run_id} ({len(rows) - len(once)})")
        curve = RunCurve(run_id, int(seed), once["env_steps"].to_numpy("int64"), once["score"].to_numpy("float64"))
        by_seed.setdefault((name, task, int(seed)), []).append(curve)
    if repeated:
        notes.append(Note("evaluations given twice at the same env steps: the last counts", tuple(repeated)))
    curves: dict[tuple[str, str], tuple[RunCurve, ...]] = {}
    left_out = []
    for (name, task, _seed), runs in by_seed.items():
        runs.sort(key=lambda run: (-int(run.env_steps[-1]), run.run_id))
        left_out += [f"{run.run_id} ({name})" for run in runs[1:]]
        curves[name, task] = (*curves.get((name, task), ()), runs[0])
    if left_out:
        text = (
            "runs with the agent, variant, task and seed of another run but other settings: left out for the one that "
            "went furthest; give them a variant of their own to see both"
        )
        notes.append(Note(text, tuple(left_out)))
    return curves


def _finals(
    curves: dict[tuple[str, str], tuple[RunCurve, ...]],
    final_env_steps: dict[str, int],
    domains: dict[str, str],
    notes: list[Note],
) -> pd.DataFrame:
    rows = []
    for (agent, task), runs in sorted(curves.items()):
        for run in runs:
            before = run.env_steps[run.env_steps <= final_env_steps[task]]
            rows.append(
                {
                    "agent": agent,
                    "task": task,
                    "domain": domains[task],
                    "seed": run.seed,
                    "env_steps": int(before[-1]) if len(before) else -1,
                    "last_env_steps": int(run.env_steps[-1]),
                    "score": float(score_at(run, np.array([final_env_steps[task]]))[0]),
                    "run_id": run.run_id,
                }
            )
    columns = ["agent", "task", "domain", "seed", "env_steps", "last_env_steps", "score", "run_id"]
    finals = pd.DataFrame(rows, columns=columns)
    final = finals["task"].map(final_env_steps)
    early = finals[finals["last_env_steps"] < final]
    if len(early):
        items = (
            f"{row.agent} · {row.task} · seed {row.seed}: {row.last_env_steps:,} of {final_env_steps[row.task]:,}"
            for row in early.itertuples()
        )
        notes.append(Note("runs that stopped before the compared env steps: their last score is kept", tuple(items)))
    late = finals[finals["env_steps"] < 0]
    if len(late):
        text = "runs without an evaluation at or before the compared env steps: left out"
        notes.append(Note(text, _names(late)))
    return finals[finals["env_steps"] >= 0].drop(columns="last_env_steps").reset_index(drop=True)


def _common_tasks(
    agents: tuple[str, ...], tasks: tuple[str, ...], finals: pd.DataFrame, notes: list[Note]
) -> tuple[str, ...]:
    have = {agent: set(finals[finals["agent"] == agent]["task"]) for agent in agents}
    common = tuple(task for task in tasks if all(task in have[agent] for agent in agents))
    if len(common) < len(tasks):
        items = (
            f"{task}: no score from {', '.join(agent for agent in agents if task not in have[agent])}"
            for task in tasks
            if task not in common
        )
        text = f"aggregates are over the {len(common)} of {len(tasks)} tasks that all agents have; left out of them"
        notes.append(Note(text, tuple(items)))
    return common


def _matrices(
    agents: tuple[str, ...], common: tuple[str, ...], finals: pd.DataFrame, notes: list[Note]
) -> dict[str, Floats]:
    """Full matrices (runs, tasks); adds the column `in_aggregates` to `finals`."""
    finals["in_aggregates"] = False
    matrices: dict[str, Floats] = {}
    for agent in agents:
        mine = finals[(finals["agent"] == agent) & finals["task"].isin(common)].sort_values(["task", "seed"])
        place = mine.groupby("task").cumcount()
        count = int(mine.groupby("task").size().min()) if len(mine) else 0
        chosen = mine[place < count]
        finals.loc[chosen.index, "in_aggregates"] = True
        matrices[agent] = chosen["score"].to_numpy("float64").reshape(len(common), count).T
        surplus = mine[place >= count]
        if len(surplus):
            text = f"{agent} has {count} seed{'s' * (count != 1)} on every task: those beyond count in the curves only"
            notes.append(Note(text, _names(surplus)))
    return matrices


def _names(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(f"{row.agent} · {row.task} · seed {row.seed}" for row in rows.itertuples())


def learning_curve(runs: Iterable[RunCurve]) -> tuple[Ints, Floats]:
    """The runs of one agent on one task on one axis: every env-step count at which any of them was evaluated.

    Returns:
        env_steps: (points,), from the latest first evaluation on, so that every run has a score.
        scores: (runs, points); a run that stopped keeps its last score.
    """
    runs = list(runs)
    start = max(int(run.env_steps[0]) for run in runs)
    env_steps = np.unique(np.concatenate([run.env_steps for run in runs]))
    env_steps = env_steps[env_steps >= start]
    return env_steps, np.stack([score_at(run, env_steps) for run in runs])


def sample_efficiency_scores(comparison: Comparison, max_points: int = 41) -> tuple[Ints, dict[str, Floats]]:
    """Scores of the runs behind the aggregates over one axis of env steps for all tasks.

    The axis goes from the latest first evaluation of any of these runs to the smallest compared env-step count of any
    common task: within it every run has a score on every task.

    Args:
        max_points: evenly spread evaluations are taken where there are more.

    Returns:
        env_steps: (points,), empty where no task is common or no such stretch exists.
        scores: agent -> (runs, tasks, points)
    """
    if not comparison.common_tasks:
        return np.zeros(0, dtype=np.int64), {}
    used = {agent: [comparison.used(agent, task) for task in comparison.common_tasks] for agent in comparison.agents}
    runs = [run for rows in used.values() for row in rows for run in row]
    first = max(int(run.env_steps[0]) for run in runs)
    last = min(comparison.final_env_steps[task] for task in comparison.common_tasks)
    env_steps = np.unique(np.concatenate([run.env_steps for run in runs]))
    env_steps = env_steps[(env_steps >= first) & (env_steps <= last)]
    if len(env_steps) > max_points:
        env_steps = env_steps[np.unique(np.linspace(0, len(env_steps) - 1, max_points).round().astype(int))]
    scores = {
        agent: np.stack([np.stack([score_at(run, env_steps) for run in row]) for row in rows], axis=1)
        for agent, rows in used.items()
    }
    return env_steps, scores
