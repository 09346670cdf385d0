from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from analysis import reading
from analysis.cli import app
from analysis.collect import collect
from analysis.tables import VERSION_KEY, load_tables, write_tables
from bench.errors import UserError
from bench.schema import EVAL_CSV, EVALS, RUNS, SCHEMA_VERSION


def test_one_row_for_each_evaluation_with_the_mean_of_its_episodes(make_run, tmp_path):
    run = make_run(tmp_path, {0: 20.0, 100: 500.0, 200: 900.0})
    tables = collect(tmp_path)
    assert tables.problems == ()
    assert dict(tables.evals.dtypes.astype(str)) == EVALS
    assert tables.evals["env_steps"].tolist() == [0, 100, 200]
    assert tables.evals["agent_steps"].tolist() == [0, 50, 100]
    assert tables.evals["return"].tolist() == [20.0, 500.0, 900.0]
    assert tables.evals["success"].tolist() == [0.5, 0.5, 0.5]
    assert tables.evals["score"].tolist() == [2.0, 50.0, 90.0]
    assert set(tables.evals["source"]) == {run.path.as_posix()}
    assert set(tables.evals["run_id"]) == {run.spec.run_id}


def test_score_of_other_domains_is_the_success_rate(make_run, tmp_path):
    make_run(tmp_path, {100: 700.0}, task="mw-assembly", domain="metaworld")
    assert collect(tmp_path).evals["score"].tolist() == [50.0]


def test_runs_row_holds_state_and_provenance(make_run, tmp_path):
    run = make_run(tmp_path, {200: 900.0})
    runs = collect(tmp_path).runs
    assert dict(runs.dtypes.astype(str)) == RUNS
    row = runs.iloc[0]
    assert (row["state"], row["env_steps"], row["budget_env_steps"], row["attempts"]) == ("done", 200, 200, 1)
    assert (row["commit"], row["dirty"], row["host"], row["gpu"], row["job_id"]) == (
        "abc123",
        False,
        "node1",
        "H200",
        "77",
    )
    assert (row["wall_s"], row["gpu_h"], row["peak_gpu_gb"]) == (7200.0, 1.0, 1.5)  # two runs share the GPU for 2 h
    assert json.loads(row["versions"]) == {"torch": "2.13.0"}
    assert row["hash"] == run.spec.hash
    assert row["started"] <= row["ended"]
    assert pd.isna(row["error_class"])


def test_no_gpu_hours_on_a_cpu(make_run, tmp_path):
    run = make_run(tmp_path, {200: 900.0})
    info = json.loads(run.run_json.read_text())
    info["attempts"][-1]["device"] = "cpu"
    run.run_json.write_text(json.dumps(info))
    assert collect(tmp_path).runs["gpu_h"].tolist() == [0.0]


def test_failed_run_keeps_its_error(make_run, tmp_path):
    run = make_run(tmp_path, {100: 100.0}, done=False)
    run.mark_failed(ValueError("reward is NaN"))
    tables = collect(tmp_path)
    row = tables.runs.iloc[0]
    assert (row["state"], row["error_class"], row["env_steps"]) == ("failed", "ValueError", 100)
    failure = tables.failures[run.path.as_posix()]
    assert failure.message == "reward is NaN"
    assert len(tables.evals) == 1


def test_run_without_evaluation_is_in_runs_only(make_run, tmp_path):
    make_run(tmp_path, {}, done=False)
    tables = collect(tmp_path)
    assert len(tables.evals) == 0
    assert dict(tables.evals.dtypes.astype(str)) == EVALS
    assert tables.runs["state"].tolist() == ["pending"]
    assert tables.problems == ()


@pytest.mark.parametrize("torn", ["200,100,20.0,2,9", "2", "200,100,20.0,2,90.0,0,5\x00"])
def test_torn_last_row_is_left_out_and_named(make_run, tmp_path, torn):
    run = make_run(tmp_path, {100: 500.0, 200: 900.0})
    with run.eval_csv.open("a") as file:
        file.write(torn)
    tables = collect(tmp_path)
    assert tables.evals["return"].tolist() == [500.0, 900.0]
    assert [problem.message for problem in tables.problems] == ["eval.csv ends in a torn row: left out"]


def test_damaged_rows_inside_are_counted(make_run, tmp_path):
    run = make_run(tmp_path, {100: 500.0})
    lines = run.eval_csv.read_text().splitlines()
    run.eval_csv.write_text("\n".join([*lines, "\x00\x00\x00", "x,50,1.0,0,5,0,500"]) + "\n")
    tables = collect(tmp_path)
    assert tables.evals["return"].tolist() == [500.0]
    assert [problem.message for problem in tables.problems] == ["eval.csv has 2 damaged rows: left out"]


