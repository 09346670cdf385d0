"""Aggregate statistics with their uncertainty, through rliable (Agarwal et al. 2021), repeatable.

rliable resamples with numpy's global generator and ignores its own `random_state`; `seeded` seeds that generator for
one call and puts it back. Every agent is resampled from the same seed, so its interval does not depend on who is
compared with it. Intervals are 95 % percentile intervals of a bootstrap stratified by task; with one run for each task
there is none (rliable would give one of zero width), and the columns `low` and `high` are NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import pandas as pd
from rliable import library, metrics
from scipy.stats import trim_mean

from analysis.alignment import Floats, Ints

REPS = 2000
"""Bootstrap resamples."""
METRICS = ("Median", "IQM", "Mean", "Optimality gap")
MAX_SCORE = 100.0
"""The best score; rliable's optimality gap takes 1 unless told."""
TAUS: Floats = np.linspace(0.0, MAX_SCORE, 101)
"""Scores at which performance profiles are drawn."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator for a block, then restore it as it was."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


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
        low, high = _interval(scores, aggregate, values, reps, seed)
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
        if len(scores) > 1:
            with seeded(seed):
                _, intervals = library.create_performance_profile(
                    {agent: scores}, taus, custom_profile_func=profile, reps=reps
                )
            low, high = intervals[agent]
        else:
            low = high = np.full_like(share, np.nan)
        parts.append(pd.DataFrame({"agent": agent, "score": taus, "share": share, "low": low, "high": high}))
    return _joined(parts, ["agent", "score", "share", "low", "high"])


def sample_efficiency(env_steps: Ints, scores: Mapping[str, Floats], reps: int = REPS, seed: int = 0) -> pd.DataFrame:
    """IQM over env steps.

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
        low, high = _interval(values, iqm_curve, curve, reps, seed)
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
            with seeded(seed):
                _, intervals = library.get_interval_estimates(
                    {"pair": [matrices[x], matrices[y]]},
                    lambda a, b: np.array([probability_of_improvement(a, b)]),
                    reps=reps,
                )
            low, high = intervals["pair"].ravel()
        rows.append((x, y, value, low, high))
    return pd.DataFrame(rows, columns=["x", "y", "probability", "low", "high"])


def mean_interval(scores: Floats, reps: int = REPS, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Mean over runs with its percentile bootstrap interval at each point.

    Runs are resampled whole. This is the stratified bootstrap for a single task, without its Python loop.

    Args:
        scores: (runs, points)

    Returns:
        mean, low, high: (points,); low and high are NaN with one run.
    """
    mean = scores.mean(axis=0)
    if len(scores) < 2:
        nothing = np.full_like(mean, np.nan)
        return mean, nothing, nothing
    drawn = np.random.default_rng(seed).integers(len(scores), size=(reps, len(scores)))
    counts = np.stack([(drawn == run).sum(axis=1) for run in range(len(scores))], axis=1)  # (reps, runs)
    low, high = np.percentile(counts @ scores / len(scores), [2.5, 97.5], axis=0)
    return mean, low, high


def _interval(scores: Floats, statistic: object, values: Floats, reps: int, seed: int) -> tuple[Floats, Floats]:
    """Bootstrap interval of a vector statistic over (runs, tasks, …); NaN with one run."""
    if len(scores) < 2:
        return np.full_like(values, np.nan), np.full_like(values, np.nan)
    with seeded(seed):
        _, intervals = library.get_interval_estimates({"agent": scores}, statistic, reps=reps)
    low, high = intervals["agent"]
    return low, high


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
