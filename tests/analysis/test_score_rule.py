from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.alignment import align, sample_efficiency_scores
from analysis.compare import compare
from analysis.regress import regress
from analysis.score_rule import (
    RunCurve,
    common_env_steps,
    common_grid,
    common_time,
    curve_at,
    learning_curve,
    score_at,
    score_between,
)
from analysis.sides import Side, named
from bench.schema import RUNS


def run(curve: dict[int, float], seed: int = 1) -> RunCurve:
    return RunCurve(f"r{seed}", seed, np.array(list(curve)), np.array(list(curve.values()), dtype=float))


def at(*env_steps: int) -> RunCurve:
    return run(dict.fromkeys(env_steps, 1.0))


def test_a_score_is_that_of_an_evaluation_within_the_tolerance():
    curve = run({0: 0.0, 1000: 1.0, 2000: 2.0})
    steps = np.array([0, 1, 950, 953, 1000, 1052, 1053, 1500, 1905, 2105, 2106, 9000])
    expected = [0, np.nan, np.nan, 1, 1, 1, np.nan, np.nan, 2, 2, np.nan, np.nan]
    np.testing.assert_array_equal(score_at(curve, steps), expected)


def test_of_two_evaluations_the_nearer_counts_and_of_equals_the_earlier():
    curve = run({1000: 1.0, 1010: 2.0})
    np.testing.assert_array_equal(score_at(curve, np.array([1004, 1005, 1006])), [1, 1, 2])


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (range(0, 50_001, 10_000), range(0, 500_001, 100_000), None),  # published curves begin at 100k
        (range(0, 100_001, 10_000), range(0, 500_001, 100_000), 100_000),
        (range(0, 190_001, 10_000), range(0, 500_001, 100_000), 100_000),
        (range(0, 200_001, 10_000), range(0, 500_001, 100_000), 200_000),
        (range(0, 200_001, 5_000), range(0, 500_001, 200_000), 200_000),
        ([0, 99_840, 199_680], [0, 100_000, 200_000], 200_000),
        ([0, 96_000, 97_000, 100_000], [0, 96_000], 96_000),  # not the newer score of one against the older
        ([0, 30_000, 60_000], [0, 40_000, 80_000], None),
        ([0], [0], None),
        ([0], [0, 100], None),
    ],
)
def test_agents_are_compared_at_the_largest_common_step(mine, theirs, expected):
    assert common_env_steps({"a": [at(*mine)], "b": [at(*theirs)]}) == expected
    assert common_env_steps({"b": [at(*theirs)], "a": [at(*mine)]}) == expected


def test_a_run_that_stopped_is_not_evaluated_beyond_its_grid():
    stopped = at(*range(0, 97_001, 1_000))
    there = np.isfinite(score_at(stopped, np.array([97_000, 97_500, 97_501, 100_000])))
    assert there.tolist() == [True, True, False, False]
    runs = [at(*range(0, 200_001, 1_000)), stopped]
    assert common_env_steps({"a": runs, "b": runs}) == 200_000


def test_half_of_the_runs_of_every_agent_decide():
    long, short, begun = at(0, 100, 200, 300), at(0, 100), at(0)
    assert common_env_steps({"a": [long, short], "b": [long]}) == 300
    assert common_env_steps({"a": [long, short, short], "b": [long]}) == 100
    assert common_env_steps({"a": [long, long, begun], "b": [long]}) == 300
    assert common_env_steps({"a": [begun, begun, long], "b": [long]}) is None


def test_equal_time_is_on_the_line_between_evaluations():
    np.testing.assert_array_equal(
        score_between(run({0: 0.0, 100: 10.0}), np.array([0, 25, 100, 101]))[0], [0, 2.5, 10, np.nan]
    )
    assert common_time({"a": [at(0, 100), at(0, 50), at(0, 80)], "b": [at(0, 90)]}) == 80
    assert common_time({"a": [at(0)], "b": [at(0, 90)]}) is None


def test_a_common_grid_is_the_coarsest():
    fine, coarse = [at(*range(0, 501, 10))], [at(0, 200, 400), at(100, 300, 500, 600)]
    assert common_grid({"a": fine, "b": coarse}, 500).tolist() == [0, 100, 200, 300, 400, 500]
    assert common_grid({"a": fine, "b": coarse}, 250).tolist() == [0, 100, 200]
    assert common_grid({"a": [at(0, 30, 60, 90, 120)], "b": [at(0, 40, 80, 120)]}, 120).tolist() == [0, 120]


def test_holes_of_published_curves_lose_no_seed():
    runs = [at(0, 100, 200, 3_700, 3_800, 3_900), at(0, 100, 3_600, 3_700, 3_800), at(0, 200, 3_800, 3_900)]
    assert common_env_steps({"a": runs, "b": [at(*range(0, 4_001, 100))]}) == 3_800


def test_a_curve_is_straight_between_evaluations_and_ends_with_them():
    curve = run({100: 1.0, 200: 3.0})
    np.testing.assert_array_equal(curve_at(curve, np.array([0, 100, 150, 200, 300])), [np.nan, 1, 2, 3, np.nan])


def test_a_learning_curve_goes_on_while_half_of_the_runs_do():
    runs = [run({0: 0, 100: 1, 200: 2, 300: 3}, 1), run({0: 4, 100: 5}, 2), run({0: 6, 100: 7, 200: 8}, 3)]
    env_steps, scores = learning_curve(runs)
    assert env_steps.tolist() == [0, 100, 200]
    np.testing.assert_array_equal(scores, [[0, 1, 2], [4, 5, np.nan], [6, 7, 8]])


@settings(max_examples=60, deadline=None)
@given(
    spacing=st.integers(1, 20_000),
    every=st.integers(2, 9),
    lengths=st.lists(st.integers(0, 100), min_size=3, max_size=6),
    seed=st.integers(0, 2**31),
    slope=st.floats(-100, 100),
)
def test_a_curve_is_never_told_apart_from_itself_on_a_coarser_grid(make_evals, spacing, every, lengths, seed, slope):
    """Steep curves of runs of any length: each coarser run has every `every`-th evaluation of the finer one."""
    rng = np.random.default_rng(seed)
    fine = {
        ("a", "walker-walk", number): {
            place * spacing: float(slope * place + rng.normal(0, 1)) for place in range(every + length + 1)
        }
        for number, length in enumerate(lengths, 1)
    }
    coarse = {run: dict(list(curve.items())[::every]) for run, curve in fine.items()}
    evals = pd.concat([named(make_evals(fine), "fine"), named(make_evals(coarse), "coarse")], ignore_index=True)
    compared = compare("fine", evals, {}, 100)
    assert compared.tasks["difference"].tolist() == [0.0]
    assert set(compared.groups["difference"]) == {0.0}
    assert not any("scores" in verdict for verdict in compared.verdicts)
    env_steps, scores = sample_efficiency_scores(align(evals))
    if len(env_steps):
        np.testing.assert_array_equal(scores["fine"], scores["coarse"])
    if len(compared.scores) >= 4:
        sides = (Side(make_evals(one), pd.DataFrame(columns=list(RUNS))) for one in (coarse, fine))
        [answer] = regress(*sides)
        assert answer.difference == 0
