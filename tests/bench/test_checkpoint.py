"""Checkpoints: the last two, whole or passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import checkpoint
from bench.errors import UserError
from bench.rundir import RunDir
from bench.worker import lockstep_groups


def run_dir(path: Path) -> RunDir:
    path.mkdir()
    return RunDir(path)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "a")
    for steps in (0, 10, 20, 30):
        checkpoint.save(run, steps, {"value": torch.tensor([steps])})
    assert checkpoint.saved(run) == [20, 30]
    state = checkpoint.load(run, 30)
    assert state is not None
    assert state["value"].item() == 30
    assert state["at"] == 30
    checkpoint.discard_after(run, 20)
    assert checkpoint.saved(run) == [20]


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, keep: int) -> None:
    run = run_dir(tmp_path / "a")
    for steps in (10, 20):
        checkpoint.save(run, steps, {"value": torch.arange(steps)})
    newest = run.checkpoints / "0000000020.pt"
    newest.write_bytes(newest.read_bytes()[:keep])
    (run.checkpoints / ".0000000030.pt.x").write_bytes(b"half written")
    with pytest.warns(UserWarning, match="damaged"):
        found = checkpoint.load_common([run])
    assert found is not None
    assert found[0] == 10
    assert len(found[1][0]["value"]) == 10


def test_a_fleet_goes_on_from_what_all_have(tmp_path: Path) -> None:
    ahead, behind, fresh = (run_dir(tmp_path / name) for name in "abc")
    for run, steps in ((ahead, (10, 20)), (behind, (5, 10))):
        for number in steps:
            checkpoint.save(run, number, {})
    found = checkpoint.load_common([ahead, behind])
    assert found is not None
    assert found[0] == 10
    assert checkpoint.load_common([ahead, fresh]) is None
    assert lockstep_groups([ahead, behind]) == [[ahead, behind]]
    assert lockstep_groups([ahead, fresh]) == [[fresh], [ahead]]
    assert lockstep_groups([fresh, run_dir(tmp_path / "d")])[0][0] is fresh
    checkpoint.save(ahead, 30, {})
    assert sorted(map(len, lockstep_groups([ahead, behind, fresh]))) == [1, 1, 1]
    begun = run_dir(tmp_path / "e")
    checkpoint.save(begun, 0, {})
    assert lockstep_groups([begun, fresh]) == [[begun, fresh]]


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_dir(tmp_path / "a")
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 7)
    checkpoint.save(run, 10, {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 7"):
        checkpoint.load(run, 10)
