"""Checkpoints that runs start from, as far as that is known without loading a parameter.

Light on purpose: planning a sweep loads no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agents.registry import resolve_hyperparameters
from agents.tdmpc2.authors_shapes import CONV_ENCODER, CONV_INDEX, EMBEDDING, AuthorsShapes
from agents.tdmpc2.hyperparameters import ARCHITECTURE_KEYS
from bench.download import sha256_of
from bench.errors import UserError, unknown
from bench.published_models import published_models
from bench.rundir import RunDir, find_runs
from bench.runspec import Init, RunSpec
from bench.tasks import Task, task_set
from bench.tasks.sets import MULTITASK_SETS
from bench.torch_file import TorchFile

AGENT = "tdmpc2"
"""The agent that can start from a checkpoint."""
MODELS = Path("results/models")
"""Where published checkpoints are downloaded to unless the user says otherwise."""


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint of a model that can be finetuned.

    Attributes:
        path: the file.
        architecture: the hyperparameters that it settles.
        obs: what the model observes.
        num_tasks: rows of its table of task embeddings; 0: it has none.
        tasks: the names of the rows, where they are known.
    """

    path: Path
    architecture: Mapping[str, Any]
    obs: Literal["state", "rgb"]
    num_tasks: int
    tasks: tuple[str, ...]

    @classmethod
    def look_up(cls, path: Path) -> Pretrained:
        """What an authors' file, a run directory (its newest checkpoint) or one of its checkpoints holds.

        Raises:
            UserError: no checkpoint of tdmpc2.
        """
        if (run := RunDir.holding(path)) is not None:
            return cls._of_run(run, path)
        content = TorchFile.open(path, "a checkpoint of TD-MPC2 or a run directory").content
        model = AuthorsShapes.of(content, str(path))
        settled = model.architecture
        if model.obs_kind == "rgb":
            settled["frame_stack"] = model.tensors[f"{CONV_ENCODER}.{CONV_INDEX[0]}.weight"].shape[1] // 3
        settled = resolve_hyperparameters(AGENT, settled)
        names = task_set(MULTITASK_SETS[model.num_tasks]) if model.num_tasks in MULTITASK_SETS else ()
        return cls(path, _architecture(settled), model.obs_kind, model.num_tasks, tuple(task.name for task in names))

    @classmethod
    def _of_run(cls, run: RunDir, path: Path) -> Pretrained:
        spec = run.spec
        if spec.agent != AGENT:
            raise UserError(f"{path} is of {spec.agent}: only a checkpoint of {AGENT} can be finetuned")
        file = path if path.is_file() else max(run.checkpoints.glob("[0-9]*.pt"), default=None)
        if file is None:
            raise UserError(f"{path} has no checkpoint yet: train it first, or let it go on")
        embedded = spec.offline is not None or (spec.init is not None and spec.init.embedding is not None)
        tasks = spec.tasks if embedded else ()
        return cls(file, _architecture(spec.hyperparameters), spec.obs, len(tasks), tasks)

    def embedding(self, init_task: str | None, task: Task) -> int | Literal["mean"] | None:
        """What the embedding of `task` starts from: the row of `init_task`, else its own row, else the mean of all.

        Args:
            init_task: a name, or the number of a row.

        Raises:
            UserError: no such row.
        """
        if not self.num_tasks:
            if init_task is not None:
                raise UserError(f"{self.path} is a model without task embeddings: leave init task {init_task} out")
            return None
        if init_task is None:
            return self.tasks.index(task.name) if task.name in self.tasks else "mean"
        if init_task.isdigit():
            if int(init_task) >= self.num_tasks:
                raise UserError(f"{self.path} has no task number {init_task}: valid are 0 to {self.num_tasks - 1}")
            return int(init_task)
        if not self.tasks:
            raise UserError(
                f"{self.path} does not name its {self.num_tasks} tasks: give the number of {init_task} among them, "
                "from 0"
            )
        if init_task not in self.tasks:
            raise unknown(f"task of {self.path}", init_task, self.tasks)
        return self.tasks.index(init_task)

    def embeddings(self) -> NDArray[np.float32]:
        """The table of task embeddings, (tasks, T), as it lies in the file.

        Raises:
            UserError: it has none.
        """
        if not self.num_tasks:
            raise UserError(f"{self.path} is a model of one task, without task embeddings")
        content = TorchFile.open(self.path, "a checkpoint of TD-MPC2").content
        if "format_version" in content:
            table = content["agent"]["model"]["tasks.embedding"][0]
        else:
            table = AuthorsShapes.of(content, str(self.path)).tensors[EMBEDDING]
        return np.array(table, dtype=np.float32)


