"""Converted data sets: every row where the layout says, and the same bytes after an interruption."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import NAMES, folder_of, mixed, rows_of

from bench.datasets import convert as conversion
from bench.datasets.convert import convert
from bench.datasets.dataset import Dataset
from bench.datasets.description import ChunkFolder, Part
from bench.datasets.layout import ENTRIES, PROGRESS, Layout
from bench.errors import UserError
from bench.tasks import get

CHUNKS = [mixed([3, 0, 2], 6, seed=0), mixed([1, 4, 5], 6, seed=1)]


def rows_in_order(chunks: Sequence[dict[str, torch.Tensor]], task: int) -> np.ndarray:
    """The rows of a task as they should lie on the disk: (rows, T + 1, O + A + 1)."""
    found, row = [], get(NAMES[task])
    for chunk in chunks:
        mine = chunk["task"][:, 1] == task
        action, reward = chunk["action"][mine][..., : row.action_size].clone(), chunk["reward"][mine].clone()
        action[:, 0] = reward[:, 0] = 0
        found.append(torch.cat([chunk["obs"][mine][..., : row.obs_size], action, reward[..., None]], -1).numpy())
    return np.concatenate(found)


def test_every_row_is_in_its_place(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    layout = convert(folder_of(tmp_path / "chunks", CHUNKS), tmp_path / "set", NAMES, say=lambda *x: said.append(x))
    assert [(part.task, part.rows) for part in layout.parts] == list(zip(NAMES, (4, 4, 7), strict=True))
    assert said[0] == ("chunks looked through", 1, 2)
    assert said[-1] == ("rows", 15, 15)
    dataset = Dataset.open(tmp_path / "set")
    for task in range(3):
        np.testing.assert_array_equal(dataset.entries(task), rows_in_order(CHUNKS, task))
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["dataset.json", ENTRIES]
    assert convert(tmp_path / "chunks", tmp_path / "set", NAMES) == layout  # there already
    with pytest.raises(UserError, match="was made from other tasks: choose another folder"):
        convert(tmp_path / "chunks", tmp_path / "set", NAMES[::-1])
    folder_of(tmp_path / "chunks", [CHUNKS[0], mixed([1, 4, 6], 6)])
    with pytest.raises(UserError, match="was made from other chunks"):
        convert(tmp_path / "chunks", tmp_path / "set", NAMES)


def test_the_folder_says_what_the_ids_mean(tmp_path: Path) -> None:
    folder_of(tmp_path / "chunks", CHUNKS)
    with pytest.raises(UserError, match=r"has task ids 0 to 2 and no chunks.json that names them: give --tasks"):
        convert(tmp_path / "chunks", tmp_path / "set")
    part = Part(NAMES[0], "random actions", 1, 1, "")
    ChunkFolder(NAMES, 6, [part] * 2).write(tmp_path / "chunks")
    assert [part.task for part in convert(tmp_path / "chunks", tmp_path / "set").parts] == NAMES
    ChunkFolder(NAMES, 6, [part] * 3).write(tmp_path / "chunks")
    with pytest.raises(UserError, match=r"lacks chunk_2.pt \(of 3 files\)"):
        convert(tmp_path / "chunks", tmp_path / "other")
    assert convert(tmp_path / "chunks", tmp_path / "other", allow_missing=True).rows == 15


@pytest.mark.parametrize(("name", "files"), [("mt30", 4), ("mt80", 20)])
def test_the_published_sets_are_known_by_their_number(name: str, files: int, tmp_path: Path) -> None:
    from bench.tasks import task_set

    names = [task.name for task in task_set(name)]
    chunks = [mixed([int(task % files == file) for task in range(len(names))], 3, names=names) for file in range(files)]
    folder_of(tmp_path / "chunks", chunks[:-1])
    with pytest.raises(UserError, match=r"is one missing|lacks chunk_"):
        convert(tmp_path / "chunks", tmp_path / "set")
    folder_of(tmp_path / "chunks", chunks)
    layout = convert(tmp_path / "chunks", tmp_path / "set")
    assert [(part.task, part.rows) for part in layout.parts] == [(task, 1) for task in names]


def killed_in(target: Path, source: Path, blocks: int) -> None:
    """A conversion that dies right after so many blocks, as by kill -9."""
    child = os.fork()
    if child == 0:

        def say(what: str, done: int, total: int) -> None:
            nonlocal blocks
            blocks -= what == "rows"
            if blocks == 0:
                os._exit(9)

        convert(source, target, NAMES, say=say)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_an_interrupted_conversion_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "BLOCK_BYTES", 6 * 11 * 4 * 2)  # two rows
    folder_of(tmp_path / "chunks", CHUNKS)
    whole = convert(tmp_path / "chunks", tmp_path / "whole", NAMES)
    for blocks in (1, 3, 8):
        target = tmp_path / f"killed{blocks}"
        killed_in(target, tmp_path / "chunks", blocks)
        with pytest.raises(UserError, match="is not converted to the end: run the same bench data convert again"):
            Dataset.open(target)
        begun = json.loads((target / PROGRESS).read_text())
        # What was on the way beyond the last noted block.
        with (target / ENTRIES).open("r+b") as file:
            place = Layout.from_json(begun["layout"]).starts[2] + begun["written"][2] * 6 * 5
            file.seek(place * 4)
            file.write(b"torn")
        said: list[tuple[str, int, int]] = []
        assert convert(tmp_path / "chunks", target, NAMES, say=lambda *one, into=said: into.append(one)) == whole
        assert said == [("rows", min(2 * block - (block > 2), 15), 15) for block in range(blocks + 1, 9)]
        assert (target / ENTRIES).read_bytes() == (tmp_path / "whole" / ENTRIES).read_bytes()
        assert (target / "dataset.json").read_bytes() == (tmp_path / "whole" / "dataset.json").read_bytes()


def test_two_conversions_into_one_folder(tmp_path: Path) -> None:
    chunks = folder_of(tmp_path / "chunks", CHUNKS)
    refused: list[str] = []

    def meanwhile(what: str, done: int, total: int) -> None:
        if what == "rows" and not refused:
            with pytest.raises(UserError, match=r"set is being written by process \d+ on .*: wait for it") as error:
                convert(chunks, tmp_path / "set", NAMES)
            refused.append(str(error.value))

    layout = convert(chunks, tmp_path / "set", NAMES, say=meanwhile)
    assert refused
    assert not (tmp_path / "set" / "lock").exists()
    assert layout.fingerprint == convert(chunks, tmp_path / "alone", NAMES).fingerprint


def test_a_begun_conversion_of_other_chunks_is_not_gone_on_with(tmp_path: Path) -> None:
    folder_of(tmp_path / "chunks", CHUNKS)
    killed_in(tmp_path / "set", tmp_path / "chunks", 1)
    with pytest.raises(UserError, match="was made from other chunks"):
        convert(folder_of(tmp_path / "others", CHUNKS[:1]), tmp_path / "set", NAMES)
    (tmp_path / "set" / PROGRESS).write_text("{}")
    with pytest.raises(UserError, match=r"converting.json is damaged \(KeyError.*\): remove"):
        convert(tmp_path / "chunks", tmp_path / "set", NAMES)


def test_a_disk_that_fills_up_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder_of(tmp_path / "chunks", CHUNKS)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(UserError, match=r"cannot write .*: No space left on device; the same command goes on"):
            convert(tmp_path / "chunks", tmp_path / "set", NAMES)
    assert convert(tmp_path / "chunks", tmp_path / "set", NAMES).rows == 15


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "chunks", CHUNKS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    with pytest.raises(UserError, match=r"needs 0.0 GB of disk, and 0.0 GB are free: make room"):
        convert(tmp_path / "chunks", tmp_path / "set", NAMES)
    assert not list((tmp_path / "set").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        convert(tmp_path / "chunks", tmp_path / "file" / "set", NAMES)


def change(row: int, **changes: Any) -> dict[str, torch.Tensor]:
    """A chunk whose one row has other numbers: name -> (index within the row, value)."""
    chunk = {name: value.clone() for name, value in CHUNKS[0].items()}
    for name, (where, value) in changes.items():
        chunk[name][row][where] = value
    return chunk


@pytest.mark.parametrize(
    ("chunk", "tasks", "message"),
    [
        (change(2, task=(4, 1)), NAMES, r"chunk_0.pt, row 2: expected is one task id, found 0, 1|found 1, 2"),
        (change(2, task=(slice(None), -1)), NAMES, "row 2: expected is one task id, found -1"),
        (change(3, obs=((2, 0), np.nan)), NAMES, r"chunk_0.pt, row 3 \(.*\): NaN or infinite; is the file damaged"),
        (change(3, reward=(2, np.inf)), NAMES, r"row 3 \(.*\): NaN or infinite"),
        (
            CHUNKS[0],
            [NAMES[2], NAMES[1], NAMES[0]],
            r"row 0: more than the 3 numbers that an observation of pendulum-sw",
        ),
        (CHUNKS[0], NAMES[:2], "has task ids up to 2, but 2 tasks were named: name them all, in order"),
        (
            CHUNKS[0],
            ["walker-walk", "cup-spin", "acrobot-swingup"],
            "observations of 8 and actions of 2, walker-walk has",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(
    chunk: dict[str, torch.Tensor], tasks: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        convert(folder_of(tmp_path / "chunks", [chunk]), tmp_path / "set", tasks)
    assert "\n" not in str(caught.value)


def test_chunks_of_different_sets(tmp_path: Path) -> None:
    folder_of(tmp_path / "chunks", [CHUNKS[0], rows_of(0, 2, 5)])
    with pytest.raises(
        UserError, match=r"chunk_0.pt has rows of 6 entries.*chunk_1.pt 5, 8 and 2: they are not of one"
    ):
        convert(tmp_path / "chunks", tmp_path / "set", NAMES)


def test_the_fingerprint_follows_the_data(tmp_path: Path) -> None:
    first = convert(folder_of(tmp_path / "a", CHUNKS), tmp_path / "set-a", NAMES).fingerprint
    again = convert(folder_of(tmp_path / "renamed", CHUNKS), tmp_path / "set-b", NAMES).fingerprint
    other = convert(folder_of(tmp_path / "b", [CHUNKS[0], mixed([1, 4, 5], 6, seed=2)]), tmp_path / "set-c", NAMES)
    assert first == again != other.fingerprint
    assert Dataset.open(tmp_path / "set-a").fingerprint == Dataset.open(tmp_path / "set-b").fingerprint
    assert (
        Dataset.open(tmp_path / "set-a", NAMES[:2]).fingerprint
        != Dataset.open(tmp_path / "set-a", NAMES[1::-1]).fingerprint
    )
