from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis import published_sources
from analysis.cli import app
from analysis.published import merged, read_published, read_sidecar, write_published
from analysis.published_finals import FINALS, finals_as_evals, finals_of, load_finals, write_finals
from analysis.published_sources import DREAMERV3, SOURCES, TDMPC2, Part, Source, digest_of, download, unpacked
from analysis.statistics import aggregate
from analysis.tables import load_tables
from bench import tasks
from bench.errors import UserError
from bench.schema import EVALS

AGENTS = ("tdmpc2", "tdmpc", "sac", "dreamerv3")
FULL = Path(os.environ.get("PUBLISHED_CURVES") or Path(__file__).parents[3] / "shared" / "published")
needs_full = pytest.mark.skipif(
    not FULL.is_dir(), reason="the authors' files are not here: set PUBLISHED_CURVES to a clone or copy of them"
)


def write_csv(folder, task, rows, column="reward"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"step,{column},seed", *(f"{step},{value},{seed}" for seed, step, value in rows)]
    (folder / f"{task}.csv").write_text("\n".join(lines) + "\n")


def kinds(imported):
    return [(one.kind, one.task, one.seed) for one in imported.irregularities]


def test_authors_layout_becomes_our_table(tmp_path):
    rows = [(seed, step, step / 100_000 + seed) for seed in (2, 1) for step in (0, 100_000, 200_000)]
    write_csv(tmp_path / "mine", "walker-walk", rows)
    write_csv(tmp_path / "mine", "myo-hand-reach", [(1, 0, 0.0), (1, 50_000, 0.25)], "success")
    imported = read_published(tmp_path)
    evals = imported.tables.evals
    assert evals.dtypes.astype(str).to_dict() == EVALS
    walker = evals[(evals["task"] == "walker-walk") & (evals["seed"] == 2)]
    assert walker["env_steps"].tolist() == [0, 100_000, 200_000]
    assert walker["agent_steps"].tolist() == [0, 50_000, 100_000]
    assert walker["return"].tolist() == [2.0, 3.0, 4.0]
    assert walker["score"].tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert walker["success"].isna().all()
    myo = evals[evals["task"] == "myo-reach"]
    assert myo["score"].tolist() == [0.0, 25.0]
    assert myo["agent_steps"].tolist() == [0, 50_000]  # no action repeat
    assert set(evals["agent"]) == {"mine"}
    [origin] = imported.provenance
    assert (origin.licence, origin.commit, origin.verified, origin.runs) == ("unknown", "unknown", False, 3)


def test_percent_under_a_reward_header_and_short_names_are_said(tmp_path):
    write_csv(tmp_path / "a", "myo-reach", [(1, 0, 0.0), (1, 50_000, 10.0)])
    write_csv(tmp_path / "a", "mw-reach", [(1, 0, 0.0), (1, 100_000, 90.0)])
    imported = read_published(tmp_path)
    scores = imported.tables.evals.groupby("task")["score"].max().to_dict()
    assert scores == pytest.approx({"mw-reach": 90.0, "myo-reach": 10.0})
    [origin] = imported.provenance
    assert any("in percent" in said for said in origin.assumptions)
    assert any("myo-*" in said for said in origin.assumptions)


def test_percent_under_a_success_header(tmp_path):
    write_csv(tmp_path / "a", "mw-reach", [(1, 0, 10.0), (1, 100_000, 90.0)], "success")
    imported = read_published(tmp_path)
    assert imported.tables.evals["score"].tolist() == pytest.approx([10.0, 90.0])
    assert any("in percent" in said for said in imported.provenance[0].assumptions)


def test_units_are_told_for_each_column(tmp_path):
    write_csv(tmp_path / "a", "mw-reach", [(1, 0, 10.0), (1, 100_000, 90.0)])
    write_csv(tmp_path / "a", "myo-hand-reach", [(1, 0, 0.0), (1, 50_000, 0.9)], "success")
    imported = read_published(tmp_path)
    scores = imported.tables.evals.groupby("task")["score"].max().to_dict()
    assert scores == pytest.approx({"mw-reach": 90.0, "myo-reach": 90.0})
    assert any("`success` is a rate (0-1)" in said for said in imported.provenance[0].assumptions)


@pytest.mark.parametrize(
    ("task", "column", "value", "message"),
    [
        ("mw-reach", "reward", 0.5, "look alike"),
        ("mw-reach", "reward", 350.0, "no success rate"),
        ("mw-reach", "success", -0.1, "no success rate"),
        ("walker-walk", "success", 0.5, "needs a column reward"),
        ("walker-walk", "reward", 1200.0, "above 1000"),
        ("walker-wolk", "reward", 5.0, "did you mean walker-walk"),
    ],
)
def test_what_cannot_be_decided_is_refused(tmp_path, task, column, value, message):
    write_csv(tmp_path / "a", task, [(1, 0, value)], column)
    with pytest.raises(UserError, match=message):
        read_published(tmp_path)


