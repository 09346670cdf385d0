from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from rliable import library, metrics

from analysis import statistics


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """rliable draws from numpy's global generator, whatever `random_state` it is given."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {"a": rng.uniform(0, 100, (3, 7)), "b": rng.integers(0, 4, (5, 7)) * 25.0}


def test_aggregates_equal_a_plain_computation(scores):
    table = statistics.aggregates(scores, reps=100).set_index(["agent", "metric"])["value"]
    for agent, values in scores.items():
        ordered = sorted(values.ravel())
        quarter = len(ordered) // 4
        assert table[agent, "IQM"] == pytest.approx(np.mean(ordered[quarter : len(ordered) - quarter]))
        assert table[agent, "Median"] == pytest.approx(np.median(values.mean(axis=0)))
        assert table[agent, "Mean"] == pytest.approx(values.mean())
        assert table[agent, "Optimality gap"] == pytest.approx(np.mean(np.maximum(0, 100 - values)))


def test_intervals_are_those_of_rliable(scores):
    table = statistics.aggregates({"a": scores["a"]}, reps=200, seed=3)
    with global_seed(3):
        _, expected = library.get_interval_estimates({"a": scores["a"]}, statistics.aggregate, reps=200)
    found = table.set_index("metric").loc[list(statistics.METRICS), ["low", "high"]].to_numpy().T
    np.testing.assert_allclose(found, expected["a"])


def test_numbers_repeat_and_the_global_generator_is_left_alone(scores):
    env_steps = np.array([0, 10])
    curves = {agent: np.stack([values, values + 1], axis=-1) for agent, values in scores.items()}

    def everything() -> bytes:
        tables = [
            statistics.aggregates(scores, 100),
            statistics.performance_profiles(scores, reps=100),
            statistics.improvements(scores, 100),
            statistics.sample_efficiency(env_steps, curves, 100),
        ]
        return "".join(table.to_csv() for table in tables).encode()

    np.random.seed(5)
    before = np.random.get_state()
    first = everything()
    after = np.random.get_state()
    assert before[0] == after[0]
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]
    np.random.seed(6)
    assert everything() == first


def test_interval_does_not_depend_on_the_company(scores):
    alone = statistics.aggregates({"b": scores["b"]}, 100)
    together = statistics.aggregates(scores, 100)
    pd.testing.assert_frame_equal(alone, together[together["agent"] == "b"].reset_index(drop=True))


def test_one_seed_has_no_interval(scores):
    single = {"a": scores["a"][:1], "b": scores["b"]}
    aggregates = statistics.aggregates(single, 100).set_index("agent")
    assert aggregates.loc["a", ["low", "high"]].isna().all(axis=None)
    assert aggregates.loc["b", ["low", "high"]].notna().all(axis=None)
    assert statistics.improvements(single, 100)[["low", "high"]].isna().all(axis=None)
    profiles = statistics.performance_profiles(single, reps=100).set_index("agent")
    assert profiles.loc["a", ["low", "high"]].isna().all(axis=None)
    _, low, high = statistics.mean_interval(scores["a"][:1])
    assert np.isnan(low).all()
    assert np.isnan(high).all()


@pytest.mark.parametrize("seed", range(5))
def test_probability_of_improvement_equals_rliable_with_ties(seed):
    rng = np.random.default_rng(seed)
    shape_x, shape_y = (int(rng.integers(1, 6)), 20), (int(rng.integers(1, 6)), 20)
    x, y = rng.integers(0, 4, shape_x) * 10.0, rng.integers(0, 4, shape_y) * 10.0
    y[: min(len(x), len(y)), :3] = x[: min(len(x), len(y)), :3]
    for a, b in ((x, y), (y, x), (x, x), (rng.normal(size=shape_x), rng.normal(size=shape_y))):
        expected = metrics.probability_of_improvement(a, b)
        assert statistics.probability_of_improvement(a, b) == pytest.approx(expected, abs=1e-12)


def test_improvements_name_the_better_agent_first_and_match_rliable(scores):
    better = {"a": scores["a"] - 200, "b": scores["b"], "c": scores["b"] + 5}
    table = statistics.improvements(better, 100)
    assert table[["x", "y"]].to_numpy().tolist() == [["b", "a"], ["c", "a"], ["c", "b"]]
    assert table["probability"].iloc[0] == 1.0
    with global_seed(0):
        _, expected = library.get_interval_estimates(
            {"p": [better["c"], better["b"]]},
            lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
            reps=100,
        )
    np.testing.assert_allclose(table[["low", "high"]].iloc[2], expected["p"].ravel())


def test_profile_equals_rliable(scores):
    for values in scores.values():
        expected = library.score_distributions(values, statistics.TAUS)
        np.testing.assert_allclose(statistics.profile(values, statistics.TAUS), expected, atol=1e-12)


def test_profile_interval_is_that_of_rliable(scores):
    for values in scores.values():
        table = statistics.performance_profiles({"a": values}, reps=100, seed=2)
        with global_seed(2):
            _, expected = library.create_performance_profile({"a": values}, statistics.TAUS, reps=100)
        np.testing.assert_allclose(table[["low", "high"]].to_numpy().T, expected["a"], atol=1e-12)


def test_iqm_curve_equals_rliable_at_each_point():
    values = np.random.default_rng(1).uniform(0, 100, (3, 5, 4))
    expected = [metrics.aggregate_iqm(values[..., point]) for point in range(4)]
    np.testing.assert_allclose(statistics.iqm_curve(values), expected)
    table = statistics.sample_efficiency(np.arange(4), {"a": values}, reps=100)
    np.testing.assert_allclose(table["iqm"], expected)
    assert (table["low"] <= table["iqm"]).all()
    assert (table["iqm"] <= table["high"]).all()


def test_mean_interval_is_the_percentile_bootstrap_over_runs():
    values = np.random.default_rng(2).normal(size=(4, 3))
    mean, low, high = statistics.mean_interval(values, reps=500, seed=9)
    drawn = np.random.default_rng(9).integers(4, size=(500, 4))
    expected = np.percentile([values[rows].mean(axis=0) for rows in drawn], [2.5, 97.5], axis=0)
    np.testing.assert_allclose(mean, values.mean(axis=0))
    np.testing.assert_allclose([low, high], expected)


def test_whole_benchmark_takes_seconds():
    rng = np.random.default_rng(0)
    matrices = {agent: rng.integers(0, 11, (3, 104)) * 10.0 for agent in "ab"}
    begin = time.perf_counter()
    table = statistics.improvements(matrices, reps=2000)
    assert time.perf_counter() - begin < 10
    assert table["low"].iloc[0] < table["probability"].iloc[0] < table["high"].iloc[0]


def test_no_scores_give_empty_tables():
    empty = {"a": np.zeros((0, 0)), "b": np.zeros((0, 0))}
    assert statistics.aggregates(empty).empty
    assert statistics.improvements(empty).empty
    assert statistics.performance_profiles(empty).empty
    assert statistics.sample_efficiency(np.zeros(0, dtype=np.int64), {}).empty


# Any number of seeds a task.


def test_task_aggregates_are_those_of_full_matrices():
    scores = np.random.default_rng(0).uniform(0, 100, (5, 30))
    found = statistics.task_aggregates(list(scores.T), 4000)
    table = statistics.aggregates({"a": scores}, 4000).set_index("metric")
    for name, metric in (("mean", "Mean"), ("iqm", "IQM")):
        np.testing.assert_allclose(found[name][0], table.loc[metric, "value"])
        np.testing.assert_allclose(found[name][1:], table.loc[metric, ["low", "high"]].astype(float), atol=0.6)


def test_task_improvement_is_that_of_full_matrices():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (4, 20)).astype(float), rng.integers(0, 8, (3, 20)).astype(float)
    value, low, high = statistics.task_improvement(list(x.T), list(y.T), 4000)
    assert value == pytest.approx(statistics.probability_of_improvement(x, y))
    np.testing.assert_allclose([low, high], statistics.improvement_interval(x, y, 4000), atol=0.02)


def test_uneven_seeds_weigh_as_tasks_in_the_mean_and_as_runs_in_the_iqm():
    tasks = [np.array([0.0, 0.0, 0.0, 0.0]), np.array([100.0, 50.0])]
    found = statistics.task_aggregates(tasks, 500)
    assert found["mean"][0] == 37.5
    assert found["iqm"][0] == pytest.approx(12.5)  # the middle four of 0 0 0 0 50 100
    assert found["mean"][1:] == (25, 50)
    assert np.isnan(statistics.task_aggregates([np.array([1.0]), np.array([1.0, 2.0])], 500)["mean"][1])
    assert statistics.task_improvement(tasks[::-1], tasks, 500)[0] == 0.5