def test_nan_return_stays_visible(make_run, tmp_path):
    make_run(tmp_path, {100: 500.0, 200: float("nan")})
    tables = collect(tmp_path)
    assert tables.evals["env_steps"].tolist() == [100, 200]
    assert np.isnan(tables.evals["score"].iloc[1])


def test_episode_written_twice_counts_once(make_run, tmp_path):
    run = make_run(tmp_path, {100: 500.0})
    lines = run.eval_csv.read_text().splitlines()
    run.eval_csv.write_text("\n".join([*lines, lines[-1].replace("510.0", "530.0")]) + "\n")
    tables = collect(tmp_path)
    assert tables.evals["return"].tolist() == [(490 + 530) / 2]
    assert "1 episodes twice" in tables.problems[0].message


def test_evaluation_with_too_few_episodes_is_named(make_run, tmp_path):
    run = make_run(tmp_path, {100: 500.0})
    run.eval_csv.write_text("\n".join(run.eval_csv.read_text().splitlines()[:-1]) + "\n")
    tables = collect(tmp_path)
    assert tables.evals["return"].tolist() == [490.0]
    assert "1 of 1 evaluations have fewer than 2 episodes" in tables.problems[0].message


@pytest.mark.parametrize(
    "damage", ["{", "[]", "{}", '{"schema_version": 1, "hash": "x", "spec": {}, "attempts": []}', "\xff"]
)
def test_damaged_run_json_is_a_problem_and_the_others_are_read(make_run, tmp_path, damage):
    make_run(tmp_path, {100: 500.0})
    broken = make_run(tmp_path, {100: 500.0}, seed=2)
    broken.run_json.write_bytes(damage.encode("latin-1"))
    tables = collect(tmp_path)
    assert len(tables.runs) == 1
    assert [problem.path for problem in tables.problems] == [broken.path.as_posix()]
    assert "run.json cannot be used" in tables.problems[0].message


@pytest.mark.parametrize("name", ["heartbeat", "done.json"])
def test_damaged_state_files_leave_the_state_unknown(make_run, tmp_path, name):
    run = make_run(tmp_path, {100: 500.0})
    (run.path / name).write_text("{")
    tables = collect(tmp_path)
    assert tables.runs["state"].isna().all()
    assert len(tables.evals) == 1
    assert all(problem.path == run.path.as_posix() for problem in tables.problems)
    assert len(tables.problems) == 2


def test_run_found_twice_counts_once_in_evals_and_twice_in_runs(make_run, tmp_path):
    first = make_run(tmp_path / "a", {100: 500.0})
    second = make_run(tmp_path / "b", {100: 700.0, 200: 800.0})
    tables = collect(tmp_path)
    assert tables.evals["source"].tolist() == [first.path.as_posix()]
    assert len(tables.runs) == 2
    assert {problem.path for problem in tables.problems} == {second.path.as_posix()}
    assert any(f"also in {first.path.as_posix()}" in problem.message for problem in tables.problems)


def test_first_copy_without_evaluations_gives_way(make_run, tmp_path):
    make_run(tmp_path / "a", {}, done=False)
    second = make_run(tmp_path / "b", {100: 700.0})
    tables = collect(tmp_path)
    assert tables.evals["source"].tolist() == [second.path.as_posix()]
    assert len(tables.problems) == 1


def test_unknown_task_has_no_score_but_its_returns(make_run, tmp_path):
    make_run(tmp_path, {100: 500.0}, task="walker-fly")
    tables = collect(tmp_path)
    assert tables.evals["return"].tolist() == [500.0]
    assert tables.evals["score"].isna().all()
    assert "unknown task 'walker-fly'" in tables.problems[0].message


