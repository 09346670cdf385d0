from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis import paper_data, paper_panels
from analysis.cli import app
from analysis.groups import groups
from analysis.paper import write_figures
from analysis.paper_data import AGENTS
from analysis.published import read_published, write_published
from analysis.style import PLACES, styles
from bench import tasks
from bench.errors import UserError

REPS = 100


@pytest.fixture(scope="module")
def data():
    """What a fresh clone has: final scores, no curves."""
    return paper_data.load(curves=paper_data.PUBLISHED / "absent")


@pytest.fixture(scope="module")
def drawn(data, tmp_path_factory):
    """The figures of a fresh clone, laid out but not rendered."""
    folder = tmp_path_factory.mktemp("figures")

    def touch(figure, folder, name):
        assert figure.axes
        (folder / f"{name}.png").touch()
        (folder / f"{name}.pdf").touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_panels, "save", touch)
        write_figures(folder, data, REPS)
    return folder


def table(folder, name):
    return pd.read_csv(folder / f"{name}.csv")


def test_groups_are_the_papers():
    sizes = {group: len(names) for group, names in groups(task.name for task in tasks.task_set("all")).items()}
    assert list(sizes.items()) == [
        ("DMControl", 39),
        ("Meta-World", 50),
        ("ManiSkill2", 5),
        ("Locomotion", 7),
        ("MyoSuite", 10),
        ("Pick YCB", 1),
        ("All", 104),
    ]
    assert groups(["mine"], {"mine": "my-domain"}) == {"my-domain": ("mine",), "All": ("mine",)}
    assert groups([]) == {}


def test_check_values_of_every_group(drawn):
    bars = table(drawn, "fig01_scores_by_domain").set_index(["group", "agent", "metric"])["value"]
    expected = {  # mean, IQM; of sac, dreamerv3, tdmpc, tdmpc2
        "DMControl": [(59.1, 67.6), (68.2, 76.6), (73.0, 81.3), (88.7, 92.1)],
        "Locomotion": [(6.8, 0.9), (27.3, 16.6), (62.6, 65.1), (88.2, 91.6)],
        "Meta-World": [(75.5, 90.9), (40.7, 37.5), (90.5, 98.4), (95.7, 100.0)],
        "ManiSkill2": [(18.7, None), (18.7, None), (55.3, None), (91.3, None)],
        "Pick YCB": [(0.0, None), (0.0, None), (0.0, None), (70.0, None)],
        "MyoSuite": [(18.7, None), (8.3, None), (51.0, None), (74.0, 90.0)],
        "All": [(61.1, 71.9), (46.8, 48.1), (78.4, 90.5), (90.8, 97.6)],
    }
    for group, pairs in expected.items():
        for agent, (mean, iqm) in zip(AGENTS, pairs, strict=True):
            assert bars[group, agent, "Mean"] == pytest.approx(mean, abs=0.051)
            if iqm is not None:
                assert bars[group, agent, "IQM"] == pytest.approx(iqm, abs=0.051)


def test_check_values_of_improvement_over_all_tasks(drawn):
    improvements = table(drawn, "extra_probability_of_improvement")
    over_all = improvements[improvements["group"] == "All"].set_index("y")["probability"]
    assert over_all.round(2).to_dict() == {"sac": 0.81, "dreamerv3": 0.96, "tdmpc": 0.70}


def test_every_figure_has_png_pdf_and_numbers(drawn):
    names = {path.stem for path in drawn.glob("*.png")}
    assert names == {path.stem for path in drawn.glob("*.pdf")}
    assert names <= {path.stem for path in drawn.glob("*.csv")}
    assert {"fig01_scores_by_domain", "fig07_model_size", "fig08_few_shot", "extra_intervals"} <= names


def test_what_lacks_data_is_named(drawn):
    index = (drawn / "index.md").read_text()
    for item in ("Figure 4", "Figure 10", "Figure 13"):
        [line] = [line for line in index.splitlines() if line.startswith(f"| {item} |")]
        assert "bench published import" in line
    assert "| Figure 17 |" in index


def test_final_score_table_has_every_task(drawn):
    finals = table(drawn, "table_final_scores")
    assert finals.groupby("agent")["task"].nunique().to_dict() == dict.fromkeys(AGENTS, 104)
    row = finals[(finals["task"] == "dog-run") & (finals["agent"] == "tdmpc2")].iloc[0]
    assert (row["score"], row["std"]) == (pytest.approx(86.75, abs=0.01), pytest.approx(1.19, abs=0.01))
    assert (drawn / "table_final_scores.md").read_text().count("\n| ") == 105  # separator and 104 tasks
    assert (drawn / "table_final_scores.tex").read_text().count(r"\\") == 106


