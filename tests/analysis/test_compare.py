from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner

from analysis.cli import app
from analysis.compare import compare, verdict
from analysis.compare_text import as_markdown, write_compared
from analysis.difference import Difference, difference
from analysis.regress import regress, regression_lines
from analysis.sides import Side, gather, load_side, placed_finals
from analysis.tables import VERSION_KEY, frame
from bench.errors import UserError
from bench.schema import EVALS, RUNS

REPS = 100


def side(evals):
    return Side(evals, frame([], RUNS))


def scores(agent, by_task, env_steps=100):
    return {
        (agent, task, seed): {0: 0.0, env_steps: float(value)}
        for task, values in by_task.items()
        for seed, value in enumerate(values, 1)
    }


# Differences.


def test_difference_of_one_task_is_welchs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(60, 10, 4), rng.normal(40, 20, 3)
    gap = difference([x], [y])
    expected = stats.ttest_ind(x, y, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert gap.value == pytest.approx(x.mean() - y.mean())
    assert gap.df == pytest.approx(expected.df)
    assert gap.interval() == pytest.approx((low, high))


def test_interval_over_tasks_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    sds = rng.uniform(2, 30, 12)
    covered = 0
    for _ in range(1000):
        x = [rng.normal(50, sd, 3) for sd in sds]
        y = [rng.normal(47, sd, 3) for sd in sds]
        low, high = difference(x, y).interval()
        covered += low <= 3 <= high
    assert 0.93 <= covered / 1000 <= 0.985


def test_seeds_that_agree_are_not_certain():
    low, high = difference([np.full(3, 100.0)], [np.full(3, 100.0)]).interval()
    assert low < -0.5
    assert high > 0.5


def test_one_seed_has_no_interval():
    gap = difference([np.array([50.0])], [np.array([40.0, 41.0])])
    assert gap.value == 9.5
    assert np.isnan(gap.interval()).all()


@pytest.mark.parametrize(
    ("value", "seeds", "words"),
    [
        (10, (3, 3), "scores higher"),
        (-10, (3, 3), "scores lower"),
        (1, (3, 3), "do not tell them apart"),
        (10, (2, 3), "no difference is claimed"),
        (10, (1, 3), "cannot tell a difference from chance"),
    ],
)
def test_verdict_claims_what_seeds_allow(value, seeds, words):
    assert words in verdict("a", "b", Difference(value, 1.0, 10.0), [100, 200], ([seeds[0]] * 2, [seeds[1]] * 2))


# Comparisons.


@pytest.fixture
def compared(make_evals):
    """`mine` wins two tasks clearly, loses none; one task is missing on the other side."""
    mine = scores("mine", {"walker-walk": (90, 91, 92), "walker-run": (80, 82, 81), "cup-catch": (50, 51, 52)})
    theirs = scores("them", {"walker-walk": (60, 61, 62), "walker-run": (50, 80, 90), "cup-spin": (1, 2, 3)})
    evals = make_evals(mine | {run: {**curve, 200: 99.0} for run, curve in theirs.items()})
    evals.loc[evals["agent"] == "them", "domain_version"] = "older"
    return compare("mine", evals, {}, REPS, ("a note",))


def test_tasks_are_compared_at_common_env_steps(make_evals):
    evals = make_evals(
        scores("mine", {"walker-walk": (90, 91, 92)}, 100)
        | {("them", "walker-walk", seed): {0: 0.0, 99: 20.0 + seed, 200: 99.0} for seed in (1, 2, 3)}
    )
    compared = compare("mine", evals, {}, REPS)
    row = compared.tasks.iloc[0]
    assert (row["env_steps"], row["mine_env_steps"], row["their_env_steps"]) == (100, "100", "99")
    assert (row["theirs"], row["difference"]) == (22.0, 69.0)
    assert "at 100 env steps" in compared.verdicts[0]
    assert "100 (100 / 99)" in as_markdown(compared, REPS)


def test_a_row_is_of_one_set_of_seeds(make_evals):
    """With other numbers of seeds on other tasks, mean, IQM and difference of a group are of the same runs."""
    mine = scores("mine", {"walker-walk": (50, 50, 50, 50), "walker-run": (80, 0, 80, 80)})
    theirs = scores("them", {"walker-walk": (60, 60), "walker-run": (60, 60, 80, 0)})
    compared = compare("mine", make_evals(mine | theirs), {}, REPS)
    for group in compared.groups.to_dict("records"):
        assert group["difference"] == pytest.approx(group["mine_mean"] - group["theirs_mean"])
    whole = compared.groups.set_index("group").loc["All"]
    assert (whole["mine_seeds"], whole["their_seeds"]) == (4, 2)
    assert (whole["mine_mean"], whole["theirs_mean"], whole["theirs_iqm"]) == (55, 55, 60)
    assert not any("beyond" in note for note in compared.notes)
    for task in compared.tasks.to_dict("records"):
        assert task["difference"] == pytest.approx(task["mine"] - task["theirs"])
    assert compared.tasks.set_index("task").loc["walker-run", "their_seeds"] == 4


def test_only_common_tasks_count_and_the_rest_is_said(compared):
    assert list(compared.tasks["task"]) == ["walker-run", "walker-walk"]
    results = compared.tasks.set_index("task")["result"].to_dict()
    assert results == {"walker-run": "not told apart", "walker-walk": "higher"}
    assert any("cup-catch: no score from them" in note for note in compared.notes)
    assert "a note" in compared.notes
    assert any("different simulator versions" in warning and "older (them)" in warning for warning in compared.warnings)
    assert any("different budgets on 2 tasks" in warning for warning in compared.warnings)
    groups = compared.groups.set_index("group")
    assert groups.loc["All", "mine_mean"] == pytest.approx(86.0)
    assert groups.loc["All", "tasks"] == 2


def test_different_action_repeat_is_a_warning(make_evals):
    evals = make_evals(scores("mine", {"walker-walk": (9, 8, 7)}) | scores("them", {"walker-walk": (9, 8, 7)}))
    evals.loc[evals["agent"] == "them", "agent_steps"] *= 2
    assert any(
        "different action repeat on 1 tasks: walker-walk" in said for said in compare("mine", evals, {}, REPS).warnings
    )


@pytest.mark.usefixtures("simple_fonts")
def test_output_says_everything(compared, tmp_path):
    text = as_markdown(compared, REPS)
    for words in ("2 common tasks", "Warning: dmcontrol", "higher on 1 (walker-walk)", "## Equal time", "Not known"):
        assert words in text
    files = write_compared(compared, tmp_path / "a", REPS)
    write_compared(compared, tmp_path / "b", REPS)
    assert [path for path in files if path.read_bytes() != (tmp_path / "b" / path.name).read_bytes()] == []
    value = json.loads((tmp_path / "a" / "compare.json").read_text())
    assert value["tasks"][0]["difference"] == pytest.approx(81 - 220 / 3)
    assert pd.read_csv(tmp_path / "a" / "compare.csv").shape[0] == 2
    assert r"\begin{longtable}" in (tmp_path / "a" / "compare.tex").read_text()


def test_nothing_in_common_is_one_clear_line(make_evals):
    evals = make_evals(scores("mine", {"walker-walk": (1, 2, 3)}) | scores("them", {"cup-catch": (1, 2, 3)}))
    with pytest.raises(UserError, match="no task that mine and them all have"):
        compare("mine", evals, {}, REPS)


def test_nan_is_left_out_and_said(make_evals):
    evals = make_evals(scores("mine", {"walker-walk": (90, 91, 92)}) | scores("them", {"walker-walk": (60, 61, 62)}))
    evals.loc[(evals["agent"] == "mine") & (evals["seed"] == 3) & (evals["env_steps"] == 100), "score"] = np.nan
    result = compare("mine", evals, {}, REPS)
    assert any("not a number" in note for note in result.notes)
    assert np.isfinite(result.groups["difference"]).all()


def test_a_side_without_any_score_is_said(make_evals):
    evals = make_evals(
        {**scores("mine", {"a": (9, 8)}), **scores("them", {"a": (7, 6)}), **scores("third", {"a": (5,)})}
    )
    evals.loc[evals["agent"] == "them", "score"] = np.nan
    result = compare("mine", evals, {}, REPS)
    assert result.others == ("third",)
    assert "them: no score that is a number, not compared" in result.warnings
    evals.loc[evals["agent"] == "mine", "score"] = np.nan
    with pytest.raises(UserError, match="agents without a single score that is a number: left out: mine, them"):
        compare("mine", evals, {}, REPS)


def test_curves_say_what_was_assumed_and_count_on_my_tasks(tmp_path):
    rows = [f"{step},{value},{seed}" for seed in (1, 2, 3) for step, value in ((0, 0.0), (2_000_000, 0.9))]
    (tmp_path / "r" / "mine").mkdir(parents=True)
    (tmp_path / "r" / "mine" / "mw-reach.csv").write_text("\n".join(["step,success,seed", *rows]) + "\n")
    sides = gather(str(tmp_path / "r"), ["tdmpc2"], None, tmp_path / "absent")
    assert set(sides.evals["task"]) == {"mw-reach"}
    assert any("mine: `success` is a rate (0-1)" in said for said in sides.assumptions)
    assert "tdmpc2: 103 tasks that mine was not run on are left out" in sides.notes


def test_a_place_without_evaluations_is_refused(make_run, tmp_path):
    make_run(tmp_path / "mine", {100: 30.0})
    make_run(tmp_path / "begun", {}, done=False)
    make_run(tmp_path / "pixels", {100: 30.0}, obs="rgb")
    for place in ("begun", "pixels"):
        with pytest.raises(UserError, match=f"{place} holds no evaluation from state observations"):
            gather(str(tmp_path / "mine"), [str(tmp_path / place)], None, tmp_path)
    with pytest.raises(UserError, match="hold no evaluation yet"):
        gather(str(tmp_path / "begun"), [str(tmp_path / "mine")], None, tmp_path)


def test_equal_time_is_compared_where_both_know_it(make_run, tmp_path):
    for agent, fast in (("sac", 900.0), ("tdmpc2", 500.0)):
        for seed in (1, 2):
            make_run(tmp_path / agent, {0: 10.0, 100: fast, 200: fast}, agent=agent, seed=seed)
    sides = gather(str(tmp_path / "sac"), [str(tmp_path / "tdmpc2")], None, tmp_path)
    assert set(sides.clocks) == {"wall-clock", "GPU"}
    table = compare(sides.mine, sides.evals, sides.clocks, REPS).clocks.set_index(["clock", "agent"])
    assert table.loc[("wall-clock", "sac"), "value"] == pytest.approx(90)
    assert table.loc[("GPU", "tdmpc2"), "value"] == pytest.approx(50)


# Sides.


def test_final_scores_count_where_the_budget_was_reached(make_evals):
    mine = make_evals(scores("mine", {"a": (1,), "b": (1,)}, 960))
    finals = {
        "x": make_evals({("x", "a", 1): {1000: 5.0}, ("x", "a", 2): {400: 4.0}, ("x", "b", 1): {2000: 5.0}}),
        "y": make_evals({("y", "a", 1): {950: 7.0}}),
    }
    placed = placed_finals(finals, mine)
    assert placed["x"][["task", "env_steps", "agent_steps"]].to_numpy().tolist() == [["a", 950, 475]] * 2
    assert placed["y"]["env_steps"].tolist() == [950]


def test_against_committed_finals_in_a_fresh_clone(make_run, tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / "r", {0: 20.0, 4_000_000: 990.0 + seed}, seed=seed, budget_env_steps=4_000_000)
    sides = gather(str(tmp_path / "r"), ["tdmpc2", "sac"], None, tmp_path / "absent")
    assert sides.mine == "sac (mine)"
    assert set(sides.evals["agent"]) == {"sac (mine)", "tdmpc2", "sac (published)"}
    assert any("only published final scores" in note for note in sides.notes)
    tasks = compare(sides.mine, sides.evals, sides.clocks, REPS, sides.notes).tasks.set_index("other")
    assert tasks.loc["tdmpc2", "theirs"] == pytest.approx(98.1, abs=0.06)
    assert tasks.loc["sac (published)", "theirs"] == pytest.approx(97.4, abs=0.06)


def test_a_short_run_needs_whole_curves(make_run, tmp_path):
    make_run(tmp_path / "r", {0: 20.0, 100: 30.0})
    with pytest.raises(UserError, match="run `bench published import` for whole curves"):
        gather(str(tmp_path / "r"), ["tdmpc2"], None, tmp_path / "absent")


def test_several_agents_must_be_chosen(make_run, tmp_path):
    for agent in ("sac", "tdmpc2"):
        make_run(tmp_path / "r", {100: 30.0}, agent=agent)
    with pytest.raises(UserError, match=r"hold 2 agents: choose one with --agent \(sac, tdmpc2\)"):
        gather(str(tmp_path / "r"), ["tdmpc2"], None, tmp_path)
    with pytest.raises(UserError, match="did you mean sac"):
        gather(str(tmp_path / "r"), ["tdmpc2"], "sax", tmp_path)


def test_unknown_opponent_names_the_nearest(make_run, tmp_path):
    make_run(tmp_path / "r", {100: 30.0})
    with pytest.raises(UserError, match="did you mean tdmpc2"):
        gather(str(tmp_path / "r"), ["tdmcp2"], None, tmp_path)


def test_a_table_is_a_side(make_evals, tmp_path):
    evals = make_evals(scores("mine", {"walker-walk": (1, 2)}))
    evals.to_csv(tmp_path / "e.csv", index=False)
    evals.to_parquet(tmp_path / "e.parquet")
    for name in ("e.csv", "e.parquet"):
        assert load_side(str(tmp_path / name)).evals["score"].tolist() == evals["score"].tolist()
    other = pa.Table.from_pandas(evals).replace_schema_metadata({VERSION_KEY: b"99"})
    pq.write_table(other, tmp_path / "other.parquet")
    with pytest.raises(UserError, match="has schema version 99, this code reads 1"):
        load_side(str(tmp_path / "other.parquet"))
    evals.drop(columns="seed").to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(UserError, match="lacks seed: its columns must be " + ", ".join(EVALS)):
        load_side(str(tmp_path / "bad.csv"))


@pytest.mark.usefixtures("simple_fonts")
def test_command_compares_and_warns(make_run, tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / "r", {4_000_000: 990.0}, agent="mine", seed=seed, budget_env_steps=4_000_000)
    arguments = [
        "compare",
        str(tmp_path / "r"),
        "--against",
        "tdmpc2",
        "sac",
        "-o",
        str(tmp_path / "out"),
        "--reps",
        "100",
    ]
    result = CliRunner().invoke(app, [*arguments, "--curves", str(tmp_path / "absent")])
    assert result.exit_code == 0, result.output
    assert "mine against tdmpc2" in result.stdout
    assert "mine against sac" in result.stdout
    assert "warning: dmcontrol: different simulator versions" in result.stdout
    assert (tmp_path / "out" / "compare.md").exists()


# Regressions.


def test_regression_is_found_and_no_change_is_not(make_evals):
    before = side(make_evals(scores("sac", {"a": (80, 82, 84), "b": (50, 52, 48)})))
    worse = side(make_evals(scores("sac", {"a": (60, 62, 64), "b": (40, 41, 39)})))
    [answer] = regress(before, worse)
    assert answer.regressed
    assert answer.difference == pytest.approx(-15)
    assert answer.upper < 0
    assert not regress(before, before)[0].regressed
    assert not regress(worse, before)[0].regressed
    assert not regress(before, worse, margin=30)[0].regressed


def test_missing_task_or_agent_is_a_regression(make_evals):
    before = side(make_evals(scores("sac", {"a": (80, 82), "b": (50, 52)})))
    [answer] = regress(before, side(make_evals(scores("sac", {"a": (80, 82)}))))
    assert (answer.regressed, answer.missing_tasks) == (True, ("b",))
    both = side(make_evals(scores("sac", {"a": (80, 82)}) | scores("ppo", {"a": (80, 82)})))
    by_agent = {answer.agent: answer for answer in regress(both, side(make_evals(scores("ppo", {"a": (80, 82)}))))}
    assert not by_agent["ppo"].regressed
    assert (by_agent["sac"].regressed, by_agent["sac"].missing_tasks) == (True, ("a",))
    assert regression_lines(by_agent["sac"], 0)[0] == "sac: REGRESSED: no task can be compared"


def test_differently_named_agents_are_refused(make_evals):
    before, after = (side(make_evals(scores(name, {"a": (80, 82)}))) for name in ("old", "new"))
    with pytest.raises(UserError, match="no agent in common: the baseline holds old, the new results new"):
        regress(before, after)


def test_sides_without_a_common_step_are_refused(make_evals):
    before, after = (side(make_evals(scores("sac", {"a": (80, 82)}, at))) for at in (100, 200))
    with pytest.raises(UserError, match=r"no task of the baseline can be compared.*a \(baseline at 100; new at 200\)"):
        regress(before, after)


def test_a_new_run_that_fell_out_is_a_regression(make_evals):
    before = side(make_evals(scores("sac", {"a": (80, 81, 82)})))
    after = make_evals(scores("sac", {"a": (80, 81, 82)}))
    after.loc[(after["seed"] == 3) & (after["env_steps"] == 100), "score"] = np.nan
    [answer] = regress(before, side(after))
    assert (answer.regressed, answer.missing_runs, answer.new_seeds) == (True, ("a · seed 3",), 2)
    assert regression_lines(answer, 0)[1] == "  runs without new scores at the compared env steps: a · seed 3"


def test_one_seed_cannot_be_tested(make_evals):
    with pytest.raises(UserError, match="needs 2 or more seeds"):
        regress(*(side(make_evals(scores("sac", {"a": (80,)}))) for _ in range(2)))


def test_nan_is_never_taken_for_no_regression(make_evals):
    before = make_evals(scores("sac", {"a": (80, 82), "b": (50, 52)}))
    one = before.copy()
    one.loc[(one["task"] == "b") & (one["seed"] == 2) & (one["env_steps"] == 100), "score"] = np.nan
    with pytest.raises(UserError, match="one seed on a task"):
        regress(side(before), side(one))
    with pytest.raises(UserError, match="no task of the baseline can be compared"):
        regress(side(before), side(before.assign(score=np.nan)))
    with pytest.raises(UserError, match="the baseline holds no score that is a number"):
        regress(side(before.assign(score=np.nan)), side(before))
    with pytest.raises(UserError, match="the baseline holds no evaluation"):
        regress(side(before[:0]), side(before))


def test_rates_are_as_stated():
    """False alarms at alpha, and the detectable drop found with the stated power, over made-up seeds."""
    rng = np.random.default_rng(0)
    alarms = found = 0
    drop = difference(*([rng.normal(50, 8, 3) for _ in range(10)] for _ in range(2))).detectable(0.05, 0.8)
    expected = (stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) * 8 * np.sqrt(2 / 3) / np.sqrt(10)
    assert drop == pytest.approx(expected, rel=0.35)
    for _ in range(1000):
        old = [rng.normal(50, 8, 3) for _ in range(10)]
        now = [rng.normal(50, 8, 3) for _ in range(10)]
        alarms += difference(now, old).upper(0.05) < 0
        found += difference([one - expected for one in now], old).upper(0.05) < 0
    assert alarms / 1000 <= 0.07
    assert 0.7 <= found / 1000 <= 0.9


def test_command_exits_with_the_answer(make_run, tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / "old", {100: 900.0 + seed}, seed=seed)
        make_run(tmp_path / "new", {100: 500.0 + seed}, seed=seed)
    runner = CliRunner()
    result = runner.invoke(app, ["regress", str(tmp_path / "old"), str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "REGRESSED: 90.2 -> 50.2" in result.stdout
    assert "on 1 task at 100 env steps, 3 and 3 seeds" in result.stdout
    assert "with 80% power" in result.stdout
    result = runner.invoke(app, ["regress", str(tmp_path / "old"), str(tmp_path / "old"), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["regressed"] is False
