from __future__ import annotations

import base64
import subprocess
import sys

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from typer.testing import CliRunner

from analysis import figures, report_parts, style
from analysis.alignment import align
from analysis.cli import app
from analysis.collect import collect
from analysis.report import final_scores, write_report
from analysis.style import COLOURS, styles
from analysis.tables import Tables, frame, load_tables, write_tables
from bench.errors import UserError
from bench.schema import RUNS

REPS = 100
EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def results(make_run, tmp_path_factory):
    """Two agents, two tasks, two seeds; one run failed, one has not begun, one task is missing for one seed."""
    folder = tmp_path_factory.mktemp("results")
    for seed in (1, 2):
        for agent, gain in (("sac", 300.0), ("tdmpc2", 800.0)):
            for task in ("walker-walk", "cup-catch"):
                make_run(folder, {0: 20.0, 100: gain, 200: gain + 20 * seed}, agent=agent, task=task, seed=seed)
    failed = make_run(folder, {0: 20.0, 100: 200.0}, done=False, agent="sac", seed=3)
    failed.mark_failed(ValueError(f"loss is NaN {EVIL}"))
    make_run(folder, {}, done=False, agent="tdmpc2", seed=3)
    return folder


@pytest.fixture(scope="module")
def page(results, simple_fonts, tmp_path_factory):
    """The report about `results`."""
    return write_report(collect(results), tmp_path_factory.mktemp("page") / "report.html", "results/quick", REPS)


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are laid out but not rendered."""
    monkeypatch.setattr(style, "render", lambda drawn, kind: b"")


@pytest.fixture
def undrawn(unrendered, monkeypatch):
    """For tests about the page's text: figures are not even laid out."""
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda figure: None)


def soup_of(path):
    return BeautifulSoup(path.read_text(), "lxml")


def cells(soup, table_id):
    return [
        [" ".join(cell.get_text(" ").split()) for cell in row("th") + row("td")]
        for row in soup.select(f"#{table_id} tbody tr")
    ]


def test_report_shows_everything(page):
    soup = soup_of(page)
    text = soup.get_text(" ")
    assert soup.h1.get_text() == "results/quick"
    cards = {card.dt.get_text(): card.dd.get_text() for card in soup.select(".cards div")}
    assert (cards["runs"], cards["done"], cards["failed"], cards["pending"]) == ("10", "8", "1", "1")
    assert cards["missing"] == "2"  # seed 3 of cup-catch, both agents
    assert [row[0] for row in cells(soup, "final-scores")] == ["cup-catch", "walker-walk"]
    [sac] = [row for row in cells(soup, "aggregates") if row[0] == "sac"]
    assert sac[3] == "33.0 [32.0, 34.0]"  # mean of 32 and 34 on two tasks
    assert sac[-1] == "2 × 2"
    titles = [heading.get_text() for heading in soup.select("figure h3")]
    assert titles == [
        "Aggregate scores",
        "Sample efficiency",
        "Performance profile",
        "Probability of improvement",
        "Score over env steps",
    ]
    assert "abc123" in text
    assert "batch_size" in text
    assert "torch 2.13.0" in text
    assert "runs without any evaluation yet" in text
    assert "sac · walker-walk · seed 3: at 100, compared at 200" in text


def test_page_is_self_contained_with_text_for_every_figure(page):
    soup = soup_of(page)
    assert not soup.select("link, script[src], iframe")
    names = {"aggregates", "sample_efficiency", "performance_profile", "probability_of_improvement", "learning_curves"}
    images = soup.select("img")
    assert len(images) == len(names)
    for image in images:
        assert len(image["alt"]) > 40
        head, _, data = image["src"].partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    folder = page.with_name("report_files")
    written = {path.name for path in folder.iterdir()}
    assert written == {f"{name}.{kind}" for name in names for kind in ("png", "pdf", "csv")} | {"final_scores.csv"}
    assert pd.read_csv(folder / "aggregates.csv").columns.tolist()[:3] == ["agent", "metric", "value"]


def test_report_from_collected_tables_is_the_same_bytes(simple_fonts, results, page, tmp_path):
    write_tables(collect(results), tmp_path / "tables")
    again = write_report(load_tables(tmp_path / "tables"), tmp_path / "report.html", "results/quick", REPS)
    contents = [
        {path.name: path.read_bytes() for path in [one, *one.with_name("report_files").iterdir()]}
        for one in (page, again)
    ]
    assert contents[0].keys() == contents[1].keys()
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == []


