"""Aggregate statistics with their uncertainty: those of rliable (Agarwal et al. 2021), repeatable and vectorised.

Point values are rliable's own metrics. Intervals are 95 % percentile intervals of its bootstrap stratified by task, on
the very resamples that it draws from a global generator with the same seed; here the generator is local, and a resample
is how often each run is drawn, so that all of them are computed at once. Every agent is resampled from the same seed:
its interval does not depend on who is compared with it. With one run for each task there is none (rliable would give
one of zero width), and the columns `low` and `high` are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd
from rliable import metrics
from scipy.stats import trim_mean

from analysis.score_rule import Floats, Ints

REPS = 2000
"""Bootstrap resamples."""
METRICS = ("Median", "IQM", "Mean", "Optimality gap")
MAX_SCORE = 100.0
"""The best score; rliable's optimality gap takes 1 unless told."""
TAUS: Floats = np.linspace(0.0, MAX_SCORE, 101)
"""Scores at which performance profiles are drawn."""


def resamples(shapes: Sequence[tuple[int, ...]], reps: int, seed: int) -> list[Floats]:
    """How often each run is drawn in each resample, for one or several matrices that are resampled side by side.

    Agents with equal shapes share their resamples, so the last ones are kept.

    Args:
        shapes: (runs, tasks) of each matrix.

    Returns:
        For each matrix (reps, runs, tasks): for each task the counts of a resample add up to its runs.
    """
    return list(_resamples(tuple(shapes), reps, seed))


@lru_cache(maxsize=8)
def _resamples(shapes: tuple[tuple[int, ...], ...], reps: int, seed: int) -> tuple[Floats, ...]:
    generator = np.random.RandomState(seed)
    drawn: list[list[Ints]] = [[] for _ in shapes]
    for _ in range(reps):
        for one, shape in zip(drawn, shapes, strict=True):
            one.append(generator.choice(shape[0], shape))
    counts = []
    for one, (runs, _tasks) in zip(drawn, shapes, strict=True):
        index = np.stack(one)
        count = np.stack([(index == run).sum(axis=1) for run in range(runs)], axis=1).astype(float)
        count.flags.writeable = False  # it is shared
        counts.append(count)
    return tuple(counts)


def _interquartile(scores: Floats, counts: Floats) -> Floats:
    """Interquartile mean of each resample: (runs, tasks), (reps, runs, tasks) -> (reps,)."""
    order = np.argsort(scores, axis=None)
    cut = int(0.25 * scores.size)
    above = np.cumsum(counts.reshape(len(counts), -1)[:, order], axis=1)
    kept = np.diff(np.clip(above, cut, scores.size - cut), axis=1, prepend=cut)
    values: Floats = kept @ scores.ravel()[order] / (scores.size - 2 * cut)
    return values


def _aggregate_resamples(scores: Floats, counts: Floats) -> Floats:
    """The metrics of `METRICS` of each resample: (runs, tasks), (reps, runs, tasks) -> (reps, 4)."""
    means = np.einsum("krt,rt->kt", counts, scores) / len(scores)
    short = np.einsum("krt,rt->k", counts, np.maximum(MAX_SCORE - scores, 0)) / scores.size
    columns = [np.median(means, axis=1), _interquartile(scores, counts), means.mean(axis=1), short]
    return np.stack(columns, axis=1)


def aggregate(scores: Floats) -> Floats:
    """Median, IQM, mean and optimality gap of final scores.

    Args:
        scores: (runs, tasks), 0-100

    Returns:
        (4,) in the order of `METRICS`
    """
    return np.array(
        [
            metrics.aggregate_median(scores),
            metrics.aggregate_iqm(scores),
            metrics.aggregate_mean(scores),
            metrics.aggregate_optimality_gap(scores, gamma=MAX_SCORE),
        ]
    )


def iqm_curve(scores: Floats) -> Floats:
    """Interquartile mean over runs and tasks at each point: (runs, tasks, points) -> (points,)."""
    flat: Floats = trim_mean(scores.reshape(-1, scores.shape[-1]), proportiontocut=0.25, axis=0)
    return flat


def profile(scores: Floats, taus: Floats) -> Floats:
    """Share of runs with a score above each threshold: (runs, tasks), (taus,) -> (taus,)."""
    ordered = np.sort(scores, axis=None)
    return 1.0 - np.searchsorted(ordered, taus, side="right") / ordered.size


