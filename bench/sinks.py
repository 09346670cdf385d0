"""Optional trackers (TensorBoard, Weights & Biases) that the training loop feeds beside its own files.

The files of the run directory are always complete; a tracker only mirrors them. So a tracker that fails warns once, and
training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from bench.errors import UserError, unknown

LOG = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "wandb")
"""Names that `make_sinks` takes. Each is also the name of its package and of the extra that installs it."""


@dataclass(frozen=True)
class TrackedRun:
    """One run as a tracker sees it."""

    run_id: str
    folder: Path
    """The run directory; a tracker keeps its local files below it."""
    config: Mapping[str, Any]
    group: str
    """Runs that differ in the seed alone share a group."""
    resumed_at: int = 0
    """Where this attempt goes on; 0 for a new run. What an earlier attempt logged beyond it is superseded."""


class Sink(Protocol):
    """Where the training loop sends numbers."""

    def log(self, run_index: int, at: int, values: Mapping[str, float]) -> None:
        """Log named values of one run (its index in the fleet) at a number of env steps, which never goes down.

        Of a run that learns offline it is a number of updates.
        """
        ...

    def close(self) -> None:
        """Write out what is buffered and let go."""
        ...


class TensorBoardSink:
    """Event files in `<run directory>/tensorboard`, a folder for each run."""

    def __init__(self, folders: Sequence[Path], resumed_at: Sequence[int] | None = None) -> None:
        """Open one writer for each folder.

        Args:
            folders: where the event files go, one folder for each run.
            resumed_at: where each run goes on, 0 for a new one; points of an earlier attempt beyond that are
                purged by TensorBoard, so that a resumed run stays one curve.
        """
        from torch.utils.tensorboard import SummaryWriter

        starts = resumed_at or [0] * len(folders)
        self._writers = [
            SummaryWriter(str(folder), purge_step=start + 1 if start else None, flush_secs=30)
            for folder, start in zip(folders, starts, strict=True)
        ]

    def log(self, run_index: int, at: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[run_index].add_scalar(name, value, global_step=at)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class WandbSink:
    """One W&B run for each run, under an id that follows from the run: a resumed run goes on in the same curve.

    The env steps (updates) are W&B's own step, so rows that a resumed run trains a second time are ignored there.
    """

    def __init__(self, project: str, runs: Sequence[TrackedRun]) -> None:
        import wandb

        self._runs = [
            wandb.init(
                project=project,
                id=run.run_id.replace("/", "-"),
                name=run.run_id,
                group=run.group,
                config=dict(run.config),
                dir=run.folder,
                resume="allow",
                reinit="create_new",  # the runs of a fleet are open at the same time
                settings=wandb.Settings(silent=True, console="off"),
            )
            for run in runs
        ]

    def log(self, run_index: int, at: int, values: Mapping[str, float]) -> None:
        self._runs[run_index].log(dict(values), step=at)

    def close(self) -> None:
        for run in self._runs:
            run.finish()


class GuardedSink:
    """A tracker whose errors never reach training: the first one is logged as a warning, and training goes on.

    Later rows are still offered to it, since a full disk or a lost connection may come back.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink]) -> None:
        """Open the tracker; one that cannot be opened is left out for the rest of the process."""
        self._name = name
        self._warned = False
        self._sink: Sink | None = None
        self._try(lambda: setattr(self, "_sink", open_sink()))

    def log(self, run_index: int, at: int, values: Mapping[str, float]) -> None:
        sink = self._sink
        if sink is not None:
            self._try(lambda: sink.log(run_index, at, values))

    def close(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            self._try(sink.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  a tracker may fail in any way, and none may stop training
            if not self._warned:
                LOG.warning(
                    "%s failed and may miss data (%s: %s); training goes on and the run directory stays complete",
                    self._name,
                    type(error).__name__,
                    error,
                )
            self._warned = True


def check(names: Sequence[str]) -> None:
    """Whether these trackers can be opened.

    Raises:
        UserError: an unknown tracker, or one whose package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        _require(name)


def make_sinks(names: Sequence[str], runs: Sequence[TrackedRun], project: str) -> list[Sink]:
    """Open the trackers asked for, each guarded so that its failures never stop training.

    Args:
        names: of `TRACKERS`; a name given twice counts once.
        runs: the fleet, in the order of the run index that `log` takes.
        project: the W&B project; TensorBoard does not use it.

    Raises:
        UserError: an unknown tracker, or one whose package is not installed.
    """
    check(names)

    def open_tensorboard() -> Sink:
        return TensorBoardSink([run.folder / "tensorboard" for run in runs], [run.resumed_at for run in runs])

    def open_wandb() -> Sink:
        return WandbSink(project, runs)

    openers = {"tensorboard": open_tensorboard, "wandb": open_wandb}
    return [GuardedSink(name, openers[name]) for name in dict.fromkeys(names)]


def _require(name: str) -> None:
    """Import a tracker's package, or say how to install it."""
    try:
        module = import_module(name)
        if module.__file__ is None:  # a folder called "wandb" in the working directory imports as an empty package
            raise ImportError(f"No module named '{name}'")
    except ImportError as error:
        raise UserError(f"tracker '{name}' is not installed ({error}): pip install 'tdmpc2-bench[{name}]'") from error