def test_nothing_from_outside_is_markup(unrendered, make_run, tmp_path):
    folder = tmp_path / "results"
    # A slash would be a folder, so names use a tag without one; messages hold the whole.
    evil_name = "<script>alert(1)<script>"
    make_run(
        folder, {100: 500.0}, agent=evil_name, variant="<img src=x onerror=alert(1)>", hyperparameters={EVIL: EVIL}
    )
    failed = make_run(folder, {100: 400.0}, done=False, seed=2, task="cup-catch")
    failed.mark_failed(RuntimeError(EVIL))
    unknown = make_run(folder, {100: 400.0}, done=False, task=evil_name, domain=EVIL, seed=4)
    unknown.begin_attempt({"commit": EVIL, "host": EVIL, "gpu": EVIL, "versions": {EVIL: EVIL}})
    tables = collect(folder)
    tables.evals.loc[tables.evals["task"] == evil_name, "score"] = 5.0
    soup = soup_of(write_report(tables, tmp_path / "o.html", EVIL, REPS))
    assert soup.h1.get_text() == EVIL
    assert len(soup("script")) == 1  # the page's own
    assert all(image["src"].startswith("data:image/png") for image in soup("img"))
    assert not [tag for tag in soup(True) if any(name.startswith("on") for name in tag.attrs)]
    assert evil_name in soup.get_text()


def test_one_seed_says_so(undrawn, make_run, tmp_path):
    make_run(tmp_path / "r", {0: 10.0, 100: 500.0})
    soup = soup_of(write_report(collect(tmp_path / "r"), tmp_path / "o.html", "r", REPS))
    [row] = cells(soup, "aggregates")
    assert row[-1] == "1 × 1 1 seed, no interval"
    assert "[" not in "".join(row)
    [final] = cells(soup, "final-scores")
    assert final[-1] == "50.0 1 seed, no interval"
    assert "1 seed, no interval: sac" in soup.select("figcaption")[0].get_text()


def test_figures_of_an_earlier_report_do_not_stay(undrawn, make_run, tmp_path):
    make_run(tmp_path / "r", {0: 10.0, 100: 500.0})
    (tmp_path / "o_files").mkdir()
    (tmp_path / "o_files" / "learning_curves_09.png").touch()
    (tmp_path / "o_files" / "mine.txt").touch()
    write_report(collect(tmp_path / "r"), tmp_path / "o.html", "r", REPS)
    names = {path.name for path in (tmp_path / "o_files").iterdir()}
    assert "learning_curves_09.png" not in names
    assert {"learning_curves.png", "mine.txt"} <= names


def test_no_evaluation_yet(make_run, tmp_path):
    make_run(tmp_path / "r", {}, done=False)
    soup = soup_of(write_report(collect(tmp_path / "r"), tmp_path / "o.html", "r", REPS))
    assert "nothing to compare" in soup.get_text()
    assert len(cells(soup, "unfinished-runs")) == 1


def test_agents_without_a_common_task(undrawn, make_run, tmp_path):
    make_run(tmp_path / "r", {100: 500.0}, agent="sac", task="cup-catch")
    make_run(tmp_path / "r", {100: 500.0}, agent="tdmpc2", task="walker-walk")
    soup = soup_of(write_report(collect(tmp_path / "r"), tmp_path / "o.html", "r", REPS))
    assert "no task has a score from every agent" in soup.get_text()
    assert [heading.get_text() for heading in soup.select("figure h3")] == ["Score over env steps"]


def test_two_configurations_under_one_name_are_shown(undrawn, make_run, tmp_path):
    make_run(tmp_path / "r", {100: 500.0})
    make_run(tmp_path / "r", {100: 500.0}, hyperparameters={"batch_size": 512})
    soup = soup_of(write_report(collect(tmp_path / "r"), tmp_path / "o.html", "r", REPS))
    assert "2 configurations go by this name; they differ in batch_size." in soup.get_text()


def test_settings_by_the_task_are_no_mistake(undrawn, make_run, tmp_path):
    make_run(tmp_path / "r", {100: 500.0})
    make_run(tmp_path / "r", {100: 500.0}, task="dog-run", hyperparameters={"batch_size": 512})
    write_tables(collect(tmp_path / "r"), tmp_path / "tables")
    soup = soup_of(write_report(load_tables(tmp_path / "tables"), tmp_path / "o.html", "r", REPS))
    text = soup.select_one("#configuration").get_text()
    assert "Settings by the task: batch_size." in text
    assert "go by this name" not in text
    assert [cell.get_text() for cell in soup.select("#configuration th")[1:3]] == [
        "1 run: walker-walk",
        "1 run: dog-run",
    ]


def test_final_scores_use_all_seeds(make_evals):
    comparison = align(make_evals({("a", "t", 1): {1: 10}, ("a", "t", 2): {1: 30}, ("a", "u", 1): {1: 50}}))
    table = final_scores(comparison, REPS).set_index("task")
    assert (table.loc["t", "score"], table.loc["t", "seeds"]) == (20.0, 2)
    assert (table.loc["t", "low"], table.loc["t", "high"]) == (10.0, 30.0)
    assert table.loc["u", "seeds"] == 1