def probability_of_improvement(x: Floats, y: Floats) -> float:
    """Probability that a run of X beats a run of Y on the same task, mean over tasks; ties count half.

    Equals `rliable.metrics.probability_of_improvement`, which calls a Mann-Whitney test for each task in a loop.

    Args:
        x: (runs of X, tasks)
        y: (runs of Y, tasks)
    """
    above = np.count_nonzero(x[:, None] > y[None], axis=(0, 1))
    equal = np.count_nonzero(x[:, None] == y[None], axis=(0, 1))
    return float(np.mean(above + 0.5 * equal) / (len(x) * len(y)))


def aggregates(matrices: Mapping[str, Floats], reps: int = REPS, seed: int = 0) -> pd.DataFrame:
    """The four aggregate metrics of every agent.

    Args:
        matrices: agent -> (runs, tasks)

    Returns:
        Columns agent, metric, value, low, high, seeds, tasks.
    """
    rows = []
    for agent, scores in matrices.items():
        if scores.size == 0:
            continue
        values = aggregate(scores)
        low = high = np.full(len(METRICS), np.nan)
        if len(scores) > 1:
            [counts] = resamples([scores.shape], reps, seed)
            low, high = _percentiles(_aggregate_resamples(scores, counts))
        for index, metric in enumerate(METRICS):
            rows.append((agent, metric, values[index], low[index], high[index], *scores.shape))
    return pd.DataFrame(rows, columns=["agent", "metric", "value", "low", "high", "seeds", "tasks"])


def performance_profiles(
    matrices: Mapping[str, Floats], taus: Floats = TAUS, reps: int = REPS, seed: int = 0
) -> pd.DataFrame:
    """Share of runs above each score.

    Returns:
        Columns agent, score, share, low, high; one row for each agent and threshold.
    """
    parts = []
    for agent, scores in matrices.items():
        if scores.size == 0:
            continue
        share = profile(scores, taus)
        low = high = np.full_like(share, np.nan)
        if len(scores) > 1:
            [counts] = resamples([scores.shape], reps, seed)
            above = (scores.reshape(-1, 1) > taus).astype(float)
            low, high = _percentiles(counts.reshape(reps, -1) @ above / scores.size)
        parts.append(pd.DataFrame({"agent": agent, "score": taus, "share": share, "low": low, "high": high}))
    return _joined(parts, ["agent", "score", "share", "low", "high"])


def sample_efficiency(env_steps: Ints, scores: Mapping[str, Floats], reps: int = REPS, seed: int = 0) -> pd.DataFrame:
    """IQM over env steps; a resample draws whole runs, so it is one at every point.

    Args:
        env_steps: (points,)
        scores: agent -> (runs, tasks, points)

    Returns:
        Columns agent, env_steps, iqm, low, high.
    """
    parts = []
    for agent, values in scores.items():
        if values.size == 0:
            continue
        curve = iqm_curve(values)
        low = high = np.full_like(curve, np.nan)
        if len(values) > 1:
            [counts] = resamples([values.shape[:2]], reps, seed)
            points = [_interquartile(values[..., point], counts) for point in range(values.shape[-1])]
            low, high = _percentiles(np.stack(points, axis=1))
        parts.append(pd.DataFrame({"agent": agent, "env_steps": env_steps, "iqm": curve, "low": low, "high": high}))
    return _joined(parts, ["agent", "env_steps", "iqm", "low", "high"])


def improvements(matrices: Mapping[str, Floats], reps: int = REPS, seed: int = 0) -> pd.DataFrame:
    """Probability of improvement for every pair of agents, X the one that more often wins.

    Returns:
        Columns x, y, probability, low, high; there is no interval where either agent has one seed.
    """
    rows = []
    for x, y in combinations([agent for agent, scores in matrices.items() if scores.size], 2):
        if probability_of_improvement(matrices[x], matrices[y]) < 0.5:
            x, y = y, x
        value = probability_of_improvement(matrices[x], matrices[y])
        low = high = float("nan")
        if min(len(matrices[x]), len(matrices[y])) > 1:
            low, high = improvement_interval(matrices[x], matrices[y], reps, seed)
        rows.append((x, y, value, low, high))
    return pd.DataFrame(rows, columns=["x", "y", "probability", "low", "high"])


