"""Drawn slices against the rows they come from, and runs in fleets and after a resume against plain ones."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from dataset_files import NAMES, folder_of, mixed

from agents.protocol import Batch
from bench.datasets.convert import convert
from bench.datasets.dataset import Dataset
from bench.errors import UserError
from bench.seeding import derive_seed
from bench.tasks import get

CPU = torch.device("cpu")
COUNTS = [4, 7, 9]
ENTRIES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dataset")
    convert(folder_of(made / "chunks", [mixed(COUNTS, ENTRIES)]), made / "set", NAMES)
    return made / "set"


def plain(dataset: Dataset, seed: int, batches: int, size: int, length: int) -> list[list[Any]]:
    """Every slice by a loop over the source rows, which are read by their row and start alone."""
    generator = np.random.default_rng(derive_seed(seed, "dataset"))
    rows = [(task, row) for task in range(len(dataset.tasks)) for row in dataset.entries(task)]
    out = []
    for _ in range(batches):
        picked = generator.integers(len(rows), size=size)
        starts = generator.integers(dataset.row_entries - length + 1, size=size)
        out.append(
            [(rows[row][0], rows[row][1][start : start + length]) for row, start in zip(picked, starts, strict=True)]
        )
    return out


def assert_is(batch: Batch, run: int, expected: list[Any], dataset: Dataset) -> None:
    for place, (task, rows) in enumerate(expected):
        row = dataset.tasks[task]
        assert batch.task is not None
        assert batch.task[run, place] == task
        obs, action = batch.obs[run, :, place].numpy(), batch.action[run, :, place].numpy()
        np.testing.assert_array_equal(obs[:, : row.obs_size], rows[:, : row.obs_size])
        np.testing.assert_array_equal(action[:, : row.action_size], rows[1:, row.obs_size : -1])
        np.testing.assert_array_equal(batch.reward[run, :, place], rows[1:, -1])
        assert not obs[:, row.obs_size :].any()
        assert not action[:, row.action_size :].any()


@pytest.mark.parametrize("tasks", [None, ["pendulum-swingup", "cup-catch"], ["cartpole-balance"]])
@pytest.mark.parametrize("in_memory", [False, True])
def test_every_slice_is_that_of_its_row(folder: Path, tasks: list[str] | None, in_memory: bool) -> None:
    dataset = Dataset.open(folder, tasks)
    assert [task.name for task in dataset.tasks] == (tasks or NAMES)
    assert dataset.obs_size == max(get(name).obs_size for name in tasks or NAMES)
    counts = dict(zip(NAMES, COUNTS, strict=True))
    assert dataset.rows == sum(counts[name] for name in tasks or NAMES)
    assert dataset.transitions == dataset.rows * (ENTRIES - 1)
    sampler = dataset.sampler(16, 3, [5], CPU, in_memory)
    for expected in plain(dataset, 5, 20, 16, 3):
        batch = sampler.sample()
        assert batch.obs.shape == (1, 3, 16, dataset.obs_size)
        assert batch.action.shape == (1, 2, 16, dataset.action_size)
        assert batch.obs.dtype == batch.action.dtype == batch.reward.dtype == torch.float32
        assert batch.task is not None
        assert batch.task.dtype == torch.int64
        assert batch.terminated.shape == (1, 2, 16)
        assert not batch.terminated.any()
        assert_is(batch, 0, expected, dataset)
    sampler.close()


@pytest.mark.parametrize("length", [2, ENTRIES])
def test_the_shortest_and_the_longest_slices(folder: Path, length: int) -> None:
    dataset = Dataset.open(folder)
    sampler = dataset.sampler(8, length, [1], CPU)
    for expected in plain(dataset, 1, 3, 8, length):
        assert_is(sampler.sample(), 0, expected, dataset)
    for wrong in (1, ENTRIES + 1):
        with pytest.raises(UserError, match=f"slices of {wrong} observations cannot be drawn"):
            dataset.sampler(8, wrong, [1], CPU)


def test_rows_are_drawn_uniformly_and_so_are_starts(folder: Path) -> None:
    dataset = Dataset.open(folder)
    found = np.concatenate([dataset.entries(task)[:, :-2, 0].reshape(-1) for task in range(3)])
    assert len(np.unique(found)) == len(found)  # each first number tells its row and start
    sampler = dataset.sampler(4000, 3, [2], CPU)
    drawn = torch.cat([sampler.sample().obs[0, 0, :, 0] for _ in range(20)]).numpy()
    counts = np.array([(drawn == number).sum() for number in found])
    assert counts.sum() == 80_000
    expected = 80_000 / len(found)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert len(found) == 80
    assert 45 < chi2 < 125  # 79 degrees of freedom: beyond either end once in ten thousand


def equal(a: Batch, b: Batch, run_a: int = 0, run_b: int = 0) -> bool:
    pairs = ((a.obs, b.obs), (a.action, b.action), (a.reward, b.reward), (a.task, b.task))
    return all(torch.equal(one[run_a], other[run_b]) for one, other in pairs if one is not None and other is not None)


def test_a_fleet_draws_as_single_runs_do(folder: Path) -> None:
    dataset = Dataset.open(folder)
    fleet = dataset.sampler(8, 3, [1, 2, 3], CPU)
    alone = [dataset.sampler(8, 3, [seed], CPU) for seed in (1, 2, 3)]
    for _ in range(5):
        batch = fleet.sample()
        assert all(equal(batch, one.sample(), run, 0) for run, one in enumerate(alone))
    assert not equal(batch, batch, 0, 1)


def test_a_resumed_sampler_goes_on_exactly(folder: Path) -> None:
    dataset = Dataset.open(folder)
    sampler = dataset.sampler(8, 3, [1, 2], CPU)
    fresh = [sampler.state_dict(run) for run in range(2)]
    first = [sampler.sample() for _ in range(3)]
    buffer = io.BytesIO()
    torch.save([sampler.state_dict(run) for run in range(2)], buffer)
    after = [sampler.sample() for _ in range(3)]
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    other = dataset.sampler(8, 3, [8, 9], CPU)
    other.sample()
    other.load_state_dict(states)
    assert [other.state_dict(run) for run in range(2)] == states
    for batch in after:
        drawn = other.sample()
        assert equal(drawn, batch, 0, 0)
        assert equal(drawn, batch, 1, 1)
    swapped = dataset.sampler(8, 3, [8, 9], CPU)
    swapped.load_state_dict(states[::-1])
    drawn = swapped.sample()
    assert equal(drawn, after[0], 0, 1)
    assert equal(drawn, after[0], 1, 0)
    swapped.load_state_dict(fresh)
    assert equal(swapped.sample(), first[0])


def test_pages_are_given_back_and_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.datasets import sampler as module

    def resident() -> int:
        return sum(one.rss for one in psutil.Process().memory_maps() if one.path.endswith("entries.f32"))

    monkeypatch.setattr(module, "CHECKED_SLICES", 8)
    before = resident()  # through the maps of other tests
    dataset = Dataset.open(folder)
    sampler = dataset.sampler(8, 3, [5], CPU, resident_bytes=-(2**40))
    for expected in plain(dataset, 5, 5, 8, 3):
        assert_is(sampler.sample(), 0, expected, dataset)
    sampler.sample()  # the batch drawn ahead meanwhile gives back what this test itself read to compare
    sampler.close()
    assert resident() == before
    sampler = dataset.sampler(8, 3, [5], CPU)
    sampler.sample()
    sampler.close()
    assert resident() > before


def test_slices_that_are_waited_for_are_announced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.datasets import sampler as module

    announced: list[int] = []
    announce = module.Gather._announce

    def counting(self: module.Gather, mapped: Any, begin: Any, task: Any) -> None:
        announced.append(begin.size)
        announce(self, mapped, begin, task)

    monkeypatch.setattr(module.Gather, "_announce", counting)
    dataset = Dataset.open(folder)
    for waiting_s, batches in ((0.0, 4), (60.0, 0)):
        monkeypatch.setattr(module, "WAITING_S", waiting_s)
        announced.clear()
        sampler = dataset.sampler(8, ENTRIES, [5], CPU)
        for expected in plain(dataset, 5, 4, 8, ENTRIES):
            assert_is(sampler.sample(), 0, expected, dataset)
        sampler.close()  # after the fifth, drawn ahead
        assert announced == [8] * batches


def test_a_mistake_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no rows of walker-walk: it has cup-catch, cartpole-balance"):
        Dataset.open(folder, ["walker-walk"])
    with pytest.raises(UserError, match="unknown task or set 'cup-cat': did you mean cup-catch"):
        Dataset.open(folder, ["cup-cat"])
    with pytest.raises(
        UserError, match=r"is no converted data set \(no dataset.json\): make one with bench data convert"
    ):
        Dataset.open(tmp_path)
    description = (folder / "dataset.json").read_text()
    for name, text, message in (
        ("dataset.json", "{", "is damaged"),
        (
            "dataset.json",
            description.replace('"format_version": 1', '"format_version": 7'),
            "has format 7, this code reads",
        ),
        ("entries.f32", "", r"entries.f32 has 0 bytes instead of [\d,]+: copy it again"),
        (
            "dataset.json",
            description.replace('"obs_size": 8', '"obs_size": 7').replace('"action_size": 2', '"action_size": 3'),
            "was made with observations of 7 numbers and actions of 3 for cup-catch, which now has 8 and 2",
        ),
    ):
        broken = tmp_path / "broken"
        broken.mkdir(exist_ok=True)
        for path in folder.iterdir():
            (broken / path.name).write_bytes(path.read_bytes())
        (broken / name).write_text(text)
        with pytest.raises(UserError, match=message):
            Dataset.open(broken)
