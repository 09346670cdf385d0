from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.alignment import RunCurve, align, label, learning_curve, sample_efficiency_scores, score_at
from bench.schema import EVALS


def notes_about(comparison, words):
    return [note for note in comparison.notes if words in note.text]


def test_score_at_is_the_last_evaluation_at_or_before():
    run = RunCurve("r", 1, np.array([100, 200, 400]), np.array([1.0, 2.0, 4.0]))
    at = score_at(run, np.array([0, 99, 100, 250, 399, 400, 900]))
    np.testing.assert_array_equal(at, [np.nan, np.nan, 1.0, 2.0, 2.0, 4.0, 4.0])


def test_final_scores_are_taken_where_every_agent_has_a_seed(make_evals):
    evals = make_evals(
        {
            ("a", "t", 1): {0: 0, 100: 10, 200: 20, 300: 30},
            ("a", "t", 2): {0: 0, 100: 11},
            ("b", "t", 1): {0: 0, 100: 50},
            ("b", "t", 2): {0: 0, 250: 60},
        }
    )
    comparison = align(evals)
    assert comparison.final_env_steps == {"t": 250}
    np.testing.assert_array_equal(comparison.matrices["a"], [[20], [11]])
    np.testing.assert_array_equal(comparison.matrices["b"], [[50], [60]])
    [early] = notes_about(comparison, "stopped before")
    assert early.items == ("a · t · seed 2: 100 of 250", "b · t · seed 1: 100 of 250")


def test_surplus_seeds_are_named_and_kept_in_the_curves(make_evals):
    curve = {100: 5.0}
    runs = {("a", "t", seed): curve for seed in (3, 1, 2)} | {("a", "u", seed): curve for seed in (7, 8)}
    comparison = align(make_evals(runs))
    assert comparison.matrices["a"].shape == (2, 2)
    [surplus] = notes_about(comparison, "beyond")
    assert surplus.items == ("a · t · seed 3",)
    assert len(comparison.curves["a", "t"]) == 3
    assert int(comparison.finals["in_aggregates"].sum()) == 4


def test_task_missing_for_one_agent_leaves_the_common_ones(make_evals):
    comparison = align(make_evals({("a", "t", 1): {1: 1}, ("a", "u", 1): {1: 2}, ("b", "t", 1): {1: 3}}))
    assert comparison.common_tasks == ("t",)
    assert comparison.tasks == ("t", "u")
    [note] = notes_about(comparison, "1 of 2 tasks")
    assert note.items == ("u: no score from b",)
    np.testing.assert_array_equal(comparison.matrices["a"], [[1.0]])


def test_no_common_task_gives_empty_matrices(make_evals):
    comparison = align(make_evals({("a", "t", 1): {1: 1}, ("b", "u", 1): {1: 3}}))
    assert comparison.common_tasks == ()
    assert all(matrix.size == 0 for matrix in comparison.matrices.values())
    assert sample_efficiency_scores(comparison)[1] == {}


def test_scores_that_are_no_numbers_are_left_out_and_named(make_evals):
    comparison = align(make_evals({("a", "t", 1): {100: 5.0, 200: np.nan}, ("a", "t", 2): {100: np.inf}}))
    np.testing.assert_array_equal(comparison.matrices["a"], [[5.0]])
    [note] = notes_about(comparison, "not a number")
    assert note.text.startswith("2 evaluations")
    assert note.items == ("a/t/seed1-0 (1)", "a/t/seed2-0 (1)")


def test_run_that_begins_after_the_compared_env_steps_is_left_out(make_evals):
    comparison = align(make_evals({("a", "t", 1): {100: 1}, ("b", "t", 1): {100: 2}, ("b", "t", 2): {200: 3}}))
    np.testing.assert_array_equal(comparison.matrices["b"], [[2.0]])
    [note] = notes_about(comparison, "without an evaluation at or before")
    assert note.items == ("b · t · seed 2",)
    env_steps, scores = sample_efficiency_scores(comparison)
    assert env_steps.tolist() == [100]
    np.testing.assert_array_equal(scores["b"], [[[2.0]]])


def test_two_settings_under_one_name_are_not_averaged(make_evals):
    evals = make_evals({("a", "t", 1): {100: 1}})
    other = make_evals({("a", "t", 1): {100: 7, 200: 8}}).assign(run_id="a/t/seed1-9")
    comparison = align(pd.concat([evals, other], ignore_index=True).astype(EVALS))
    np.testing.assert_array_equal(comparison.matrices["a"], [[8.0]])
    [note] = notes_about(comparison, "other settings")
    assert note.items == ("a/t/seed1-0 (a)",)


def test_repeated_evaluations_count_once(make_evals):
    evals = make_evals({("a", "t", 1): {100: 1}})
    comparison = align(pd.concat([evals, evals.assign(score=3.0)], ignore_index=True).astype(EVALS))
    np.testing.assert_array_equal(comparison.matrices["a"], [[3.0]])
    assert notes_about(comparison, "given twice")


def test_versions_of_a_domain_are_said(make_evals):
    evals = make_evals({("a", "t", 1): {100: 1}, ("b", "t", 1): {100: 1}})
    evals.loc[evals["agent"] == "b", "domain_version"] = "y"
    [note] = notes_about(align(evals), "2 versions")
    assert set(note.items) == {"x", "y"}


def test_labels():
    assert label("sac", "default") == "sac"
    assert label("sac", "big") == "sac (big)"


def test_kinds_of_observation_are_told_apart(make_evals):
    evals = make_evals({("a", "t", 1): {100: 1}, ("a", "t", 2): {100: 1}})
    evals.loc[evals["seed"] == 2, "obs"] = "rgb"
    assert align(evals).agents == ("a (rgb)", "a (state)")


def test_learning_curve_keeps_the_last_score_of_a_short_run(make_evals):
    comparison = align(make_evals({("a", "t", 1): {0: 0, 100: 1, 200: 2}, ("a", "t", 2): {50: 5}}))
    env_steps, scores = learning_curve(comparison.curves["a", "t"])
    assert env_steps.tolist() == [50, 100, 200]
    np.testing.assert_array_equal(scores, [[0, 1, 2], [5, 5, 5]])


def test_sample_efficiency_axis_is_where_all_have_scores(make_evals):
    runs = {
        ("a", "t", 1): {0: 0, 100: 1, 200: 2},
        ("a", "u", 1): {50: 3, 100: 4, 400: 5},
        ("b", "t", 1): {0: 6, 100: 7, 200: 8},
        ("b", "u", 1): {0: 9, 100: 10, 200: 11, 300: 12},
    }
    env_steps, scores = sample_efficiency_scores(align(make_evals(runs)))
    assert env_steps.tolist() == [50, 100, 200]
    np.testing.assert_array_equal(scores["a"], [[[0, 1, 2], [3, 4, 4]]])
    np.testing.assert_array_equal(scores["b"], [[[6, 7, 8], [9, 10, 11]]])


@pytest.mark.parametrize("points", [2, 5])
def test_sample_efficiency_axis_is_thinned_with_its_ends_kept(make_evals, points):
    comparison = align(make_evals({("a", "t", 1): {at: 1.0 for at in range(0, 1000, 10)}}))
    env_steps, scores = sample_efficiency_scores(comparison, points)
    assert len(env_steps) == points
    assert (env_steps[0], env_steps[-1]) == (0, 990)
    assert scores["a"].shape == (1, 1, points)
