"""Where a run's numbers come from: the code, the machine, the packages and the job. One record for each attempt.

Light on purpose: torch is asked only where a GPU is used, and by then it is loaded anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
SNAPSHOT_JSON = "snapshot.json"
"""In a copy of the code that jobs run: its hash, and the commit and changes of the checkout it was made from."""

DIFF_CAP_BYTES = 200_000
UNTRACKED_CAP = 100
PACKAGES = (
    "tdmpc2-bench",
    "torch",
    "numpy",
    "gymnasium",
    "mujoco",
    "dm-control",
    "metaworld",
    "myosuite",
    "mani-skill2",
    "sapien",
    "pydantic",
    "submitit",
)
"""What can change a result or how a run is executed."""


def collect(device: str, checkout: Path = CHECKOUT) -> dict[str, Any]:
    """The provenance of an attempt that starts now in this process, ready for run.json.

    Never fails: what cannot be found out is None.

    Args:
        device: as torch names it: "cpu", "cuda", "cuda:1".
        checkout: the folder whose git commit is recorded.

    Returns:
        snapshot (hash of the copy of the code that runs), commit, dirty, diff, diff_sha256, untracked and commit_error
        (why there is no commit) · host, cpu, cpu_count (that this process may use), memory_gb · device, gpu, driver,
        cuda · python, versions · job_id, pid, command.
    """
    return {
        **_code_state(checkout),
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": device,
        **_gpu(device),
        "python": platform.python_version(),
        "versions": package_versions(),
        "job_id": job_id(),
        "pid": os.getpid(),
        "command": shlex.join(sys.orig_argv),
    }


def _code_state(checkout: Path) -> dict[str, Any]:
    """`git_state`, with the hash of the snapshot where the code is one."""
    try:
        taken: dict[str, Any] = json.loads((checkout / SNAPSHOT_JSON).read_text())
    except (OSError, json.JSONDecodeError):
        return {"snapshot": None, **git_state(checkout)}
    return taken


def git_state(checkout: Path) -> dict[str, Any]:
    """Commit and uncommitted changes of a checkout.

    Returns:
        commit: None outside a checkout (also where the suite is installed inside another project's), or without git.
        dirty: tracked files are changed, or there are untracked ones that git does not ignore.
        diff: of tracked files against the commit, cut after 200 kB; diff_sha256 is over the whole of it.
        untracked: their names, at most 100.
    """
    unknown: dict[str, Any] = dict.fromkeys(("commit", "dirty", "diff", "diff_sha256", "untracked"))
    try:
        top = _git(checkout, "rev-parse", "--show-toplevel").decode(errors="surrogateescape").rstrip("\n")
        if Path(top).resolve() != checkout.resolve():
            return {**unknown, "commit_error": "the code is not at the top of a git checkout"}
        commit = _git(checkout, "rev-parse", "HEAD").decode().strip()
        diff = _git(checkout, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color")
        others = _git(checkout, "ls-files", "--others", "--exclude-standard", "-z").decode(errors="replace").split("\0")
    except (OSError, subprocess.SubprocessError) as error:
        return {**unknown, "commit_error": _reason(error)}
    untracked = [name for name in others if name]
    return {
        "commit": commit,
        "dirty": bool(diff or untracked),
        "diff": diff[:DIFF_CAP_BYTES].decode(errors="replace") if diff else None,
        "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
        "untracked": untracked[:UNTRACKED_CAP],
        "commit_error": None,
    }


def package_versions() -> dict[str, str]:
    """Installed versions of `PACKAGES`; what is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def job_id() -> str | None:
    """The Slurm job, `<array>_<task>` within an array; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def nvidia_driver() -> str | None:
    """The NVIDIA driver's version; None where `nvidia-smi` is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0].strip() or None


def _git(checkout: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, timeout=30, check=True).stdout


def _reason(error: Exception) -> str:
    """One line of why git gave no answer: its own words where it has any."""
    words = error.stderr.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else ""
    return words.split("\n")[0] or str(error)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(device: str) -> dict[str, str | None]:
    if not device.startswith("cuda"):
        return {"gpu": None, "driver": None, "cuda": None}
    import torch

    name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else None
    return {"gpu": name, "driver": nvidia_driver(), "cuda": torch.version.cuda}