def test_nothing_to_collect_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no run directory below"):
        collect(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        collect(tmp_path / "nowhere")


def test_tables_come_back_as_they_were_written(make_run, tmp_path):
    make_run(tmp_path / "runs", {100: 500.0, 200: float("nan")})
    failed = make_run(tmp_path / "runs", {}, done=False, seed=2, variant="big, wide")
    failed.mark_failed(ValueError("x"))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    tables = collect(tmp_path / "runs")
    out = tmp_path / "tables"
    write_tables(tables, out)
    assert pq.read_schema(out / "evals.parquet").metadata[VERSION_KEY] == str(SCHEMA_VERSION).encode()
    for drop in ((), ("evals.parquet", "runs.parquet")):  # from Parquet, then from CSV
        for name in drop:
            (out / name).unlink()
        read = load_tables(out)
        pd.testing.assert_frame_equal(read.evals, tables.evals)
        pd.testing.assert_frame_equal(read.runs, tables.runs)
        assert (read.problems, read.configurations) == (tables.problems, tables.configurations)
        assert dict(read.failures) == dict(tables.failures)


def test_collecting_twice_gives_the_same_bytes(make_run, tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / "runs", {100: 500.0 + seed}, seed=seed)
    contents = []
    for name in ("a", "b"):
        written = write_tables(collect(tmp_path / "runs"), tmp_path / name)
        contents.append([path.read_bytes() for path in written])
    assert contents[0] == contents[1]


def test_a_folder_of_run_directories_is_collected_even_with_tables_in_it(make_run, tmp_path):
    make_run(tmp_path, {100: 500.0})
    write_tables(collect(tmp_path), tmp_path / "tables")
    make_run(tmp_path, {100: 500.0}, seed=2)
    assert len(load_tables(tmp_path).runs) == 2


def edit_sidecar(folder: Path, **values: object) -> None:
    path = folder / "tables.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_tables_of_another_version_or_shape_are_refused(make_run, tmp_path):
    make_run(tmp_path / "runs", {100: 500.0})
    out = tmp_path / "tables"
    tables = collect(tmp_path / "runs")
    write_tables(tables, out)
    edit_sidecar(out, schema_version=99)
    with pytest.raises(UserError, match="schema version 99, this code reads 1"):
        load_tables(out)
    edit_sidecar(out, schema_version=SCHEMA_VERSION)
    (out / "evals.parquet").unlink()
    tables.evals.rename(columns={"env_steps": "step"}).to_csv(out / "evals.csv", index=False)
    with pytest.raises(UserError, match=r"lacks env_steps and has unknown step"):
        load_tables(out)
    tables.evals.astype({"seed": "string"}).assign(seed="one").to_csv(out / "evals.csv", index=False)
    with pytest.raises(UserError, match="column seed is not int64"):
        load_tables(out)
    (out / "evals.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="damaged"):
        load_tables(out)
    (out / "evals.parquet").unlink()
    (out / "tables.json").unlink()
    with pytest.raises(UserError, match=r"no tables\.json"):
        load_tables(out)


def test_command_prints_what_it_found(make_run, tmp_path):
    run = make_run(tmp_path, {100: 500.0}, budget_env_steps=100)
    with run.eval_csv.open("a") as file:
        file.write("1")
    result = CliRunner().invoke(app, ["collect", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["evals"], said["runs"], said["states"], len(said["problems"])) == (1, 1, {"done": 1}, 1)
    assert all(Path(path).exists() for path in said["files"])
    plain = CliRunner().invoke(app, ["collect", str(tmp_path), "-o", str(tmp_path / "out")])
    assert "1 runs (1 done), 1 evaluations" in plain.stdout
    assert "problem: " in plain.stdout
    assert (tmp_path / "out" / "evals.csv").exists()


ROWS = ("0,0,0.0,0,1.0,0.0,500", "0,0,0.0,1,2.0,0.0,500", "100,50,1.5,0,3.0,1.0,500")


@pytest.mark.parametrize(
    "text",
    [
        "\n".join([",".join(EVAL_CSV), *ROWS]) + "\n",
        "\n".join([",".join(EVAL_CSV), *ROWS, "200,100,2.0,0,9"]) + "\n",  # a short row
        "\n".join([",".join(EVAL_CSV), *ROWS, "200,100,2.0,0,9,0,500,7"]) + "\n",  # a long row
        "\n".join([",".join(EVAL_CSV), *ROWS, ""]) + "\n",  # an empty line
        "\n".join([",".join(EVAL_CSV), *ROWS, "200,100,2.0,0,9.0,0.0,500"]),  # a torn row
        "\n".join([",".join(EVAL_CSV), *ROWS, ROWS[0]]) + "\n",  # twice and out of order
        "\n".join([",".join(EVAL_CSV), *ROWS, "200,100,2.0,0,nan,0.0,500"]) + "\n",
        "\n".join([",".join(EVAL_CSV), *ROWS, "200,100,2.0,0,x,0.0,500"]) + "\n",
    ],
)
def test_fast_reading_is_the_careful_one(tmp_path, monkeypatch, text):
    path = tmp_path / "eval.csv"
    path.write_text(text)
    found, remarks = reading.read_eval_csv(path)
    monkeypatch.setattr(reading, "_read_regular", lambda *arguments: None)
    expected, expected_remarks = reading.read_eval_csv(path)
    pd.testing.assert_frame_equal(found, expected)
    assert remarks == expected_remarks