class Source:
    """A checkpoint that runs start from: what is there, or else what runs that started from it have noted.

    Args:
        path: an authors' file, a run directory or one of its checkpoints.
        begun: folder with the runs that may have started from it.

    Raises:
        UserError: there is something else at `path`.
    """

    def __init__(self, path: Path, begun: Path) -> None:
        self.path = path.absolute()
        self.model = Pretrained.look_up(self.path) if self.path.exists() else None
        self.sha256 = "" if self.model is None else sha256_of(self.model.path)
        self._begun: list[RunSpec] = []
        if self.model is None and begun.is_dir():
            runs, unreadable = find_runs(begun)
            if unreadable:
                raise UserError(f"{unreadable[0]}: whether a run has started from {path} is unknown")
            specs = {run.run_json: run.spec for run in runs}
            self._begun = [specs[file] for file in sorted(specs, key=os.path.getmtime, reverse=True)]

    def resolve(
        self, overrides: Mapping[str, Any], task: Task, obs: str, init_task: str | None
    ) -> tuple[dict[str, Any], Init]:
        """The hyperparameters of a run that starts from it, and how the run's specification names it.

        Args:
            overrides: hyperparameters that the user set.
            task: the new task.
            obs: observation kind.
            init_task: see `Pretrained.embedding`.

        Returns:
            All hyperparameters, and the init; with an empty `sha256` where the checkpoint is not there and no run on
            this task has started from it.

        Raises:
            UserError: a hyperparameter of another value than the checkpoint's, other observations, no such init task.
        """
        architecture, init = self._start(task, init_task)
        if self.model is not None and self.model.obs != obs:
            raise UserError(f"{self.path} is a model of {self.model.obs} observations, not of {obs}")
        for key, value in overrides.items():
            if key in architecture and value != architecture[key]:
                raise UserError(
                    f"{key} is {architecture[key]} in the checkpoint {self.path}, not {value}: leave it out"
                )
        return resolve_hyperparameters(AGENT, {**architecture, **overrides}, task, obs), init

    def _start(self, task: Task, init_task: str | None) -> tuple[Mapping[str, Any], Init]:
        if self.model is not None:
            embedding = self.model.embedding(init_task, task)
            path = str(self.model.path)
            return self.model.architecture, Init(sha256=self.sha256, embedding=embedding, task=init_task, path=path)
        for spec in self._begun:
            if spec.init is None or (spec.task, spec.init.task) != (task.name, init_task):
                continue
            file = Path(spec.init.path)
            if self.path == file or self.path in file.parents:
                return _architecture(spec.hyperparameters), spec.init
        return {}, Init(sha256="", task=init_task, path=str(self.path))


def check_agent(agent: str) -> None:
    """Whether an agent can start from a checkpoint.

    Raises:
        UserError: it cannot.
    """
    if agent != AGENT:
        raise UserError(f"{agent} cannot start from a checkpoint: only {AGENT} can")


def lack(init: Init) -> str | None:
    """What is missing for a run that starts now, and what gets it; None where its checkpoint is there."""
    path = Path(init.path)
    if path.exists():
        return None
    published = next((model for model in published_models().values() if path.match(model.path)), None)
    if published is None:
        return f"no checkpoint {path}: give an authors' file (.pt), a run directory or one of its checkpoints"
    folder = path.parent.parent
    where = "" if folder == MODELS.absolute() else f" -o {folder}"
    return f"the checkpoint {path} is not here: `bench models download {published.name}{where}` gets it"


def check_here(init: Init) -> None:
    """Whether the checkpoint that a run starts from is there.

    Raises:
        UserError: it is not; says what gets it.
    """
    if (lacking := lack(init)) is not None:
        raise UserError(lacking)


def check_unchanged(init: Init) -> None:
    """Whether the file is the one that the run's identity names.

    Raises:
        UserError: it is not there, or is another one by now.
    """
    check_here(init)
    found = sha256_of(Path(init.path))
    if found != init.sha256:
        raise UserError(
            f"{init.path} is no longer the checkpoint that the run was made for (its SHA-256 begins with {found[:8]} "
            f"instead of {init.sha256[:8]}): put that file back, or start another run"
        )


def _architecture(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in hyperparameters.items() if key in ARCHITECTURE_KEYS}
