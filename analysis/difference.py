"""Differences between two sets of training seeds, with intervals that stay honest for two or three seeds.

A percentile bootstrap of three seeds is too narrow to decide anything. Decisions are made with Welch's t interval: each
task adds the variance of its seeds' mean on either side, and the degrees of freedom follow Welch and Satterthwaite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from analysis.score_rule import Floats

MIN_SD = 1.0
"""Points of score. A task whose seeds agree to the digit (all 100) is not known to better than this."""


@dataclass(frozen=True)
class Difference:
    """The mean over tasks of (mean of X's seeds - mean of Y's seeds)."""

    value: float
    se: float
    """Standard error; NaN where a side has one seed on some task."""
    df: float
    """Degrees of freedom of `se`."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval; NaN where there is no standard error."""
        half = float(student.ppf(0.5 + level / 2, self.df)) * self.se
        return self.value - half, self.value + half

    def upper(self, alpha: float) -> float:
        """One-sided upper bound: the true difference lies above it with probability `alpha`."""
        return self.value + float(student.ppf(1 - alpha, self.df)) * self.se

    def detectable(self, alpha: float, power: float) -> float:
        """The drop that a one-sided test at `alpha` finds with a given power, in points."""
        return float(student.ppf(1 - alpha, self.df) + student.ppf(power, self.df)) * self.se


def difference(x: Sequence[Floats], y: Sequence[Floats]) -> Difference:
    """Compare two sides task by task.

    Args:
        x: for each task the scores of X's seeds, (seeds of X on this task,)
        y: the same for Y, in the same order of tasks
    """
    pairs = list(zip(x, y, strict=True))
    value = float(np.mean([one.mean() - other.mean() for one, other in pairs]))
    if min(min(len(one), len(other)) for one, other in pairs) < 2:
        return Difference(value, float("nan"), float("nan"))
    terms = [
        (max(float(scores.var(ddof=1)), MIN_SD**2) / len(scores), len(scores) - 1) for pair in pairs for scores in pair
    ]
    total = sum(variance for variance, _ in terms)
    df = total**2 / sum(variance**2 / free for variance, free in terms)
    return Difference(value, float(np.sqrt(total)) / len(pairs), df)
