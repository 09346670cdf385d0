"""What the workers of a run wrote, over all its launches and attempts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.rundir import RunDir, find_runs
from sweeps import launches, selectors
from sweeps.record import LaunchRecord

POLL_S = 1.0
MOST_NAMED = 5


@dataclass(frozen=True)
class Log:
    """One stream of the worker of one fleet of one launch, which all attempts of that launch share."""

    launch: LaunchRecord
    fleet: int
    stream: str
    """out or err."""

    @property
    def path(self) -> Path:
        """The file; it exists once a worker was started."""
        return self.launch.log(self.fleet, self.stream)

    def title(self) -> str:
        """`launch 20260101-120000, sac cup-catch seed 1, err: results/…`."""
        fleet = self.launch.info["fleets"][self.fleet]["title"]
        return f"launch {self.launch.name}, {fleet}, {self.stream}: {self.path}"

    def read(self, last_lines: int | None = None) -> tuple[str, int]:
        """What was written, or only its last lines; and where to go on reading."""
        raw = self.path.read_bytes()
        text = raw.decode(errors="replace")
        return text if last_lines is None else "".join(text.splitlines(keepends=True)[-last_lines:]), len(raw)


def find_run(run: str, results: Path) -> RunDir:
    """The run directory that is meant.

    Args:
        run: path of a run directory, or `agent/task/seed<k>` or a part of it (see `selectors.matches`), or with the
            name of its sweep before it: `quickstart/sac/cup-catch/seed1`.
        results: below which folder to look.

    Raises:
        UserError: no run is meant, or several.
    """
    if os.path.exists(Path(run) / "run.json"):
        return RunDir(Path(run))
    runs, unreadable = find_runs(results)
    found = [one.path for one in runs if _is_meant(one.path, run)]
    if not found:
        said = f" ({unreadable[0]})" if unreadable else ""
        raise UserError(
            f"no run '{run}' below {results}{said}: give a run directory, or a run as `bench sweep status FILE --json` "
            "names it, such as sac/cup-catch/seed1"
        )
    if len(found) > 1:
        names = [str(path.relative_to(results)) for path in found[:MOST_NAMED]]
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise UserError(f"'{run}' names {len(found)} runs: {', '.join(names)}{more}: name one of them")
    return RunDir(found[0])


def _is_meant(path: Path, run: str) -> bool:
    sweep, run_id = path.parts[-4], "/".join(path.parts[-3:])
    own = run.partition("/")[2] if run.partition("/")[0] == sweep else run
    return selectors.matches(run_id, [own]) or selectors.globs(f"{sweep}/{run_id}", run)


def of_run(directory: RunDir) -> list[Log]:
    """The logs of a run that exist, the oldest launch first."""
    run_id = "/".join(directory.path.resolve().parts[-3:])
    found = [
        Log(launched, index, stream)
        for launched in launches.records(directory.path.resolve().parents[2])
        for index, run_ids in enumerate(launched.fleets)
        if run_id in run_ids
        for stream in ("out", "err")
    ]
    return [log for log in found if log.path.exists()]


def follow(
    positions: Mapping[Log, int], is_over: Callable[[], bool], poll_s: float = POLL_S
) -> Iterator[tuple[Log, str]]:
    """What is added to logs, line by line, until nothing more will come.

    Args:
        positions: the logs, and how far each was read.
        is_over: whether the run has ended; asked once a poll, and what was written before is still given.
        poll_s: how often files are looked at.
    """
    read = dict(positions)
    while True:
        over = is_over()
        for log, position in read.items():
            with log.path.open("rb") as file:
                file.seek(position)
                added = file.read()
            whole = len(added) if over else added.rfind(b"\n") + 1
            read[log] = position + whole
            for line in added[:whole].decode(errors="replace").splitlines():
                yield log, line
        if over:
            return
        time.sleep(poll_s)