def improvement_interval(x: Floats, y: Floats, reps: int = REPS, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of `probability_of_improvement`; both agents are resampled, each on its own."""
    of_x, of_y = resamples([x.shape, y.shape], reps, seed)
    wins = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])  # (runs of X, runs of Y, tasks)
    won = np.einsum("kit,ijt->kjt", of_x, wins)
    values = np.einsum("kjt,kjt->k", won, of_y) / wins.size
    low, high = _percentiles(values)
    return float(low), float(high)


def task_aggregates(tasks: Sequence[Floats], reps: int = REPS, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Mean over tasks and IQM over runs with bootstrap intervals stratified by task, of any number of seeds a task.

    With the same number of seeds on every task, the values are those of `aggregate`.

    Args:
        tasks: for each task the scores of its seeds, (seeds,)

    Returns:
        "mean" and "iqm" -> (value, low, high); low and high are NaN where a task has one seed.
    """
    share = np.concatenate([np.full(len(scores), 1 / (len(scores) * len(tasks))) for scores in tasks])
    runs = np.concatenate(tasks)
    values = {"mean": float(runs @ share), "iqm": float(trim_mean(runs, proportiontocut=0.25))}
    if min(map(len, tasks)) < 2:
        return {name: (value, float("nan"), float("nan")) for name, value in values.items()}
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([_drawn(scores, reps, rng) for scores in tasks], axis=1)
    spread = {"mean": drawn @ share, "iqm": trim_mean(drawn, proportiontocut=0.25, axis=1)}
    ends = {name: _percentiles(values) for name, values in spread.items()}
    return {name: (value, float(ends[name][0]), float(ends[name][1])) for name, value in values.items()}


def task_improvement(
    x: Sequence[Floats], y: Sequence[Floats], reps: int = REPS, seed: int = 0
) -> tuple[float, float, float]:
    """Probability of improvement with its bootstrap interval, of any number of seeds a task.

    Args:
        x: for each task the scores of X's seeds, (seeds,)
        y: the same for Y, in the same order of tasks

    Returns:
        value, low, high; low and high are NaN where a task has one seed.
    """
    pairs = list(zip(x, y, strict=True))
    value = float(np.mean([_wins(one[None], other[None])[0] for one, other in pairs]))
    if min(len(scores) for pair in pairs for scores in pair) < 2:
        return value, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    won = [_wins(_drawn(one, reps, rng), _drawn(other, reps, rng)) for one, other in pairs]
    low, high = _percentiles(np.mean(won, axis=0))
    return value, float(low), float(high)


def _drawn(scores: Floats, reps: int, rng: np.random.Generator) -> Floats:
    """Resamples of a task's seeds: (seeds,) -> (reps, seeds)."""
    return scores[rng.integers(len(scores), size=(reps, len(scores)))]


def _wins(x: Floats, y: Floats) -> Floats:
    """Share of pairs that X wins, ties half: (reps, seeds of X), (reps, seeds of Y) -> (reps,)."""
    above, equal = x[:, :, None] > y[:, None], x[:, :, None] == y[:, None]
    wins: Floats = (above + 0.5 * equal).mean(axis=(1, 2))
    return wins


def mean_interval(scores: Floats, reps: int = REPS, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Mean over the runs that have a score, with its percentile bootstrap interval, at each point.

    Runs are resampled whole. This is the stratified bootstrap for a single task, without its Python loop.

    Args:
        scores: (runs, points), NaN where a run has no score

    Returns:
        mean, low, high: (points,); low and high are NaN with one run.
    """
    mean, low, high = (np.full(scores.shape[1], np.nan) for _ in range(3))
    sets, of_point = np.unique(np.isfinite(scores), axis=1, return_inverse=True)
    for place, there in enumerate(sets.T):
        points = of_point.ravel() == place
        some = scores[np.ix_(there, points)]
        mean[points] = some.mean(axis=0)
        if len(some) > 1:
            drawn = np.random.default_rng(seed).integers(len(some), size=(reps, len(some)))
            counts = np.stack([(drawn == run).sum(axis=1) for run in range(len(some))], axis=1)  # (reps, runs)
            low[points], high[points] = np.percentile(counts @ some / len(some), [2.5, 97.5], axis=0)
    return mean, low, high


def mean_curve(scores: Floats, reps: int = REPS, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Mean over runs and tasks at each point, with the interval of the bootstrap stratified by task.

    Args:
        scores: (runs, tasks, points)

    Returns:
        mean, low, high: (points,); low and high are NaN with one run.
    """
    mean = scores.mean(axis=(0, 1))
    if len(scores) < 2:
        nothing = np.full_like(mean, np.nan)
        return mean, nothing, nothing
    [counts] = resamples([scores.shape[:2]], reps, seed)
    per_run = scores.reshape(-1, scores.shape[-1])
    low, high = _percentiles(counts.reshape(reps, -1) @ per_run / len(per_run))
    return mean, low, high


def _percentiles(values: Floats) -> tuple[Floats, Floats]:
    """Ends of the 95 % percentile interval over resamples: (reps, …) -> (…), (…)."""
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return low, high


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
