"""From the long table of evaluations to curves and to the full (runs × tasks) matrices that rliable wants.

The rules, the same everywhere; whatever they leave out is a `Note`:
- Agents are compared on a task at the largest env steps at which at least half of the runs of every agent were
  evaluated, within the tolerance of `analysis.score_rule`. Runs that were not evaluated there are left out, and so are
  tasks without such a step.
- Aggregates are over the tasks that all agents have. Of each agent they use the same number of seeds on every task, the
  lowest ones; the surplus is named.
- A score that is not a number is left out and named, and so are runs that learn offline (see `analysis.offline`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.score_rule import AT_ENV_STEPS, TOLERANCE, Floats, Ints, RunCurve, ScoreRule, common_grid, curve_at


@dataclass(frozen=True)
class Note:
    """What a rule left out or mended: one sentence, and the runs or tasks that it is about."""

    text: str
    items: tuple[str, ...] = ()


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
    """Task -> env steps at which its agents are compared; without tasks whose agents have no such step in common."""
    curves: dict[tuple[str, str], tuple[RunCurve, ...]]
    """(agent, task) -> its runs, by seed."""
    finals: pd.DataFrame
    """One row for each run with a score where it is compared: agent, task, domain, seed, env_steps (of the evaluation),
    score, in_aggregates, run_id."""
    matrices: dict[str, Floats]
    """Agent -> final scores (runs, common tasks); no columns where no task is common."""
    notes: tuple[Note, ...]
    surplus: tuple[Note, ...]
    """Runs with a score that `matrices` lack, which have the same number of seeds on every task."""

    def seeds(self, agent: str) -> int:
        """Runs on each task behind an agent's aggregates."""
        return len(self.matrices[agent])

    def used(self) -> dict[str, list[tuple[RunCurve, ...]]]:
        """Agent -> for each common task the runs that count in the aggregates."""
        chosen = set(self.finals[self.finals["in_aggregates"]]["run_id"])
        return {
            agent: [
                tuple(run for run in self.curves[agent, task] if run.run_id in chosen) for task in self.common_tasks
            ]
            for agent in self.agents
        }


def align(evals: pd.DataFrame, rule: ScoreRule = AT_ENV_STEPS) -> Comparison:
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
    final_env_steps = _places(agents, tasks, curves, rule, notes)
    finals = _finals(curves, final_env_steps, domains, rule, notes)
    common = _common_tasks(agents, tasks, finals, notes)
    surplus: list[Note] = []
    matrices = _matrices(agents, common, finals, surplus)
    return Comparison(
        *(agents, tasks, common, domains, final_env_steps, curves, finals, matrices), tuple(notes), tuple(surplus)
    )


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


def _places(
    agents: Sequence[str],
    tasks: Sequence[str],
    curves: Mapping[tuple[str, str], tuple[RunCurve, ...]],
    rule: ScoreRule,
    notes: list[Note],
) -> dict[str, int]:
    """Task -> where its agents are compared."""
    places, nowhere = {}, []
    for task in tasks:
        runs = {agent: curves[agent, task] for agent in agents if (agent, task) in curves}
        place = rule.place(runs)
        if place is None:
            nowhere.append(f"{task} ({'; '.join(f'{agent} {_extent(of)}' for agent, of in runs.items())})")
        else:
            places[task] = place
    if nowhere:
        text = f"tasks whose agents were evaluated at no common step above 0 (tolerance {TOLERANCE:.0%}): not compared"
        notes.append(Note(text, tuple(nowhere)))
    return places


def _extent(runs: Sequence[RunCurve]) -> str:
    """Where runs were evaluated after step 0, in words."""
    env_steps = np.unique(np.concatenate([run.env_steps for run in runs]))
    env_steps = env_steps[env_steps > 0]
    if len(env_steps) <= 3:
        return "at " + (" and ".join(f"{at:,}" for at in env_steps) or "0 only")
    return f"{len(env_steps)} times from {env_steps[0]:,} to {env_steps[-1]:,}"


def _finals(
    curves: Mapping[tuple[str, str], tuple[RunCurve, ...]],
    final_env_steps: Mapping[str, int],
    domains: Mapping[str, str],
    rule: ScoreRule,
    notes: list[Note],
) -> pd.DataFrame:
    rows, absent, beside = [], [], []
    for (agent, task), runs in sorted(curves.items()):
        if task not in final_env_steps:
            continue
        place = final_env_steps[task]
        for run in runs:
            [score], [at] = rule.score(run, np.array([place]))
            name = f"{agent} · {task} · seed {run.seed}"
            if np.isnan(score):
                absent.append(f"{name}: {_extent([run])}, compared at {place:,}")
                continue
            if at != place:
                beside.append(f"{name}: {at:,} for {place:,}")
            rows.append((agent, task, domains[task], run.seed, int(at), float(score), run.run_id))
    if absent:
        text = (
            "runs without an evaluation where their task is compared: left out (if they failed, the scores are those "
            "of the seeds that did not)"
        )
        notes.append(Note(text, tuple(absent)))
    if beside:
        notes.append(Note(f"scores of evaluations beside the compared step, within {TOLERANCE:.0%}", tuple(beside)))
    return pd.DataFrame(rows, columns=["agent", "task", "domain", "seed", "env_steps", "score", "run_id"])


def _common_tasks(
    agents: tuple[str, ...], tasks: tuple[str, ...], finals: pd.DataFrame, notes: list[Note]
) -> tuple[str, ...]:
    have = {agent: set(finals[finals["agent"] == agent]["task"]) for agent in agents}
    common = tuple(task for task in tasks if all(task in have[agent] for agent in agents))
    if len(common) < len(tasks):
        items = tuple(
            f"{task}: no score from {', '.join(agent for agent in agents if task not in have[agent])}"
            for task in tasks
            if any(task in have[agent] for agent in agents) and task not in common
        )
        text = f"aggregates are over the {len(common)} of {len(tasks)} tasks that all agents have; left out of them"
        if items:
            notes.append(Note(text, items))
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


def sample_efficiency_scores(comparison: Comparison, max_points: int = 41) -> tuple[Ints, dict[str, Floats]]:
    """Scores of the runs behind the aggregates on the coarsest grid that the agents share, one axis for all tasks.

    Args:
        max_points: evenly spread evaluations are taken where there are more.

    Returns:
        env_steps: (points,), up to the smallest compared env steps of a task, where every run has a curve; empty where
            no task is common or there are fewer than two such steps.
        scores: agent -> (runs, tasks, points)
    """
    if not comparison.common_tasks:
        return np.zeros(0, dtype=np.int64), {}
    used = comparison.used()
    last = min(comparison.final_env_steps[task] for task in comparison.common_tasks)
    env_steps = common_grid({agent: [run for row in rows for run in row] for agent, rows in used.items()}, last)
    scores = {
        agent: np.stack([np.stack([curve_at(run, env_steps) for run in row]) for row in rows], axis=1)
        for agent, rows in used.items()
    }
    there = np.flatnonzero(np.all([np.isfinite(values).all(axis=(0, 1)) for values in scores.values()], axis=0))
    if len(there) < 2:
        return np.zeros(0, dtype=np.int64), {}
    if len(there) > max_points:
        there = there[np.unique(np.linspace(0, len(there) - 1, max_points).round().astype(int))]
    return env_steps[there], {agent: values[..., there] for agent, values in scores.items()}
