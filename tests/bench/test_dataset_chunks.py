"""Chunk files: read as they are, without running anything that they name."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from dataset_files import folder_of, mixed, save_2023

from bench.datasets.chunks import Chunk, chunk_files
from bench.errors import UserError
from bench.torch_file import TorchFile


def assert_holds(chunk: Chunk, tensors: dict[str, torch.Tensor]) -> None:
    for name, expected in tensors.items():
        found = getattr(chunk, name)
        assert found.dtype == expected.numpy().dtype
        np.testing.assert_array_equal(found, expected.numpy())


def test_a_chunk_of_2023(tmp_path: Path) -> None:
    tensors = mixed([3, 4, 2], 6)
    save_2023(tensors, tmp_path / "chunk_0.pt")
    chunk = Chunk.open(tmp_path / "chunk_0.pt")
    assert (chunk.rows, chunk.row_entries) == (9, 6)
    assert_holds(chunk, tensors)
    assert not chunk.obs.flags.writeable
    before = chunk.obs[4].copy()
    chunk.file.release()
    np.testing.assert_array_equal(chunk.obs[4], before)


@pytest.mark.parametrize("version", ["0.0.3", "0.1.2", "0.2.1"])
def test_files_that_tensordict_of_2023_wrote(version: str) -> None:
    """Made with torch 2.1.2 and these releases: torch.save of TensorDict(…, batch_size=[3, 4], device="cpu")."""
    chunk = Chunk.open(Path(__file__).parent / "chunks_of_2023" / f"tensordict-{version}.pt")
    np.testing.assert_array_equal(chunk.obs, np.arange(24, dtype=np.float32).reshape(3, 4, 2))
    np.testing.assert_array_equal(chunk.action, -np.arange(72, dtype=np.float32).reshape(3, 4, 6))
    np.testing.assert_array_equal(chunk.reward, np.arange(12, dtype=np.float32).reshape(3, 4) / 2)
    np.testing.assert_array_equal(chunk.task, np.repeat(np.array([[5], [0], [7]], np.int32), 4, axis=1))


@pytest.mark.whole
def test_a_chunk_of_the_installed_tensordict(tmp_path: Path) -> None:
    tensordict = pytest.importorskip("tensordict")
    tensors = mixed([3, 4, 2], 6)
    torch.save(tensordict.TensorDict(tensors, [9, 6], device="cpu"), tmp_path / "chunk_0.pt")
    assert_holds(Chunk.open(tmp_path / "chunk_0.pt"), tensors)


def test_views_of_one_storage_and_other_types(tmp_path: Path) -> None:
    """What tensordict saves after slicing, stacking along another axis or halving."""
    tensors = mixed([3, 4, 2], 6)
    stacked = {name: torch.stack(list(value.unbind(1))).transpose(0, 1)[2:] for name, value in tensors.items()}
    stacked["reward"] = stacked["reward"][..., None].half()
    stacked["task"] = stacked["task"].long()
    save_2023(stacked, tmp_path / "chunk_0.pt")
    chunk = Chunk.open(tmp_path / "chunk_0.pt")
    assert_holds(chunk, stacked | {"reward": stacked["reward"][..., 0]})


def test_nothing_is_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "chunk_0.pt"
    save_2023(mixed([1, 1, 1], 4) | {"rest": torch.zeros(2**22)}, path)
    chunk = Chunk.open(path)
    np.asarray(chunk.file.content["rest"][::1024]).sum()  # touches every page

    def resident() -> int:
        return sum(one.rss for one in psutil.Process().memory_maps() if one.path == str(path))

    assert resident() > 2**23
    chunk.file.release()
    assert resident() < 2**22
    assert_holds(chunk, mixed([1, 1, 1], 4))
    assert resident() < 2**22


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    save_2023(mixed([1, 1, 1], 4) | {"more": Malicious(mark)}, tmp_path / "chunk_0.pt")
    with pytest.raises(UserError, match=r"chunk_0.pt names posix.system, which plain tensors do not need: it was not"):
        Chunk.open(tmp_path / "chunk_0.pt")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["builtins.getattr", "torch.load", "tensordict.memmap.MemoryMappedTensor", "numpy.array"]
)
def test_any_other_name_is_refused(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    with zipfile.ZipFile(tmp_path / "chunk_0.pt", "w") as archive:
        archive.writestr("chunk/data.pkl", f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(UserError, match=f"names {name}"):
        Chunk.open(tmp_path / "chunk_0.pt")


def test_stand_ins_given_nonsense(tmp_path: Path) -> None:
    """Strides and offsets beyond the storage would read other memory."""

    def opened(offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 6) -> Any:
        out = [
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            b"(",
            pickle.dumps("storage", 0)[:-1],
            b"ctorch\nFloatStorage\n",
        ]
        out += [pickle.dumps(value, 0)[:-1] for value in ("0", "cpu", count)] + [b"tQ"]
        out += [pickle.dumps(value, 0)[:-1] for value in (offset, size, stride)] + [b"I00\nNtR."]
        with zipfile.ZipFile(tmp_path / "chunk_0.pt", "w") as archive:
            archive.writestr("chunk/data.pkl", b"".join(out))
            archive.writestr("chunk/data/0", np.arange(6, dtype=np.float32).tobytes())
        return TorchFile.open(tmp_path / "chunk_0.pt", "something").content

    np.testing.assert_array_equal(opened(1, (2, 2), (2, 1)), [[1, 2], [3, 4]])
    for offset, size, stride in ((3, (2, 2), (2, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,))):
        with pytest.raises(UserError, match=r"cannot be understood .*: expected is something"):
            opened(offset, size, stride)
    with pytest.raises(UserError, match="lacks 7 numbers of data/0"):
        opened(0, (2,), (1,), count=7)


def test_damage_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chunk_3.pt"
    with pytest.raises(UserError, match=r"no file .*chunk_3.pt: expected is a TensorDict"):
        Chunk.open(path)
    save_2023(mixed([3, 4, 2], 6), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    with pytest.raises(UserError, match=r"chunk_3.pt is cut short or damaged: its [\d,]+ bytes do not end"):
        Chunk.open(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(
        UserError, match=r"chunk_3.pt is no file of torch: expected is a TensorDict saved by torch with"
    ):
        Chunk.open(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(UserError, match=r"holds no data.pkl"):
        Chunk.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, r"chunk_0.pt has no reward \(it has obs, action, task\): expected is a TensorDict"),
        ({"task": torch.zeros(9, 6)}, "task of type float32: expected are integers"),
        ({"obs": torch.zeros(9, 6, 8, dtype=torch.int32)}, "obs of type int32: expected are floats"),
        ({"action": torch.zeros(9, 5, 2)}, r"action \(9, 5, 2\).*expected are obs \(rows, T \+ 1, O\)"),
        ({"obs": torch.zeros(9)}, r"obs \(9,\)"),
    ],
)
def test_foreign_content(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = mixed([3, 4, 2], 6) | change
    save_2023({name: value for name, value in tensors.items() if value is not None}, tmp_path / "chunk_0.pt")
    with pytest.raises(UserError, match=message) as caught:
        Chunk.open(tmp_path / "chunk_0.pt")
    assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "chunk_0.pt")
    with pytest.raises(UserError, match="holds a list: expected is a TensorDict"):
        Chunk.open(tmp_path / "chunk_0.pt")


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        chunk_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no chunk files"):
        chunk_files(tmp_path)
    folder_of(tmp_path, [mixed([1, 1, 1], 4)] * 11)
    assert [path.stem for path in chunk_files(tmp_path, 11)][:4] == ["chunk_0", "chunk_1", "chunk_10", "chunk_2"]
    with pytest.raises(UserError, match=r"lacks chunk_11.pt, chunk_12.pt \(of 13 files\)"):
        chunk_files(tmp_path, 13)
    (tmp_path / "chunk_4.pt").unlink()
    with pytest.raises(UserError, match=r"lacks chunk_4.pt: fetch what is missing, or .* --allow-missing"):
        chunk_files(tmp_path)
    assert len(chunk_files(tmp_path, 13, allow_missing=True)) == 10


def test_other_files_of_torch(tmp_path: Path) -> None:
    """The reader is for checkpoints too: nested dictionaries, lists, plain values, parameters."""
    model = torch.nn.Linear(3, 2)
    saved = {"model": model.state_dict(), "own": torch.nn.Parameter(torch.ones(2)), "list": [1, "a", None, 2.5, True]}
    torch.save(
        saved | {"size": torch.Size([2, 3]), "scalar": torch.tensor(4), "none": torch.zeros(0, 3)}, tmp_path / "a"
    )
    content = TorchFile.open(tmp_path / "a", "a checkpoint").content
    np.testing.assert_array_equal(content["model"]["weight"], model.weight.detach().numpy())
    assert content["list"] == [1, "a", None, 2.5, True]
    assert (content["size"], content["scalar"].item(), content["none"].shape) == ((2, 3), 4, (0, 3))
    np.testing.assert_array_equal(content["own"], [1, 1])
