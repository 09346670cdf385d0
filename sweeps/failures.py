"""Why runs failed: each failure has a class and a place, and runs that failed alike are shown once, with a cure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from bench.errors import UserError, unknown
from sweeps.state import RunState


@dataclass(frozen=True)
class FailureClass:
    """One kind of failure."""

    name: str
    """As `--class` takes it."""
    title: str
    pattern: re.Pattern[str]
    """Found in what was raised, or in the last lines that the worker wrote."""
    cure: str


def _class(name: str, title: str, pattern: str, cure: str) -> FailureClass:
    return FailureClass(name, title, re.compile(pattern, re.IGNORECASE), cure)


CLASSES = (
    _class(
        "oom",
        "out of memory",
        r"out of memory|OutOfMemory|OUT_OF_MEMORY|MemoryError|cannot allocate memory|can't allocate memory|bad_alloc"
        r"|killed by SIGKILL|oom.?kill",
        "give it more memory (a job's with `--set cluster.memory_gb=…`), or train less at a time: "
        "`--set resources.fleet=…`, `resources.pack`, `resources.slots`",
    ),
    _class(
        "cuda",
        "CUDA",
        r"CUDA|cuDNN|cuBLAS|NCCL|AcceleratorError|no kernel image|device-side assert",
        "see `bench doctor` on that machine; a device that works can be chosen with `--set resources.device=cpu`, "
        "`--set resources.gpus=[…]` or another `--cluster`",
    ),
    _class(
        "time-limit",
        "time limit",
        r"\bTIMEOUT\b|time.?limit|DEADLINE",
        "the run goes on from its last checkpoint: allow more time or attempts (`--set cluster.time_h=…`, "
        "`cluster.max_attempts`), or checkpoint more often (`resources.checkpoint_every_s`)",
    ),
    _class(
        "node",
        "node",
        r"NODE_FAIL|BOOT_FAIL|node fail|Stale file handle|Input/output error|Transport endpoint|Connection reset",
        "retry; if it is always one node, keep away from it (`cluster.sbatch.exclude`)",
    ),
    _class(
        "disk",
        "disk",
        r"No space left|Disk quota|Read-only file system|Errno 28|Errno 122|disk is full|cannot write |make room",
        "make room or choose another folder; then retry: runs go on from their last checkpoint",
    ),
    _class(
        "missing",
        "missing package or asset",
        r"ModuleNotFound|ImportError|No module named|pip install|apt-get install|download_asset"
        r"|cannot open shared object|needs models that are not in",
        "install what the message names (`bench doctor` lists all that is missing), then retry",
    ),
    _class(
        "nan",
        "NaN",
        r"NaNError|\bNaN\b|not a number|\bInf\b|BADQACC|non-finite",
        "training diverged: a retry goes on from the last checkpoint; if it diverges again, the hyperparameters are to "
        "blame, and others make another run",
    ),
    _class(
        "simulator",
        "simulator or worker died",
        r"WorkerError|WorkerDied|SimulatorError|DiedRepeatedly|AttemptsExhausted|killed by SIG|Segmentation fault",
        "retry: a crash of native code is often single; if it comes back at the same place, see `bench sweep logs RUN`",
    ),
)
"""In the order in which they are tried; the last only where nothing says why it died."""

BUG = FailureClass("bug", "bug", re.compile(""), "mend the code at that place, then retry")
"""What no other class takes."""

NAMES = (*(one.name for one in CLASSES), BUG.name)

_FRAME = re.compile(r'^\s*File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
_RAISED = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Warning|Died)\b.*$", re.MULTILINE)
_LOG = re.compile(r"\(log: [^)]*\)$")
_HEADER = "Traceback (most recent call last)"
_FOREIGN = ("site-packages/", "dist-packages/", "lib/python3", "<frozen ")


@dataclass(frozen=True)
class Failure:
    """One failed run."""

    run: RunState
    kind: FailureClass
    place: str
    """`bench/training.py:131 in _act`: the innermost frame that is not an installed package's."""
    error: str
    """`ValueError: …`, its first line."""
    error_class: str
    traceback: str