@pytest.mark.whole
def test_figures_are_the_same_bytes_again(data, tmp_path):
    for again in ("a", "b"):
        write_figures(tmp_path / again, data, REPS)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in (tmp_path / "b").iterdir()}
    assert all((tmp_path / "a" / name).stat().st_size for name in names)
    assert [n for n in names if (tmp_path / "a" / n).read_bytes() != (tmp_path / "b" / n).read_bytes()] == []


@pytest.fixture(scope="module")
def small_curves(tmp_path_factory):
    """Curves of the four agents on three tasks, made up, imported."""
    folder = tmp_path_factory.mktemp("published")
    for place, agent in enumerate(AGENTS):
        (folder / "in" / agent).mkdir(parents=True)
        for task, top, end, column in (("dog-run", 1000, 14, "reward"), ("mw-reach", 1, 2, "success")):
            rows = [
                f"{step * 100_000},{top * (place + 1) / 5 * step / (end * 10) + seed / 1000},{seed}"
                for seed in (1, 2, 3)
                for step in range(end * 10 + 1)
            ]
            (folder / "in" / agent / f"{task}.csv").write_text("\n".join([f"step,{column},seed", *rows]) + "\n")
    write_published(read_published(folder / "in"), folder / "curves")
    return folder / "curves"


def test_group_scores_are_on_evaluations(small_curves):
    curves = paper_data.load(small_curves).curves
    env_steps, scores = paper_data.group_scores(curves, "tdmpc2", ("dog-run",))
    assert len(env_steps) <= paper_data.POINTS
    assert env_steps[0] == 0
    assert (env_steps % 100_000 == 0).all()
    assert scores.shape == (3, 1, len(env_steps))
    np.testing.assert_allclose(scores[0, 0], 80 * env_steps / 14e6 + 1e-4)
    both, _ = paper_data.group_scores(curves, "tdmpc2", ("dog-run", "mw-reach"))
    assert both[-1] == 2_000_000  # the smallest budget


def test_task_curves_are_in_the_tasks_own_unit(small_curves):
    curves = paper_data.load(small_curves).curves
    table = paper_data.task_curves(curves, AGENTS, ["dog-run", "mw-reach"], REPS)
    last = table[table["agent"] == "tdmpc2"].groupby("task").tail(1).set_index("task")
    assert last.loc["dog-run", ["mean", "unit"]].tolist() == [pytest.approx(800.002), "return"]
    assert last.loc["mw-reach", ["mean", "unit"]].tolist() == [pytest.approx(80.2), "success %"]
    assert (last["low"] < last["mean"]).all()


def test_mean_panel_is_the_mean_over_tasks(small_curves):
    curves = paper_data.load(small_curves).curves
    matrices = {"Locomotion": {"tdmpc2": np.zeros((3, 1))}}
    by_group = paper_data.group_curves(curves, matrices, REPS)
    table = paper_data.with_mean(paper_data.task_curves(curves, ["tdmpc2"], ["dog-run"], REPS), by_group, "Locomotion")
    mean = table[table["task"] == "mean of 1 tasks"]
    assert mean["mean"].iloc[-1] == pytest.approx(800.002)


def test_curves_of_others_are_refused(tmp_path):
    (tmp_path / "in" / "mine").mkdir(parents=True)
    (tmp_path / "in" / "mine" / "walker-walk.csv").write_text("step,reward,seed\n0,1,1\n")
    write_published(read_published(tmp_path / "in"), tmp_path / "curves")
    with pytest.raises(UserError, match="has no curves of sac"):
        paper_data.load(tmp_path / "curves")


def test_known_agents_look_the_same_in_any_company():
    alone, together = styles(["tdmpc2"]), styles(["a", "sac", "tdmpc2", "b"])
    assert alone["tdmpc2"] == together["tdmpc2"]
    assert styles(["sac (mine)", "tdmpc2"])["sac (mine)"] == together["sac"]
    both = styles(["sac (mine)", "sac"])
    assert both["sac"] == together["sac"] != both["sac (mine)"]
    assert len({style.colour for style in styles([*PLACES]).values()}) == len(PLACES)


def test_command_without_curves_says_what_to_do(tmp_path):
    result = CliRunner().invoke(app, ["figures", "paper", "-o", str(tmp_path), "--curves", str(tmp_path / "no")])
    assert isinstance(result.exception, UserError)
    assert "bench published import" in str(result.exception)
