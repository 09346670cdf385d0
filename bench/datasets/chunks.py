"""The chunk files of TD-MPC2's multi-task data.

A chunk is a TensorDict of batch size (rows, T + 1) saved by torch: `obs` (rows, T + 1, O), `action` (rows, T + 1, A),
`reward` (rows, T + 1) and `task` (rows, T + 1). Entry 0 of a row is what the reset showed, with an action and a reward
that mean nothing; entry i is what action i led to. Observations and actions are padded with zeros to those of the
largest task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import atomic
from bench.errors import UserError
from bench.torch_file import TorchFile

EXPECTED = "a TensorDict saved by torch with obs, action, reward and task"
KINDS: Mapping[str, str] = {"obs": "f", "action": "f", "reward": "f", "task": "iu"}
"""Kinds of number that each may hold."""


@dataclass(frozen=True)
class Chunk:
    """One file, mapped from the disk.

    Attributes:
        file: the file.
        obs: (rows, T + 1, O) of floats.
        action: (rows, T + 1, A) of floats.
        reward: (rows, T + 1) of floats.
        task: (rows, T + 1) of integers, task ids.
    """

    file: TorchFile
    obs: NDArray[Any] = field(repr=False)
    action: NDArray[Any] = field(repr=False)
    reward: NDArray[Any] = field(repr=False)
    task: NDArray[Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> Chunk:
        """Map a file.

        Raises:
            UserError: no such file, one that is cut short or damaged, or no chunk; says what was expected.
        """
        file = TorchFile.open(path, EXPECTED)
        if not isinstance(file.content, dict):
            raise UserError(f"{path} holds a {type(file.content).__name__}: expected is {EXPECTED}")
        tensors = {name: value for name, value in file.content.items() if isinstance(value, np.ndarray)}
        _check(path, tensors)
        if tensors["reward"].ndim == 3:
            tensors["reward"] = tensors["reward"][..., 0]
        return cls(file, **{name: tensors[name] for name in KINDS})

    @property
    def path(self) -> Path:
        """The file's."""
        return self.file.path

    @property
    def rows(self) -> int:
        """Episodes, or pieces of them."""
        return int(self.obs.shape[0])

    @property
    def row_entries(self) -> int:
        """T + 1: entries in a row, one more than transitions."""
        return int(self.obs.shape[1])


def _check(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    missing = [name for name in KINDS if name not in tensors]
    if missing:
        has = ", ".join(map(str, tensors)) or "no tensors"
        raise UserError(f"{path} has no {', '.join(missing)} (it has {has}): expected is {EXPECTED}")
    shapes = {name: tensors[name].shape for name in KINDS}
    batch = shapes["obs"][:2]
    fits = len(batch) == 2 and batch[0] > 0 and batch[1] > 1
    fits &= len(shapes["obs"]) == len(shapes["action"]) == 3 and shapes["task"] == batch
    fits &= shapes["action"][:2] == batch and shapes["reward"] in (batch, (*batch, 1))
    if not fits:
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(
            f"{path} has {shown}: expected are obs (rows, T + 1, O), action (rows, T + 1, A), reward (rows, T + 1) and "
            "task (rows, T + 1)"
        )
    for name, kinds in KINDS.items():
        if tensors[name].dtype.kind not in kinds:
            number = "integers" if name == "task" else "floats"
            raise UserError(f"{path} has {name} of type {tensors[name].dtype}: expected are {number}")


def chunk_files(folder: Path, expected: int | None = None, allow_missing: bool = False) -> Sequence[Path]:
    """The chunk files of a folder by name, as the authors' code reads them.

    Args:
        expected: how many there must be, where that is known.
        allow_missing: take what is there.

    Raises:
        UserError: there are none, or some are missing.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give the folder of the chunk files (chunk_0.pt, chunk_1.pt, …)")
    files = sorted(folder.glob("*.pt"))
    if not files:
        raise UserError(f"no chunk files (chunk_0.pt, chunk_1.pt, …) in {folder}")
    numbers = {int(match[1]) for path in files if (match := re.fullmatch(r"chunk_(\d+)", path.stem))}
    if numbers and not allow_missing:
        lacking = sorted(set(range(max(*numbers, (expected or 1) - 1) + 1)) - numbers)
        if lacking:
            names = ", ".join(f"chunk_{number}.pt" for number in lacking)
            of = f" (of {expected} files)" if expected else ""
            raise UserError(
                f"{folder} lacks {names}{of}: fetch what is missing, or take what is there with --allow-missing"
            )
    return files


def write_chunk(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a chunk as the authors' code reads it.

    Args:
        tensors: `obs`, `action`, `reward` and `task`, shaped as in `Chunk`.

    Raises:
        UserError: tensordict is not installed, or the file cannot be written.
    """
    import torch

    try:
        from tensordict import TensorDict
    except ImportError as error:
        raise UserError(
            f"chunk files are written by tensordict, which cannot be loaded ({error}): pip install tensordict==0.15.3"
        ) from error
    rows = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in tensors.items()}
    try:
        with atomic.writing(path) as file:
            torch.save(TensorDict(rows, rows["task"].shape, device="cpu"), file)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