def test_nan_and_a_missing_task_are_on_the_page(unrendered, make_run, tmp_path):
    for agent in ("sac", "tdmpc2"):
        make_run(tmp_path, {100: 300.0, 200: float("nan") if agent == "sac" else 400.0}, agent=agent)
    make_run(tmp_path, {100: 500.0, 200: 500.0}, agent="sac", task="cup-catch")
    soup = soup_of(write_report(collect(tmp_path), tmp_path / "o.html", "r", REPS))
    notes = " ".join(soup.select_one("#rules").get_text(" ").split())
    assert "1 evaluations have a score that is not a number: left out" in notes
    assert "aggregates are over the 1 of 2 tasks that all agents have" in notes
    assert "cup-catch: no score from tdmpc2" in notes
    scores = {row[0]: row for row in cells(soup, "final-scores")}
    assert "30.0" in scores["walker-walk"][3]  # the last score that is a number, at the env steps that both reached
    assert not any("nan" in cell for row in scores.values() for cell in row)


def test_unreadable_folder_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "run.json").write_text("{")
    with pytest.raises(UserError, match="holds no run that can be read"):
        write_report(load_tables(tmp_path), tmp_path / "o.html", "r", REPS)


def test_command_prints_the_path_at_the_end(undrawn, results, tmp_path):
    out = tmp_path / "pages" / "report.html"
    result = CliRunner().invoke(app, ["report", str(results), "-o", str(out), "--reps", "100"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == out.as_posix()
    assert out.exists()


def test_many_tasks_are_paged(unrendered, make_evals, tmp_path):
    comparison = align(make_evals({("a", f"task-{i:02d}", 1): {0: 1, 100: 50} for i in range(14)}))
    table = figures.learning_curve_table(comparison, REPS)
    drawn = figures.draw_learning_curves(comparison, table, tmp_path)
    assert [figure.name for figure in drawn] == ["learning_curves_01", "learning_curves_02"]
    assert drawn[1].title == "task-12 to task-13"


def test_learning_curve_numbers_are_those_drawn(make_evals):
    comparison = align(make_evals({("a", "t", 1): {0: 0, 100: 50}, ("a", "t", 2): {0: 10, 100: 70}}))
    table = figures.learning_curve_table(comparison, REPS)
    mean = table[table["seed"] == "mean"]
    assert mean["score"].tolist() == [5.0, 60.0]
    assert mean["seeds"].tolist() == [2, 2]
    assert table[table["seed"] == "2"]["score"].tolist() == [10.0, 70.0]


def test_every_agent_looks_different():
    names = [f"agent{i}" for i in range(20)]
    look = styles(names)
    assert len({(style.colour, style.marker) for style in look.values()}) == 20
    assert len({look[name].colour for name in names[: len(COLOURS)]}) == len(COLOURS)


def test_analysis_loads_no_learning_or_simulation_library():
    code = (
        "import sys, analysis.cli, analysis.report, analysis.collect, analysis.tables\n"
        "bad = {'torch', 'agents', 'baselines', 'mujoco', 'dm_control', 'metaworld', 'gymnasium', 'bench.envs'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_commands_are_listed_without_table_libraries():
    code = (
        "import sys, analysis.cli\n"
        "bad = {'pandas', 'matplotlib', 'rliable', 'numpy', 'jinja2'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cost_is_of_runs_whose_time_is_known(results):
    rows = {row["agent"]: row for row in report_parts.cost(collect(results))}
    assert (rows["sac"]["runs"], rows["sac"]["wall_h"]) == (5, 10.0)  # 7200 s each
    assert rows["sac"]["gpu_h"] == pytest.approx(5.0)  # two runs share the GPU
    assert rows["sac"]["env_steps"] == 900
    assert rows["sac"]["wall_h_per_million"] == pytest.approx(10 / 900 * 1e6)
    assert rows["sac"]["peak_gpu_gb"] == 1.5


def test_videos_are_linked_from_where_they_are(undrawn, make_run, tmp_path):
    run = make_run(tmp_path / "r", {0: 10.0, 100: 500.0})
    (run.path / "videos").mkdir()
    for name in ("0000000000.mp4", "0000000100.mp4"):
        (run.path / "videos" / name).touch()
    page = write_report(collect(tmp_path / "r"), tmp_path / "pages" / "o.html", "r", REPS)
    [video] = soup_of(page)("video")
    assert (page.parent / video["src"]).resolve() == (run.path / "videos" / "0000000100.mp4").resolve()


def test_many_tasks_are_small_panels_and_aggregates_by_domain(undrawn, make_evals, tmp_path):
    names = [f"mw-{name}" for name in ("reach", "push", "assembly")] + [f"task-{i:02d}" for i in range(11)]
    evals = make_evals({("a", name, seed): {0: 1, 100: 50 + seed} for name in names for seed in (1, 2)})
    soup = soup_of(write_report(Tables(evals, frame([], RUNS)), tmp_path / "o.html", "r", REPS))
    panels = soup.select("#panels li")
    assert [panel["data-task"] for panel in panels] == sorted(names)
    assert panels[0].svg["aria-label"] == "mw-assembly: a 51.5 after 100 env steps"
    assert panels[0].polyline["points"] == "0,79.2 168,40.9"
    assert not soup.select("figure.page")
    assert [row[0] for row in cells(soup, "by-group")] == ["DMControl", "Meta-World"]
