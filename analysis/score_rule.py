"""Which evaluation a score comes from: the one rule of every table, figure and verdict.

A run has a score at S env steps where it was evaluated within `TOLERANCE` of S, and nowhere else: no score is carried
forward to steps at which the run was not evaluated. Agents are compared at steps that all of them have evaluated, and
aggregate curves are drawn on the coarsest grid that the agents share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TOLERANCE = 0.05
"""An evaluation counts at S env steps where it is less than this share of S away from S, and where the grid of the run
explains the distance: beyond its ends a run counts for half of the spacing there."""


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
class ScoreRule:
    """Where agents are compared on a task, and the score of a run there."""

    place: Callable[[Mapping[str, Sequence[RunCurve]]], int | None]
    """Agent -> its runs on a task; None where they can be compared nowhere."""
    score: Callable[[RunCurve, Ints], tuple[Floats, Ints]]
    """A run and places (points,) -> its scores there, NaN where it has none, and the env steps of the evaluations."""


def score_at(run: RunCurve, env_steps: Ints) -> Floats:
    """The score of a run at given env steps, NaN where it was not evaluated.

    Args:
        env_steps: (points,)

    Returns:
        (points,)
    """
    return evaluated_at(run, env_steps)[0]


def evaluated_at(run: RunCurve, env_steps: Ints) -> tuple[Floats, Ints]:
    """The evaluation of a run that counts at given env steps: the nearest one, the earlier of two equally near.

    Args:
        env_steps: (points,)

    Returns:
        scores: (points,), NaN where no evaluation is within the tolerance.
        at: (points,), env steps of the evaluations.
    """
    after = np.searchsorted(run.env_steps, env_steps).clip(max=len(run.env_steps) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(run.env_steps[before] - env_steps) <= np.abs(run.env_steps[after] - env_steps)
    index = np.where(nearer, before, after)
    at = run.env_steps[index]
    spacing = np.diff(run.env_steps) if len(run.env_steps) > 1 else np.array([np.inf])
    on_grid = (env_steps >= run.env_steps[0] - spacing[0] / 2) & (env_steps <= run.env_steps[-1] + spacing[-1] / 2)
    return np.where(_near(at, env_steps) & on_grid, run.scores[index], np.nan), at


def _near(at: Ints, env_steps: Ints) -> NDArray[np.bool_]:
    return (at == env_steps) | (np.abs(at - env_steps) < TOLERANCE * env_steps)


def common_env_steps(agents: Mapping[str, Sequence[RunCurve]]) -> int | None:
    """The largest env steps, above 0, at which at least half of the runs of every agent were evaluated.

    Of such steps within `TOLERANCE` of the largest, as on curves with holes, the one at which most runs of every agent
    were evaluated; and of steps as good, as on grids that nearly agree, the one nearest to the evaluations.

    Args:
        agents: agent -> its runs on one task, at least one.

    Returns:
        None where the agents were evaluated together at no step but 0.
    """
    env_steps = np.unique(np.concatenate([run.env_steps for runs in agents.values() for run in runs]))
    env_steps = env_steps[env_steps > 0]
    share = np.ones(len(env_steps))
    farthest = np.zeros(len(env_steps))
    for runs in agents.values():
        here = np.zeros(len(env_steps), dtype=np.int64)
        for run in runs:
            scores, at = evaluated_at(run, env_steps)
            there = np.isfinite(scores)
            here += there
            farthest = np.where(there, np.maximum(farthest, np.abs(at - env_steps) / env_steps), farthest)
        share = np.minimum(share, here / len(runs))
    enough = share >= 0.5
    if not enough.any():
        return None
    most = _best(env_steps, int(env_steps[enough].max()), enough, share)
    return _best(env_steps, most, share >= share[env_steps == most], -farthest)


def _best(env_steps: Ints, place: int, allowed: NDArray[np.bool_], merit: Floats) -> int:
    """Of the allowed env steps near a place the largest of those with the highest merit."""
    close = allowed & _near(env_steps, np.full_like(env_steps, place))
    return int(env_steps[close & (merit == merit[close].max())].max())


AT_ENV_STEPS = ScoreRule(common_env_steps, evaluated_at)


def score_between(run: RunCurve, seconds: Ints) -> tuple[Floats, Ints]:
    """The score of a run whose axis is a clock: on the straight line between its evaluations, NaN outside of them.

    Runs are never evaluated at the same second, so a tolerance would compare different times.

    Args:
        seconds: (points,)

    Returns:
        scores: (points,)
        at: (points,), `seconds` again.
    """
    return np.interp(seconds, run.env_steps, run.scores, left=np.nan, right=np.nan), seconds


def common_time(agents: Mapping[str, Sequence[RunCurve]]) -> int | None:
    """The most seconds, above 0, that at least half of the runs of every agent reached.

    Args:
        agents: agent -> its runs on one task over a clock, at least one.
    """
    reached = [sorted((int(run.env_steps[-1]) for run in runs), reverse=True) for runs in agents.values()]
    return min(ends[(len(ends) - 1) // 2] for ends in reached) or None


AT_TIME = ScoreRule(common_time, score_between)


def common_grid(agents: Mapping[str, Sequence[RunCurve]], last: int) -> Ints:
    """The coarsest common grid: steps of the agent that has the fewest, at which the others were evaluated too.

    Args:
        agents: agent -> its runs, at least one.
        last: env steps beyond which nothing is wanted.

    Returns:
        (points,), may be empty.
    """
    grids = []
    for runs in agents.values():
        env_steps = np.unique(np.concatenate([run.env_steps for run in runs]))
        grids.append(RunCurve("", 0, env_steps, np.zeros(len(env_steps))))
    coarsest = min(grids, key=lambda grid: int((grid.env_steps <= last).sum()))
    env_steps = coarsest.env_steps
    env_steps = env_steps[(env_steps <= last) | _near(env_steps, np.full_like(env_steps, last))]
    return env_steps[np.all([np.isfinite(score_at(grid, env_steps)) for grid in grids], axis=0)]


def curve_at(run: RunCurve, env_steps: Ints) -> Floats:
    """A run's curve for figures: straight lines between evaluations, NaN before and after them.

    Args:
        env_steps: (points,)

    Returns:
        (points,)
    """
    scores = score_at(run, env_steps)
    return np.where(np.isfinite(scores), scores, score_between(run, env_steps)[0])


def learning_curve(runs: Iterable[RunCurve]) -> tuple[Ints, Floats]:
    """The runs of one agent on one task on one axis: the steps of any of them, where at least half have a curve.

    Returns:
        env_steps: (points,)
        scores: (runs, points), of `curve_at`
    """
    runs = list(runs)
    env_steps = np.unique(np.concatenate([run.env_steps for run in runs]))
    scores = np.stack([curve_at(run, env_steps) for run in runs])
    half = 2 * np.isfinite(scores).sum(axis=0) >= len(runs)
    return env_steps[half], scores[:, half]
