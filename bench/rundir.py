"""The run directory: all that a run leaves behind, and the only thing that crosses from training to analysis.

    results/<sweep>/<agent>/<task>/seed<k>-<hash>/
      run.json       specification, hash, one entry of provenance for each attempt
      dirty-….diff   uncommitted changes of the code, one file for however many attempts ran with them
      eval.csv       a row for each evaluation episode
      train.csv      what training said, at intervals
      checkpoints/   the last two
      replay/        episodes, appended as they end
      heartbeat      JSON, rewritten while the run lives
      done.json      exists once the budget is reached
      failed.json    exists after an error: class, message, traceback

Light on purpose: reading run directories loads no torch.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import atomic
from bench.errors import UserError
from bench.processes import Process
from bench.results_tree import Unreadable, walk
from bench.run_progress import Progress, progress_of
from bench.runspec import RunSpec
from bench.schema import EVAL_CSV, OFFLINE_EVAL_CSV, READABLE_VERSIONS, SCHEMA_VERSION


class RunDir:
    """One run directory. Every write is atomic, or an append that a reader can repair.

    Attributes:
        guard: called before every write is committed; the holder of the run's lock has it raise once the lock is lost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.guard: Callable[[], None] = atomic.nothing

    @classmethod
    def create(cls, sweep_folder: Path, spec: RunSpec) -> RunDir:
        """The directory of `spec` below a sweep's folder, made if it does not exist.

        Raises:
            UserError: the folder cannot be written, or holds another run.
        """
        run = cls(sweep_folder / spec.run_id)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            if run.read_json("run.json") is None:
                atomic.write_json(
                    run.run_json,
                    {"schema_version": SCHEMA_VERSION, "hash": spec.hash, "spec": spec.model_dump(), "attempts": []},
                )
        except OSError as error:
            raise UserError(f"cannot write {run.path}: {error.strerror}; choose another results folder") from error
        if run.spec.hash != spec.hash:
            raise UserError(f"{run.path} holds another run (hash {run.spec.hash}): move it away")
        return run

    @classmethod
    def holding(cls, path: Path) -> RunDir | None:
        """The run directory that a path is, or whose checkpoint it is; None for any other file."""
        if path.is_dir():
            return cls(path)
        run = cls(path.parent.parent)
        return run if path.parent == run.checkpoints and run.run_json.exists() else None

    # Files

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def eval_csv(self) -> Path:
        return self.path / "eval.csv"

    @property
    def train_csv(self) -> Path:
        return self.path / "train.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def replay(self) -> Path:
        return self.path / "replay"

    # Reading

    def newest_checkpoint(self) -> int:
        """Where on the run's clock the newest checkpoint lies; 0 where there is none."""
        return max(self.saved(), default=0)

    def saved(self) -> list[int]:
        """Where on the run's clock checkpoints lie, ascending. Unfinished files do not count.

        Raises:
            UserError: the folder cannot be read. The run is then not taken for one without checkpoints.
        """
        try:
            names = os.listdir(self.checkpoints)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{self.checkpoints} cannot be read: {error.strerror}") from error
        return sorted(int(name[:-3]) for name in names if name.endswith(".pt") and name[:-3].isdecimal())

    def silent_deaths(self) -> int:
        """How many attempts in a row, up to the last, began at the newest checkpoint and ended without a word."""
        count, here, began = 0, self.newest_checkpoint(), f"from_{self.spec.clock}"
        for attempt in reversed(self.info()["attempts"]):
            if "outcome" in attempt or attempt.get(began) != here:
                break
            count += 1
        return count

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the directory; None where it does not exist.

        Raises:
            UserError: the file cannot be read or is not JSON, or it, or a folder on the way to it, is a broken link.
        """
        path = self.path / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            for place in (path, self.path, *self.path.parents[:3]):
                if os.path.islink(place) and not os.path.exists(place):
                    raise UserError(
                        f"{place} is a link to {os.readlink(place)}, which does not exist: restore that or remove the "
                        "link"
                    ) from error
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged ({error}): remove it, or the whole run directory, and run again"
            ) from error
        if not isinstance(value, dict):
            raise UserError(f"{path} is damaged (no JSON object): remove it, or the whole run directory, and run again")
        return value

    def info(self) -> dict[str, Any]:
        """run.json."""
        value = self.read_json("run.json")
        if value is None:
            raise UserError(f"{self.path} is no run directory: it has no run.json")
        if value.get("schema_version") not in READABLE_VERSIONS:
            known = " and ".join(map(str, READABLE_VERSIONS))
            raise UserError(
                f"{self.run_json} has schema version {value.get('schema_version')}, this code reads {known}: "
                "read it with the version of the suite that wrote it"
            )
        return value

    @property
    def spec(self) -> RunSpec:
        """The run's specification."""
        try:
            return RunSpec(**self.info()["spec"])
        except (KeyError, ValidationError) as error:
            raise UserError(f"{self.run_json} does not hold a run specification: {error}") from error

    def progress(self, budget: int | None = None) -> Progress:
        """State and progress, from the files alone.

        Args:
            budget: what counts as done, in env steps or updates; what the run itself was done with by default. A run
                that was done with a smaller budget is pending again.
        """
        failed = os.path.exists(self.path / "failed.json")  # False where nothing can be read, which the next lines say
        try:
            return progress_of(self.read_json("heartbeat"), self.read_json("done.json"), failed, budget or 0)
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.path}/heartbeat is damaged: remove it and run again") from error

    # Writing

    def discard_prepared(self) -> None:
        """Remove files that were written aside and not yet renamed: left behind, or of a process that lost the run."""
        for folder in (self.path, self.checkpoints, self.replay):
            for aside in folder.glob(".*"):
                if not aside.name.startswith((".lock.", ".now-")):  # of others, who try to take the lock
                    aside.unlink(missing_ok=True)

    def begin_attempt(self, provenance: Mapping[str, Any]) -> int:
        """Record an attempt with its provenance; clears an earlier failure. Returns its number, from 1."""
        info = self.info()
        began = {f"from_{self.spec.clock}": self.newest_checkpoint()}
        info["attempts"].append({"started": now(), **began, **self._keep_diff(provenance)})
        atomic.write_json(self.run_json, info, self.guard)
        self.guard()
        (self.path / "failed.json").unlink(missing_ok=True)
        return len(info["attempts"])

    def _keep_diff(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Provenance with the name of a file in place of its diff: the file is written once for many attempts.

        A disk too full for it does not keep the run from starting.
        """
        facts = dict(provenance)
        diff = facts.pop("diff", None)
        if diff is None:
            return facts
        path = self.path / f"dirty-{facts['diff_sha256'][:12]}.diff"
        try:
            if not path.exists():
                atomic.write_text(path, diff, self.guard)
        except OSError as error:
            return facts | {"diff_file": None, "diff_error": error.strerror}
        return facts | {"diff_file": path.name}

    def end_attempt(self, outcome: str) -> None:
        """Say how the last attempt ended: done, failed or interrupted; one that is killed says nothing."""
        info = self.info()
        if info["attempts"]:
            info["attempts"][-1] |= {"ended": now(), "outcome": outcome}
            atomic.write_json(self.run_json, info, self.guard)

    def update_spec(self, spec: RunSpec) -> None:
        """Take over a new budget or evaluation schedule of the same run.

        Raises:
            UserError: the directory holds another run, or one that was begun with another version of its simulator.
        """
        info = self.info()
        if info["hash"] != spec.hash:
            raise UserError(f"{self.path} holds another run (hash {info['hash']})")
        self.check_version(spec.domain_version)
        info |= {"schema_version": SCHEMA_VERSION, "spec": spec.model_dump()}
        atomic.write_json(self.run_json, info, self.guard)

    def check_version(self, domain_version: str) -> None:
        """Whether the run may go on with a simulator of this version.

        Raises:
            UserError: it was begun with another, and one curve would mix the two.
        """
        begun = self.spec.domain_version
        if begun != domain_version:
            raise UserError(
                f"{self.path} was begun with {begun}, and {domain_version} is installed: go on in the first "
                "environment, or train into another results folder"
            )

    def append_rows(self, path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to a CSV file of the directory, with a header where it is new; flushed to disk."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        if not path.exists():
            writer.writeheader()
        writer.writerows(rows)
        atomic.append_text(path, text.getvalue(), self.guard)

    def append_eval(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append evaluation episodes, one row each (columns of `EVAL_CSV`, offline of `OFFLINE_EVAL_CSV`)."""
        self.append_rows(self.eval_csv, OFFLINE_EVAL_CSV if self.spec.offline else EVAL_CSV, rows)

    def rewind(self, evaluated_at: int, at: int) -> None:
        """Repair eval.csv and train.csv after an interruption.

        Drops a torn last row and the rows that training will write again.

        Args:
            evaluated_at: the last evaluation to keep, on the run's clock; -1 for none.
            at: where training goes on.

        Raises:
            UserError: eval.csv does not reach as far as the checkpoint says it did.
        """
        clock = self.spec.clock
        for path, last in ((self.eval_csv, evaluated_at), (self.train_csv, at)):
            lines = atomic.whole_lines(path)
            if not lines:
                self.guard()
                path.unlink(missing_ok=True)
                continue
            column, width = lines[0].split(",").index(clock), lines[0].count(",")
            kept = [line for line in lines[1:] if line.count(",") == width and int(line.split(",")[column]) <= last]
            atomic.write_text(path, "\n".join([lines[0], *kept]) + "\n", self.guard)
        lines = atomic.whole_lines(self.eval_csv)
        reached = int(lines[-1].split(",")[lines[0].split(",").index(clock)]) if len(lines) > 1 else -1
        if reached < evaluated_at:
            raise UserError(
                f"{self.eval_csv} ends at {reached} {clock.replace('_', ' ')}, but the checkpoint was taken after the "
                f"evaluation at {evaluated_at}: restore the file, or move {self.path} away and train anew"
            )

    def beat(self, **values: Any) -> None:
        """Say that the run lives: wall_s, env_steps, agent_steps_per_s, return; offline updates, their rate, score."""
        owner = {"time": time.time(), "process": Process.current().to_json(), "ended": False}
        atomic.write_json(self.path / "heartbeat", owner | values, self.guard)

    def end_beat(self) -> None:
        """Say that the process let go of the run."""
        beat = self.read_json("heartbeat")
        if beat is not None:
            atomic.write_json(self.path / "heartbeat", beat | {"ended": True}, self.guard)

    def mark_done(self, **values: Any) -> None:
        """The budget is reached."""
        atomic.write_json(self.path / "done.json", {"ended": now(), **values}, self.guard)
        self.end_attempt("done")

    def mark_failed(self, error: BaseException, **values: Any) -> None:
        """The run stopped with an error."""
        atomic.write_json(
            self.path / "failed.json",
            {
                "ended": now(),
                "class": type(error).__name__,
                "message": str(error),
                "traceback": "".join(traceback.format_exception(error)),
                **values,
            },
            self.guard,
        )
        self.end_attempt("failed")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def find_runs(folder: Path) -> tuple[list[RunDir], list[Unreadable]]:
    """Every run directory below a folder, in order of path, and what could not be entered (see `results_tree.walk`).

    Raises:
        UserError: the folder does not exist.
    """
    folders, unreadable = walk(folder)
    return [RunDir(one.path) for one in folders if "run.json" in (*one.files, *one.folders)], unreadable
