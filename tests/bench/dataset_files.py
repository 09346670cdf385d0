"""Chunk files of a few small tasks, in the layout of 2023 and in that of today."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from bench.tasks import get

NAMES = ["cup-catch", "cartpole-balance", "pendulum-swingup"]
"""Observations of 8, 5 and 3 numbers, actions of 2, 1 and 1."""


def rows_of(task: int, count: int, entries: int, seed: int = 0, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """Random rows of one task, padded, with filler in entry 0, as tensors."""
    random = np.random.default_rng([seed, task])
    sizes = [(get(name).obs_size, get(name).action_size) for name in names]
    obs_size, action_size = (max(size) for size in zip(*sizes, strict=True))
    obs = np.zeros((count, entries, obs_size), np.float32)
    action = np.zeros((count, entries, action_size), np.float32)
    obs[..., : sizes[task][0]] = random.normal(size=(count, entries, sizes[task][0]))
    action[..., : sizes[task][1]] = random.uniform(-1, 1, (count, entries, sizes[task][1]))
    reward = random.uniform(0, 2, (count, entries)).astype(np.float32)
    action[:, 0], reward[:, 0] = 7.0, np.nan
    ids = np.full((count, entries), task, np.int32)
    return {
        name: torch.from_numpy(x) for name, x in (("obs", obs), ("action", action), ("reward", reward), ("task", ids))
    }


def mixed(counts: Sequence[int], entries: int, seed: int = 0, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """Rows of several tasks, shuffled: counts[i] of task id i."""
    parts = [rows_of(task, count, entries, seed, names) for task, count in enumerate(counts) if count]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(sum(counts)))
    return {key: torch.cat([part[key] for part in parts])[order] for key in parts[0]}


def save_2023(tensors: dict[str, Any], path: Path) -> None:
    """Save as the tensordict of 2023 did: an instance of `tensordict.tensordict.TensorDict` and its attributes."""
    kind = type("TensorDict", (), {"__module__": "tensordict.tensordict"})
    names = type("_StringOnlyDict", (dict,), {"__module__": "tensordict.utils"})
    saved = kind()
    saved.__dict__.update(
        _tensordict=names(tensors),
        _batch_size=next(iter(tensors.values())).shape[:2],
        _is_shared=False,
        _is_memmap=False,
        _device=torch.device("cpu"),
        _is_locked=False,
        _td_dim_names=None,
        _lock_id=set(),
        _locked_tensordicts=[],
    )
    # They are put in place of what is installed, which would take seconds to import and has other modules.
    modules = {name: types.ModuleType(name) for name in ("tensordict", "tensordict.tensordict", "tensordict.utils")}
    modules["tensordict.tensordict"].__dict__["TensorDict"] = kind
    modules["tensordict.utils"].__dict__["_StringOnlyDict"] = names
    path.parent.mkdir(parents=True, exist_ok=True)
    with patch.dict(sys.modules, modules):
        torch.save(saved, path)


def folder_of(folder: Path, chunks: Sequence[dict[str, Any]]) -> Path:
    """A folder of chunk files of 2023."""
    for number, tensors in enumerate(chunks):
        save_2023(tensors, folder / f"chunk_{number}.pt")
    return folder