def test_all_zero_success_needs_no_unit(tmp_path):
    write_csv(tmp_path / "a", "mw-reach", [(1, 0, 0.0), (1, 100_000, 0.0)])
    assert read_published(tmp_path).tables.evals["score"].tolist() == [0.0, 0.0]


def test_two_names_of_one_task_are_refused(tmp_path):
    for name in ("myo-reach", "myo-hand-reach"):
        write_csv(tmp_path / "a", name, [(1, 0, 0.0)], "success")
    with pytest.raises(UserError, match="are both myo-reach"):
        read_published(tmp_path)


def test_a_seed_that_is_no_number_is_refused(tmp_path):
    write_csv(tmp_path / "a", "walker-walk", [("x", 0, 0.0)])
    with pytest.raises(UserError, match="seed must hold whole numbers"):
        read_published(tmp_path)


def test_every_irregularity_is_listed_and_handled_by_its_rule(tmp_path):
    k = 100_000
    rows = [(1, 0, 1), (1, k, 3), (1, k, 3), (1, 4 * k, 4), (1, 20 * k, "nan")]  # duplicate, hole, NaN
    rows += [(2, k, 5), (2, 4 * k, 6), (2, 0, 90), (2, k, 91)]  # late start, then another run
    rows += [(3, step * k, 7) for step in range(41)]
    rows += [(4, step * k, 8) for step in range(40)]  # ragged
    write_csv(tmp_path / "a", "walker-walk", rows)
    write_csv(tmp_path / "a", "walker-run", [(1, 0, 1.0), (5, 0, "none")])
    imported = read_published(tmp_path)
    assert set(kinds(imported)) == {
        ("not a number", "walker-walk", 1),
        ("duplicate", "walker-walk", 1),
        ("hole", "walker-walk", 1),
        ("stopped early", "walker-walk", 1),
        ("restarted", "walker-walk", 2),
        ("late start", "walker-walk", 2),
        ("hole", "walker-walk", 2),
        ("stopped early", "walker-walk", 2),
        ("ragged end", "walker-walk", 4),
        ("not a number", "walker-run", 5),
        ("empty", "walker-run", 5),
        ("missing seed", "walker-run", 2),
        ("missing seed", "walker-run", 3),
        ("missing seed", "walker-run", 4),
    }
    walk = imported.tables.evals[imported.tables.evals["task"] == "walker-walk"]
    assert walk[walk["seed"] == 1]["return"].tolist() == [1, 3, 4]  # one of two equal rows; NaN left out
    assert walk[walk["seed"] == 2]["return"].tolist() == [5, 6]  # the longer of two runs
    states = imported.tables.runs.set_index(["task", "seed"])["state"]
    assert pd.isna(states["walker-walk", 1])
    assert states["walker-walk", 4] == "done"
    finals = finals_of(imported).set_index(["task", "seed"])
    assert finals.loc[("walker-walk", 1), ["env_steps", "score"]].tolist() == [400_000, 0.4]


def test_of_two_runs_in_a_file_the_longer_counts(tmp_path):
    k = 100_000
    rows = [(1, 0, 1), (1, k, 2), (1, 0, 10), (1, k, 20), (1, 2 * k, 30)]
    rows += [(2, 0, 1), (2, k, 2), (2, 0, 10), (2, k, 20)]  # two whole ones: which counts is unknown
    write_csv(tmp_path / "a", "walker-walk", rows)
    imported = read_published(tmp_path)
    returns = imported.tables.evals.groupby("seed")["return"].agg(list).to_dict()
    assert returns == {1: [10, 20, 30]}
    [lost] = [one for one in imported.tables.problems if one.kind == "not read"]
    assert lost.message.startswith("seed 2: 2 whole runs under one seed")
    texts = [one.text for one in imported.irregularities if one.kind == "restarted"]
    assert texts[0] == "runs over 0-100,000 and 0-200,000: 0-200,000 is kept"


