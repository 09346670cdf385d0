"""Runs that learn offline among others: collected, reported, and kept out of what is over env steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from analysis import offline as offline_analysis
from analysis.alignment import align
from analysis.collect import collect
from analysis.collect_cache import Cache
from analysis.report import write_report
from analysis.tables import load_tables, write_tables
from bench import offline
from bench.rundir import RunDir
from bench.runspec import decisive
from bench.schema import EVALS, RUNS
from bench.tasks import get
from sweeps import expand

TASKS = [get("walker-walk"), get("mw-reach")]


def offline_run(folder: Path, seed: int, scores: dict[int, tuple[float, float]], updates: int = 200) -> RunDir:
    """A run with a score on walker-walk and one on mw-reach after some updates."""
    spec = offline.run_spec(
        "tdmpc2", {"lr": 1.0}, TASKS, folder, "f", seed, updates=updates, eval_every_updates=100, eval_episodes=2
    )
    run = RunDir.create(folder, spec)
    run.begin_attempt({"device": "cpu", "commit": "abc", "host": "node1", "versions": {}})
    for at, (walker, reach) in scores.items():
        shared = {"updates": at, "wall_s": at / 10, "length": 100}
        run.append_eval(
            [
                {**shared, "task": task, "episode": episode, "return": return_ + episode, "success": success}
                for task, return_, success in (("walker-walk", 10 * walker - 0.5, 0), ("mw-reach", 7, reach / 100))
                for episode in (0, 1)
            ]
        )
    run.beat(updates=max(scores), updates_per_s=2.0, wall_s=60.0, score=1.0)
    run.end_beat()
    if max(scores) >= updates:
        run.mark_done(updates=max(scores), wall_s=60.0, peak_gpu_gb=None)
    return run


@pytest.fixture
def folder(tmp_path: Path, make_run) -> Path:
    make_run(tmp_path / "results", {0: 20.0, 100: 500.0, 200: 900.0})
    offline_run(tmp_path / "results", 1, {0: (5, 0), 100: (20, 100), 200: (60, 100)})
    offline_run(tmp_path / "results", 2, {0: (5, 0), 100: (40, 50)})
    return tmp_path / "results"


def test_one_row_for_each_task(folder: Path) -> None:
    tables = collect(folder)
    assert tables.problems == ()
    assert dict(tables.evals.dtypes.astype(str)) == EVALS
    assert dict(tables.runs.dtypes.astype(str)) == RUNS
    mine = tables.evals[(tables.evals["agent"] == "tdmpc2") & (tables.evals["seed"] == 1)]
    assert mine[["updates", "task", "domain", "score"]].values.tolist() == [
        [at, task, domain, pytest.approx(score)]
        for at, walker, reach in ((0, 5, 0), (100, 20, 100), (200, 60, 100))
        for task, domain, score in (("walker-walk", "dmcontrol", walker), ("mw-reach", "metaworld", reach))
    ]
    assert set(mine["env_steps"]) == set(mine["agent_steps"]) == {0}
    assert set(mine["domain_version"]) == {task.domain_version for task in TASKS}
    online = tables.evals[tables.evals["agent"] == "sac"]
    assert online["updates"].isna().all()
    assert online["task"].tolist() == ["walker-walk"] * 3
    runs = tables.runs.set_index(["agent", "seed"])
    row = runs.loc[("tdmpc2", 2)]
    assert (row["task"], row["state"], row["updates"], row["budget_updates"]) == (
        "walker-walk+mw-reach", "pending", 100, 200,
    )  # fmt: skip
    assert (row["env_steps"], row["budget_env_steps"]) == (0, 0)
    assert pd.isna(runs.loc[("sac", 1)]["updates"])
    (configuration,) = (one for one in tables.configurations if one.agent == "tdmpc2")
    assert (configuration.runs, configuration.tasks) == (2, ("mw-reach", "walker-walk"))


def test_the_cache_gives_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.collect_cache.RECENT_S", -1.0)
    (tmp_path / "out").mkdir()
    cache = Cache.load(tmp_path / "out")
    first = collect(folder, cache=cache)
    cache.save(tmp_path / "out")
    again = collect(folder, cache=Cache.load(tmp_path / "out"))
    pd.testing.assert_frame_equal(first.evals, again.evals)
    pd.testing.assert_frame_equal(first.runs, again.runs)


@pytest.mark.parametrize("damage", ["200,1.0,mw-reach,2,5", "200,1.0,cup-catch,2,5.0,0.0,100\n"])
def test_a_torn_row_or_a_foreign_task_is_left_out_and_named(folder: Path, damage: str) -> None:
    before = collect(folder).evals
    (run,) = (path for path in folder.rglob("eval.csv") if "seed1" in str(path) and "tdmpc2" in str(path))
    with run.open("a") as file:
        file.write(damage)
    tables = collect(folder)
    pd.testing.assert_frame_equal(tables.evals, before)
    (problem,) = tables.problems
    assert "left out" in problem.message


def test_tables_of_the_version_before_are_read(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_tables(collect(folder), out)
    pd.testing.assert_frame_equal(load_tables(out).evals, collect(folder).evals)
    for name, added in (("evals", ["updates"]), ("runs", ["updates", "budget_updates"])):
        (out / f"{name}.parquet").unlink()
        pd.read_csv(out / f"{name}.csv").drop(columns=added).to_csv(out / f"{name}.csv", index=False)
    sidecar = json.loads((out / "tables.json").read_text())
    (out / "tables.json").write_text(json.dumps(sidecar | {"schema_version": 1}))
    old = load_tables(out)
    assert old.evals["updates"].isna().all()
    assert old.runs["budget_updates"].isna().all()
    assert dict(old.evals.dtypes.astype(str)) == EVALS


def test_the_normalised_score_is_the_mean_over_tasks(folder: Path) -> None:
    evals = offline_analysis.evaluations(collect(folder))
    curves = offline_analysis.score_curves(evals, 100)
    assert curves[curves["seed"] == "1"][["updates", "score"]].to_numpy() == pytest.approx(
        np.array([[0, 2.5], [100, 60], [200, 80]])
    )
    mean = curves[curves["seed"] == "mean"]
    assert mean["score"].tolist() == pytest.approx([2.5, 52.5, 80])
    assert mean["seeds"].tolist() == [2, 2, 1], "seed 2 stopped at 100"
    assert set(mean["tasks"]) == {"walker-walk+mw-reach"}
    finals = offline_analysis.final_scores(evals, 100).set_index("task")
    assert finals["score"].tolist() == pytest.approx([60, 100])
    assert finals.loc["mw-reach", ["updates", "seeds"]].tolist() == [200, 1]


def test_they_stay_out_of_what_is_over_env_steps(folder: Path) -> None:
    comparison = align(collect(folder).evals)
    assert (comparison.agents, comparison.tasks) == (("sac",), ("walker-walk",))
    (note,) = (note for note in comparison.notes if "offline" in note.text)
    assert len(note.items) == 2


@pytest.mark.usefixtures("simple_fonts")
@pytest.mark.parametrize("alone", [False, True])
def test_report(folder: Path, tmp_path: Path, alone: bool) -> None:
    page = write_report(collect(folder / "tdmpc2" if alone else folder), tmp_path / "r.html", "results", reps=100)
    html = BeautifulSoup(page.read_text(), "html.parser")
    headings = [heading.text for heading in html.find_all("h2")]
    assert "Several tasks, offline" in headings
    row = html.select_one("#offline-scores tbody tr")
    assert row is not None
    words = " ".join(row.text.split())
    assert "walker-walk+mw-reach" in words
    assert "1 seed" in words
    assert "walker-walk 60.0" in words
    assert "80.0" in words
    assert "100 of 200 updates" in " ".join(html.select_one("#unfinished-runs").text.split())  # type: ignore[union-attr]
    files = tmp_path / "r_files"
    assert (files / "offline.png").stat().st_size > 1000
    assert pd.read_csv(files / "offline_final_scores.csv")["score"].tolist() == pytest.approx([60, 100])
    if not alone:
        assert html.select_one("#final-scores") is not None
        missing = [heading for heading in html.find_all("summary") if "missing from the matrix" in heading.text]
        assert not missing


def test_the_committed_run_learned_with_the_settings_of_its_sweep() -> None:
    root = Path(__file__).parents[2]
    tables = load_tables(root / "results" / "learning" / "multitask")
    sweep = expand.load(root / "sweeps" / "multitask-small.yaml")
    (run,) = sweep.runs
    (configuration,) = (one for one in tables.configurations if set(one.tasks) == set(run.tasks))
    assert decisive(configuration.hyperparameters) == decisive(run.hyperparameters)
    evals = offline_analysis.evaluations(tables)
    curve = offline_analysis.score_curves(evals[evals["tasks"] == run.task], 100)
    scores = curve[curve["seed"] == "mean"]["score"].tolist()
    assert scores[-1] > scores[0] + 40
