from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.results_tree import walk
from bench.rundir import RunDir, find_runs
from bench.runspec import RunSpec
from sweeps import state


def spec(seed: int = 1) -> RunSpec:
    return RunSpec(
        agent="sac",
        variant="default",
        task="cup-catch",
        domain="dmcontrol",
        domain_version="x",
        obs="state",
        seed=seed,
        action_repeat=2,
        num_envs=1,
        budget_env_steps=1000,
        eval_every_env_steps=500,
        eval_episodes=2,
        hyperparameters={},
    )


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@contextmanager
def another_user(*closed: Path) -> Iterator[None]:
    """As a user who may not enter some folders."""
    for path in closed:
        path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in closed:
            path.chmod(0o755)


def names(root: Path) -> list[str]:
    return [folder.path.relative_to(root).as_posix() for folder in walk(root)[0]]


def test_linked_folders_are_entered_once_and_loops_cut(tmp_path: Path) -> None:
    real = RunDir.create(tmp_path / "elsewhere", spec()).path
    inside = RunDir.create(tmp_path / "results", spec(2)).path
    (tmp_path / "results" / "a-link").symlink_to(real)
    (tmp_path / "results" / "b-link").symlink_to(real)  # the same run again
    (tmp_path / "results" / "again").symlink_to(inside)  # sorts before what it links to
    (tmp_path / "results" / "sac" / "loop").symlink_to(tmp_path / "results")
    runs, unreadable = find_runs(tmp_path / "results")
    assert [run.path for run in runs] == [tmp_path / "results" / "a-link", inside]
    assert not unreadable


def test_a_link_to_a_folder_around_the_tree_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "up").symlink_to(tmp_path)
    [one] = walk(tmp_path / "results")[1]
    assert "not followed" in str(one)


def test_hidden_folders_are_skipped_without_a_word(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints", ".git", "sac/.ipynb_checkpoints"):
        RunDir.create(tmp_path / name, spec())
    folders, unreadable = walk(tmp_path)
    assert [folder.path for folder in folders] == [tmp_path, tmp_path / "sac"]
    assert not unreadable


def test_a_broken_link_that_may_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "sac").symlink_to(tmp_path / "gone")
    assert [str(one) for one in walk(tmp_path)[1]] == [f"{tmp_path}/sac: link to {tmp_path}/gone, which does not exist"]


def test_an_unreadable_folder_is_named_and_the_rest_is_read(shared: Path) -> None:
    for sweep in ("mine", "theirs"):
        RunDir.create(shared / sweep, spec())
    with another_user(shared / "theirs"):
        runs, unreadable = find_runs(shared)
    assert [run.path.parts[-4] for run in runs] == ["mine"]
    assert [str(one) for one in unreadable] == [f"{shared}/theirs: cannot be read: Permission denied"]


def test_an_unreadable_root_is_one_line(shared: Path) -> None:
    (shared / "closed" / "results").mkdir(parents=True)
    with another_user(shared / "closed"):
        assert walk(shared / "closed")[1]
        with pytest.raises(UserError, match="cannot be read: Permission denied"):
            walk(shared / "closed" / "results")
    (shared / "file").write_text("")
    with pytest.raises(UserError, match="no folder"):
        walk(shared / "file")


def broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "gone.json")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "a broken link": broken_link,
    "a folder": folder,
    "no JSON": lambda path: path.write_text("{"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[]"),
    "of the future": lambda path: path.write_text('{"schema_version": 99}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unreadable_run_json_is_never_taken_for_a_new_run(tmp_path: Path, damage: str) -> None:
    run, whole = RunDir.create(tmp_path, spec()), RunDir.create(tmp_path, spec(2))
    DAMAGES[damage](run.run_json)
    before = os.lstat(run.run_json)
    assert state.read(run, spec()).state == "failed"  # a launch leaves it alone
    with pytest.raises(UserError) as error:
        RunDir.create(tmp_path, spec())
    assert "\n" not in str(error.value)
    assert os.lstat(run.run_json) == before
    states, unreadable = state.read_folder(tmp_path)
    assert [one.directory.path for one in states] == [whole.path]
    assert [one.path for one in unreadable] == [run.path]


@pytest.mark.parametrize("depth", range(3))
def test_a_run_behind_a_closed_folder_is_never_taken_for_a_new_one(shared: Path, depth: int) -> None:
    run = RunDir.create(shared / "sweep", spec())
    with another_user(run.path.parents[depth] if depth else run.path):
        assert state.read(RunDir(run.path), spec()).state == "failed"
        with pytest.raises(UserError, match="Permission denied"):
            RunDir.create(shared / "sweep", spec())


def test_a_run_below_a_broken_link_is_never_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "sac").symlink_to(tmp_path / "gone")
    assert state.read(RunDir(tmp_path / spec().run_id), spec()).state == "failed"


def test_unreadable_checkpoints_are_not_taken_for_none(shared: Path) -> None:
    run = RunDir.create(shared, spec())
    run.checkpoints.mkdir()
    (run.checkpoints / "0000000100.pt").write_bytes(b"")
    assert run.newest_checkpoint() == 100
    with another_user(run.checkpoints), pytest.raises(UserError, match="Permission denied"):
        run.saved()