def test_dreamer_json_is_read_and_single_episodes_are_averaged(tmp_path):
    xs = list(range(1000, 60_001, 1000))
    rows = [
        {"task": "dmc_ball_in_cup_catch", "method": "m", "seed": 0, "xs": xs, "ys": [float(x) / 100 for x in xs]},
        {"task": "dmc_walker_walk", "method": "m", "seed": 0, "xs": [0, 20_000, 40_000], "ys": [1.0, 2.0, 3.0]},
    ]
    (tmp_path / "dmc_vision-dreamer.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    imported = read_published(tmp_path)
    evals = imported.tables.evals
    cup = evals[evals["task"] == "cup-catch"]
    assert cup["env_steps"].tolist() == [20_000, 40_000, 60_000]
    assert cup["return"].tolist() == pytest.approx([105, 305, 505])  # means of 10-200, 210-400, 410-600
    assert evals[evals["task"] == "walker-walk"]["return"].tolist() == [1.0, 2.0, 3.0]
    assert set(evals["obs"]) == {"rgb"}
    assert any("averaged over windows" in said for said in imported.provenance[0].assumptions)


def test_damaged_json_is_one_line(tmp_path):
    (tmp_path / "dmc_vision-x.json.gz").write_bytes(gzip.compress(b'[{"task": "dmc_walker_walk"}]'))
    with pytest.raises(UserError, match="no list of rows with task"):
        read_published(tmp_path)


def test_folder_without_curves_names_the_layout(tmp_path):
    (tmp_path / "x.csv").write_text("steps,return\n")
    with pytest.raises(UserError, match=r"its columns are steps, return, not .*: give <agent>/<task>.csv"):
        read_published(tmp_path)


def test_written_tables_are_read_back(tmp_path):
    write_csv(tmp_path / "in" / "a", "walker-walk", [(1, 0, 1.0), (1, 100_000, 2.0)])
    imported = read_published(tmp_path / "in", "them")
    write_published(imported, tmp_path / "out")
    pd.testing.assert_frame_equal(load_tables(tmp_path / "out").evals, imported.tables.evals)
    parts, irregularities, _ = read_sidecar(tmp_path / "out")
    assert parts == list(imported.provenance)
    assert irregularities == list(imported.irregularities)
    assert set(imported.tables.evals["source"]) == {"them/a/walker-walk.csv"}


def test_one_agent_twice_is_refused(tmp_path):
    for place in ("x", "y"):
        write_csv(tmp_path / place / "sac", "walker-walk", [(1, 0, 1.0)])
    with pytest.raises(UserError, match="are both sac"):
        read_published(tmp_path)
    with pytest.raises(UserError, match="are both sac"):
        merged([read_published(tmp_path / "x"), read_published(tmp_path / "y")])


@pytest.fixture
def small_source(tmp_path, monkeypatch):
    """A source of one CSV folder, and its archive."""
    write_csv(tmp_path / "repo" / "results" / "sac", "walker-walk", [(1, 0, 1.0), (1, 100_000, 2.0)])
    digest = digest_of([tmp_path / "repo" / "results" / "sac" / "walker-walk.csv"])
    parts = {"sac": Part("sac", "default", "state", digest)}
    source = Source("someone/repo", "0123456789abcdef", "MIT", "results", parts, {"dmcontrol": "old"})
    monkeypatch.setattr(published_sources, "SOURCES", (source,))
    with tarfile.open(tmp_path / "repo.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "repo", "repo-0123")
    return source, tmp_path / "repo.tar.gz"


def test_archive_of_the_pinned_commit_is_recognised(small_source, tmp_path):
    source, archive = small_source
    fetched = download(source, tmp_path, lambda line: None, archive.as_uri())
    with unpacked(fetched) as folder:
        imported = read_published(folder).only(source)
    [origin] = imported.provenance
    assert (origin.source, origin.licence, origin.verified) == ("someone/repo@0123456:results/sac", "MIT", True)
    assert set(imported.tables.evals["domain_version"]) == {"old"}
    finals = finals_of(imported)
    assert finals[["repository", "commit", "licence"]].to_numpy().tolist() == [["someone/repo", "0123456789", "MIT"]]


def test_changed_file_is_not_taken_for_the_pinned_commit(small_source, tmp_path):
    source, _ = small_source
    write_csv(tmp_path / "repo" / "results" / "sac", "walker-walk", [(1, 0, 1.0), (1, 100_000, 2.5)])
    imported = read_published(tmp_path / "repo")
    assert [one.verified for one in imported.provenance] == [False]
    assert not imported.only(source).provenance


def test_unreachable_source_says_what_to_do(small_source, tmp_path):
    source, _ = small_source
    with pytest.raises(UserError, match="give its folder with --from"):
        download(source, tmp_path, lambda line: None, (tmp_path / "absent").as_uri())


def test_archive_members_cannot_leave_the_folder(tmp_path):
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("../../evil.csv")
        content = b"step,reward,seed\n"
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    with unpacked(tmp_path / "evil.tar.gz") as folder:
        assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.csv")] == ["evil.csv"]


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    for name, message in (("x.txt", "neither a folder nor"), ("absent", "no folder or archive")):
        with pytest.raises(UserError, match=message), unpacked(tmp_path / name):
            pass


def test_commands_import_and_check(tmp_path):
    write_csv(tmp_path / "in" / "a", "walker-walk", [(1, 0, 2.0), (1, 0, 2.0)])
    runner = CliRunner()
    out = str(tmp_path / "out")
    result = runner.invoke(app, ["published", "import", "--from", str(tmp_path / "in"), "-o", out])
    assert result.exit_code == 0, result.output
    assert "licence unknown" in result.stdout
    assert "assumed: `step` counts env steps" in result.stdout
    result = runner.invoke(app, ["published", "check", out])
    assert "duplicate: 1 (the same rows twice: one of them is kept)" in result.stdout
    assert "a · walker-walk · seed 1: 1 rows, first at 0" in result.stdout
    value = json.loads(runner.invoke(app, ["published", "check", out, "--json"]).stdout)
    assert value["irregularities"][0]["kind"] == "duplicate"


# The committed table.


@pytest.fixture(scope="module")
def finals():
    """The committed final scores."""
    return load_finals()


def test_committed_finals_are_whole(finals):
    assert list(finals.columns) == list(FINALS)
    paper = finals[(finals["obs"] == "state") & (finals["variant"] == "default")]
    count = paper.groupby("agent")["task"].agg(["nunique", "size"])
    assert count.to_dict("index") == {agent: {"nunique": 104, "size": 312} for agent in AGENTS}
    assert set(finals["licence"]) == {"MIT"}
    assert {(row.repository, row.commit) for row in finals.itertuples()} == {
        (source.repository, source.commit[:10]) for source in SOURCES
    }
    assert finals["score"].between(-1, 100).all()
    assert not finals.duplicated(["agent", "variant", "obs", "task", "seed"]).any()


@pytest.mark.parametrize(
    ("agent", "mean", "iqm"),
    [("tdmpc2", 90.8, 97.6), ("tdmpc", 78.4, 90.5), ("sac", 61.1, 71.9), ("dreamerv3", 46.8, 48.1)],
)
def test_check_values_of_all_104_tasks(finals, agent, mean, iqm):
    rows = finals[(finals["agent"] == agent) & (finals["obs"] == "state") & (finals["variant"] == "default")]
    matrix = rows.pivot(index="seed", columns="task", values="score").to_numpy()
    assert matrix.shape == (3, 104)
    values = dict(zip(("median", "iqm", "mean", "gap"), aggregate(matrix), strict=True))
    assert values["mean"] == pytest.approx(mean, abs=0.051)
    assert values["iqm"] == pytest.approx(iqm, abs=0.051)


def test_finals_become_evaluations(finals):
    evals = finals_as_evals(finals)
    assert evals.dtypes.astype(str).to_dict() == EVALS
    row = evals[(evals["agent"] == "tdmpc2") & (evals["task"] == "dog-run") & (evals["obs"] == "state")].iloc[0]
    assert row["return"] == pytest.approx(row["score"] * 10)
    assert np.isnan(row["success"])
    assert row["agent_steps"] == row["env_steps"] // 2
    assert row["domain_version"] == TDMPC2.domain_versions["dmcontrol"]


def test_absent_finals_say_where_they_come_from(tmp_path):
    with pytest.raises(UserError, match="comes with a clone"):
        load_finals(tmp_path / "final_scores.csv")


def test_sources_name_every_domain_of_the_task_table():
    assert set(TDMPC2.domain_versions) == {task.domain for task in tasks.task_set("all")} - {"unknown"}
    assert set(DREAMERV3.domain_versions) == {"dmcontrol"}


# The authors' own files.


@pytest.fixture(scope="module")
def authors():
    """Everything that was published."""
    return read_published(FULL)


@needs_full
def test_authors_files_are_recognised_whole(authors):
    assert all(one.verified for one in authors.provenance)
    assert {one.part for one in authors.provenance} == {*TDMPC2.parts, *DREAMERV3.parts}
    found = kinds(authors)
    assert sum(kind == "restarted" for kind, *_ in found) == 23
    assert sum(kind == "duplicate" for kind, *_ in found) == 28
    assert ("stopped early", "dog-stand", 2) in found
    assert ("stopped early", "mw-reach", 3) in found


@needs_full
def test_committed_finals_are_what_the_authors_files_give(authors, finals, tmp_path):
    written = write_finals(authors, tmp_path)
    pd.testing.assert_frame_equal(load_finals(written), finals)
