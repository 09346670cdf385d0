from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.alignment import align, label, sample_efficiency_scores
from bench.schema import EVALS


def notes_about(comparison, words):
    return [note for note in comparison.notes if words in note.text]


def test_final_scores_are_taken_where_every_agent_was_evaluated(make_evals):
    evals = make_evals(
        {
            ("a", "t", 1): {0: 0, 100: 10, 200: 20, 300: 30},
            ("a", "t", 2): {0: 0, 100: 11},
            ("b", "t", 1): {0: 0, 100: 50},
            ("b", "t", 2): {0: 0, 250: 60},
        }
    )
    comparison = align(evals)
    assert comparison.final_env_steps == {"t": 100}
    np.testing.assert_array_equal(comparison.matrices["a"], [[10], [11]])
    np.testing.assert_array_equal(comparison.matrices["b"], [[50]])
    [absent] = notes_about(comparison, "without an evaluation where their task is compared")
    assert absent.items == ("b · t · seed 2: at 250, compared at 100",)


def test_evaluations_beside_the_compared_step_are_named(make_evals):
    comparison = align(make_evals({("a", "t", 1): {99_840: 1.0}, ("b", "t", 1): {100_000: 2.0}}))
    assert comparison.finals.set_index("agent")["env_steps"].to_dict() == {"a": 99_840, "b": 100_000}
    [beside] = notes_about(comparison, "beside the compared step")
    assert beside.items == ("a · t · seed 1: 99,840 for 100,000",)


def test_a_task_without_a_common_step_is_left_out_by_name(make_evals):
    comparison = align(
        make_evals(
            {
                ("a", "t", 1): {0: 0, 10: 5, 50: 10},
                ("b", "t", 1): {0: 0, 100: 50},
                ("a", "u", 1): {100: 1.0},
                ("b", "u", 1): {100: 2.0},
                ("a", "v", 1): {0: 1.0},
                ("b", "v", 1): {0: 2.0},
            }
        )
    )
    assert comparison.common_tasks == ("u",)
    [note] = notes_about(comparison, "no common step above 0")
    assert note.items == ("t (a at 10 and 50; b at 100)", "v (a at 0 only; b at 0 only)")


def test_surplus_seeds_are_named_and_kept_in_the_curves(make_evals):
    curve = {100: 5.0}
    runs = {("a", "t", seed): curve for seed in (3, 1, 2)} | {("a", "u", seed): curve for seed in (7, 8)}
    comparison = align(make_evals(runs))
    assert comparison.matrices["a"].shape == (2, 2)
    [surplus] = comparison.surplus
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


def test_sample_efficiency_is_on_the_coarsest_grid_of_all(make_evals):
    runs = {
        ("a", "t", 1): {0: 0, 100: 1, 200: 2},
        ("a", "u", 1): {0: 2, 50: 3, 100: 4, 400: 5},
        ("b", "t", 1): {0: 6, 100: 7, 150: 0, 200: 8},
        ("b", "u", 1): {0: 9, 100: 10, 200: 11, 400: 12},
    }
    env_steps, scores = sample_efficiency_scores(align(make_evals(runs)))
    assert env_steps.tolist() == [0, 100, 200]
    np.testing.assert_allclose(scores["a"], [[[0, 1, 2], [2, 4, 4 + 1 / 3]]])
    np.testing.assert_array_equal(scores["b"], [[[6, 7, 8], [9, 10, 11]]])


def test_no_sample_efficiency_without_two_common_steps(make_evals):
    env_steps, scores = sample_efficiency_scores(
        align(make_evals({("a", "t", 1): {0: 1, 9: 2}, ("b", "t", 1): {9: 3}}))
    )
    assert (env_steps.size, scores) == (0, {})


@pytest.mark.parametrize("points", [2, 5])
def test_sample_efficiency_axis_is_thinned_with_its_ends_kept(make_evals, points):
    comparison = align(make_evals({("a", "t", 1): {at: 1.0 for at in range(0, 1000, 10)}}))
    env_steps, scores = sample_efficiency_scores(comparison, points)
    assert len(env_steps) == points
    assert (env_steps[0], env_steps[-1]) == (0, 990)
    assert scores["a"].shape == (1, 1, points)
