"""Collecting again: quick where nothing changed, and never anything else than collecting afresh."""

from __future__ import annotations

import os
import shutil
import time

import pytest

from analysis import collect_cache, reading
from analysis.cli import collect as command
from analysis.collect import collect
from analysis.collect_cache import NAME, Cache
from analysis.tables import load_tables, write_tables
from bench.run_progress import STALE_AFTER_S
from bench.rundir import RunDir
from bench.schema import SCHEMA_VERSION


@pytest.fixture
def results(make_run, tmp_path, monkeypatch):
    """Three finished runs and a failed one, collected once; files count as old enough to be trusted at once."""
    monkeypatch.setattr(collect_cache, "RECENT_S", -60.0)
    folder = tmp_path / "runs"
    for seed in (1, 2, 3):
        make_run(folder, {100: 400.0 + seed, 200: 500.0 + seed}, seed=seed)
    make_run(folder, {100: 1.0}, seed=4, done=False).mark_failed(ValueError("reward is NaN"))
    command(folder, folder / "tables", as_json=True)
    return folder


@pytest.fixture
def read_again(monkeypatch):
    """The run directories that were really read."""
    paths = []

    def read(run):
        paths.append(run.path)
        return original(run)

    original = reading.read_run
    monkeypatch.setattr(reading, "read_run", read)
    return paths


def same_as_afresh(folder):
    """Collects with the cache by the command; True where every file is that of a collection without one."""
    command(folder, folder / "tables", as_json=True)
    names = [path.name for path in write_tables(collect(folder), folder.parent / "afresh")]
    return all(
        (folder / "tables" / name).read_bytes() == (folder.parent / "afresh" / name).read_bytes() for name in names
    )


def one(folder, seed):
    return RunDir(next(folder.glob(f"*/*/seed{seed}-*")))


def test_nothing_is_read_again_where_nothing_changed(results, read_again):
    command(results, results / "tables", as_json=True)
    assert load_tables(results).runs["state"].tolist() == ["done", "done", "done", "failed"]  # as the report does
    assert read_again == []
    assert same_as_afresh(results)


def change_eval(folder):
    """The same number of bytes and the same time of change of the contents, as a careless copy may have it."""
    path = one(folder, 2).eval_csv
    before = path.stat()
    path.write_text(path.read_text().replace("412.0", "999.0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def lose_done(folder):
    (one(folder, 2).path / "done.json").unlink()


def beat(folder):
    one(folder, 4).beat(env_steps=150, wall_s=9000.0)


def fail(folder):
    one(folder, 1).mark_failed(RuntimeError("out of memory"))


def begin_again(folder):
    one(folder, 3).begin_attempt({"commit": "def456", "device": "cpu"})


CHANGES = (change_eval, lose_done, beat, fail, begin_again)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_directory_is_read_again(results, read_again, change):
    change(results)
    command(results, results / "tables", as_json=True)
    assert len(read_again) == 1
    assert same_as_afresh(results)


def test_changes_are_seen_in_the_tables(results):
    change_eval(results)
    assert (999.0 + 392.0) / 2 in load_tables(results).evals["return"].tolist()  # the mean of two episodes


def test_removed_and_new_runs(results, make_run):
    shutil.rmtree(one(results, 1).path)
    make_run(results, {100: 7.0}, seed=9)
    assert same_as_afresh(results)
    assert load_tables(results / "tables").runs["seed"].tolist() == [2, 3, 4, 9]


def test_a_live_run_becomes_stale_by_time_alone(results, make_run, monkeypatch):
    run = make_run(results, {100: 7.0}, seed=9, done=False)
    run.beat(env_steps=100, wall_s=1.0)
    command(results, results / "tables", as_json=True)
    assert load_tables(results / "tables").runs["state"].tolist()[-1] == "running"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + STALE_AFTER_S + 1)
    command(results, results / "tables", as_json=True)
    assert load_tables(results / "tables").runs["state"].tolist()[-1] == "stale"


def test_what_changed_a_moment_ago_is_not_kept(results, read_again, monkeypatch):
    monkeypatch.setattr(collect_cache, "RECENT_S", 60.0)
    (results / "tables" / NAME).unlink()
    command(results, results / "tables", as_json=True)
    command(results, results / "tables", as_json=True)
    assert len(read_again) == 8


def cut(path, monkeypatch):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path, monkeypatch):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path, monkeypatch):
    path.write_bytes(b"")


def other_version(path, monkeypatch):
    monkeypatch.setattr(collect_cache.schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)


def other_code(path, monkeypatch):
    changed = path.with_name("changed.py")
    changed.write_text("# the same module, edited\n")
    monkeypatch.setattr(reading, "__file__", str(changed))


@pytest.mark.parametrize("spoil", [cut, flip, empty, other_version, other_code])
def test_a_damaged_or_foreign_cache_is_not_used(results, read_again, monkeypatch, spoil):
    spoil(results / "tables" / NAME, monkeypatch)
    tables = collect(results, cache=Cache.load(results / "tables"))
    assert len(read_again) == 4
    assert len(tables.evals) == 7


def test_refused_files_are_tried_again(results, read_again):
    (one(results, 1).path / "done.json").write_text("{")
    one(results, 2).run_json.write_text("[]")
    for _ in range(2):
        command(results, results / "tables", as_json=True)
    assert len(read_again) == 4
    assert same_as_afresh(results)


@pytest.mark.parametrize("name", ["evals.csv", "runs.csv", "evals.parquet", "tables.json"])
def test_spoilt_tables_are_written_again(results, name):
    (results / "tables" / name).write_bytes(b"{}")
    assert same_as_afresh(results)


def test_only_live_runs_leave_an_empty_cache(results, make_run, tmp_path):
    folder = tmp_path / "live"
    make_run(folder, {100: 7.0}, done=False).beat(env_steps=100, wall_s=1.0)
    cache = Cache.load(results / "tables")
    collect(folder, cache=cache)
    cache.save(folder)
    assert len(collect(folder, cache=Cache.load(folder)).evals) == 1


def test_another_folder_of_the_same_name_is_read_afresh(results, make_run, tmp_path, monkeypatch):
    """Relative paths are equal there, the files are not."""
    other = tmp_path / "elsewhere" / "runs"
    make_run(other, {100: 3.0}, seed=1)
    monkeypatch.chdir(tmp_path)
    command(results.relative_to(tmp_path), tmp_path / "out", as_json=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    command(results.relative_to(tmp_path), tmp_path / "out", as_json=True)
    assert load_tables(tmp_path / "out").evals["return"].tolist() == [3.0]