@dataclass(frozen=True)
class FailureGroup:
    """Runs that failed alike: same class, same place, same exception."""

    failures: tuple[Failure, ...]

    @property
    def first(self) -> Failure:
        """The one that is shown."""
        return self.failures[0]


def classify(error: str, traceback: str = "", last_lines: Sequence[str] = ()) -> FailureClass:
    """The class of a failure.

    Args:
        error: `ValueError: …`, one line.
        traceback: of the exception; the exceptions that it names count, the code that it shows does not.
        last_lines: what the worker wrote last, where it died without a word.
    """
    *plain, died = CLASSES
    said = "\n".join(_LOG.sub("", line) for line in (error, *_RAISED.findall(traceback)))
    for text in (said, "\n".join(last_lines)):
        for one in plain:
            if one.pattern.search(text):
                return one
    return died if died.pattern.search(said) and not any(_HEADER in line for line in last_lines) else BUG


def place_of(traceback: str) -> str | None:
    """The innermost frame of the user's and the suite's own code, where the first cause arose; of any code where there
    is none of these; None where the text has no frame."""
    blocks = [_FRAME.findall(block) for block in traceback.split(_HEADER)]
    frames = [frame for frames in blocks for frame in reversed(frames)]  # innermost first, the first cause before all
    own = [frame for frame in frames if not any(part in frame[0] for part in _FOREIGN)]
    for path, line, function in own or frames:
        return f"{'/'.join(PurePath(path).parts[-2:])}:{line} in {function}"
    return None


def read(run: RunState) -> Failure:
    """Why one failed run failed; a damaged directory has failed too."""
    try:
        found: dict[str, Any] = run.directory.read_json("failed.json") or {}
    except UserError as damage:
        found = {"class": "UserError", "message": str(damage)}
    if not found:
        found = {"class": "UserError", "message": run.error or "no failed.json"}
    error_class, message = str(found.get("class", "Error")), str(found.get("message", "")).strip()
    error = f"{error_class}: {message.splitlines()[0] if message else 'no message'}"
    last_lines = [str(line) for line in found.get("stderr") or ()]
    traceback = str(found.get("traceback", "")).rstrip()
    spoken = "\n".join(last_lines)
    place = place_of(traceback) or place_of(spoken) or ("in the worker process" if last_lines else "no place known")
    return Failure(
        run=run,
        kind=classify(error, traceback, last_lines),
        place=place,
        error=error,
        error_class=error_class,
        traceback=f"{traceback}\n{spoken}".strip() if last_lines else traceback,
    )


def group(runs: Iterable[RunState]) -> list[FailureGroup]:
    """The failed runs among some, those that failed alike together, the largest group first."""
    groups: dict[tuple[str, str, str], list[Failure]] = {}
    for failure in (read(run) for run in runs if run.state == "failed"):
        groups.setdefault((failure.kind.name, failure.place, failure.error_class), []).append(failure)
    return [FailureGroup(tuple(members)) for members in sorted(groups.values(), key=len, reverse=True)]


def check_classes(names: Iterable[str]) -> None:
    """Whether these are names of classes.

    Raises:
        UserError: names the valid ones.
    """
    for name in names:
        if name not in NAMES:
            raise unknown("failure class", name, NAMES)


def to_json(groups: Sequence[FailureGroup]) -> list[dict[str, Any]]:
    """Plain values, for `--json`."""
    return [
        {
            "class": found.first.kind.name,
            "place": found.first.place,
            "error": found.first.error,
            "count": len(found.failures),
            "cure": found.first.kind.cure,
            "traceback": found.first.traceback,
            "runs": [
                {"run_id": failure.run.spec.run_id, "path": str(failure.run.directory.path), "error": failure.error}
                for failure in found.failures
            ],
        }
        for found in groups
    ]
