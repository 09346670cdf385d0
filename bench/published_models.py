"""The checkpoints that TD-MPC2's authors publish: 104 tasks with three seeds each, and models of many tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.download import hugging_face
from bench.errors import unknown
from bench.tasks import BUILT_IN_SETS, built_in, task_set

REPOSITORY = "nicklashansen/tdmpc2"
SEEDS = (1, 2, 3)
MULTITASK_BYTES = {
    "mt30-1M": 7_956_767,
    "mt30-5M": 33_299_935,
    "mt30-19M": 99_246_424,
    "mt30-48M": 291_104_400,
    "mt30-317M": 2_013_931_363,
    "mt70-5M": None,
    "mt70-19M": None,
    "mt80-1M": 7_999_327,
    "mt80-5M": 34_231_071,
    "mt80-19M": 116_908_696,
    "mt80-48M": 294_454_160,
    "mt80-317M": 2_014_203_797,
}
"""Sizes in bytes where they are known; the others are checked against what the server says."""
FOLDERS = {"dmcontrol": "dmcontrol", "metaworld": "metaworld", "maniskill": "maniskill2", "myosuite": "myosuite"}
"""The repository's folder for each domain."""


@dataclass(frozen=True)
class PublishedModel:
    """One file of the repository."""

    name: str
    """`walker-walk-1`, `mt80-5M`: the file's name without `.pt`."""
    folder: str
    task: str
    """A task or a task set of ours; `mt70` is a set whose tasks the authors did not name."""
    bytes: int | None

    @property
    def path(self) -> str:
        """Within the repository."""
        return f"{self.folder}/{self.name}.pt"

    @property
    def url(self) -> str:
        """Where to download it."""
        return hugging_face(REPOSITORY, self.path)


def published_models() -> dict[str, PublishedModel]:
    """All of them by name."""
    many = [PublishedModel(name, "multitask", name.split("-")[0], size) for name, size in MULTITASK_BYTES.items()]
    single = [
        PublishedModel(f"{task.published_name}-{seed}", FOLDERS[task.domain], task.name, None)
        for task in built_in()
        for seed in SEEDS
    ]
    return {model.name: model for model in (*many, *single)}


def select(names: Sequence[str]) -> list[PublishedModel]:
    """Models by name, by task (all its seeds) or by task set (`mt80`: every size; `dmcontrol`: every task and seed).

    Raises:
        UserError: a name that is none of these.
    """
    models = published_models()
    chosen: dict[str, PublishedModel] = {}
    for name in names:
        found = [models[name]] if name in models else [model for model in models.values() if model.task == name]
        if not found and name in BUILT_IN_SETS:
            own = {task.name for task in task_set(name)}
            found = [model for model in models.values() if model.task in own]
        if not found:
            raise unknown("published model, task or set", name, {*models, *(model.task for model in models.values())})
        chosen |= {model.name: model for model in found}
    return list(chosen.values())
