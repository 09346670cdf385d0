"""The single checks of `bench doctor`: each turns what was tried into a verdict and the command that mends it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata, util
from json import loads
from pathlib import Path
from typing import Literal

from bench import tasks
from bench.children import Outcome
from bench.envs.missing import MANISKILL_ASSETS, SYSTEM_LIBRARIES

LOW_DISK_GB = 20.0

PYTHON = shlex.quote(sys.executable)
"""The interpreter of this very environment, which need not be activated."""
PIP = f"{PYTHON} -m pip install"

INSTALL_ALL = f"{PIP} --no-deps -r requirements.lock  (in the checkout; or anew: rm -rf .venv && make setup)"
"""Plain `pip install` of all extras ends in a conflict: two simulators declare old gymnasium and numpy versions."""

NO_OPENGL = ("MUJOCO_GL", "glGetError", "OpenGL platform library")


Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    status: Status
    found: str
    mend: str | None = None
    """The command that mends it; None where nothing is to be mended."""
    core: bool = False
    """Whether the suite is of no use without it: its failure is the doctor's exit code 1."""
    seconds: float = 0.0


# Verdicts on what was tried in a child process


def judge(name: str, outcome: Outcome, core: bool = False) -> Check:
    """The verdict on a probe: what it found, or its own error with the command that mends it."""
    found = outcome.answer.get("found")
    if found is not None and outcome.returncode == 0:
        return Check(name, "ok", found, core=core, seconds=outcome.seconds)
    error = outcome.answer.get("error")
    if outcome.returncode is None:
        return Check(
            name, "fail", outcome.end, "run bench doctor again when this machine is less busy", core, outcome.seconds
        )
    if error is None:
        return Check(name, "fail", _crash(outcome), INSTALL_ALL, core, outcome.seconds)
    return Check(name, "fail", error, _mend(error, outcome.answer.get("missing_module")), core, outcome.seconds)


def judge_rendering(egl: Outcome, osmesa: Outcome) -> list[Check]:
    """Two ways to the same pictures: one of them is enough, so the other's failure is then a warning."""
    checks = [judge("render-egl", egl), judge("render-osmesa", osmesa)]
    if all(check.status == "ok" for check in checks):
        return checks
    status: Status = "warn" if any(check.status == "ok" for check in checks) else "fail"
    packages = ("libegl1 libgl1 libgl1-mesa-dri", "libosmesa6")
    for index, outcome in enumerate((egl, osmesa)):
        check = checks[index]
        if check.status == "fail":
            # Without its library OpenGL fails in obscure ways; a missing Python package says so itself.
            mend = check.mend if outcome.answer.get("missing_module") else _apt(packages[index])
            checks[index] = replace(check, status=status, found=f"no picture: {check.found}", mend=mend)
    return checks


def judge_gpu(outcome: Outcome, driver: str | None) -> Check:
    """A machine without a GPU is a warning; one whose GPU torch cannot use is a failure.

    Args:
        driver: the NVIDIA driver's version, None where there is none.
    """
    check = judge("gpu", outcome)
    if check.status == "ok":
        return replace(check, found=f"{check.found}, driver {driver or 'unknown'}")
    if driver is None:
        return replace(check, status="warn", found="no NVIDIA GPU: training runs on the CPU", mend=None)
    return replace(
        check,
        found=f"driver {driver}, but {check.found}",
        mend=f"{_pip(_pins().get('torch', 'torch'))} --force-reinstall  (the CUDA build; or update the driver)",
    )


def _crash(outcome: Outcome) -> str:
    words = [line for line in outcome.stderr.splitlines() if line.strip()]
    return f"{outcome.end}; last words: {words[-1].strip()}" if words else outcome.end


def _mend(error: str, missing_module: str | None) -> str:
    for library, package in SYSTEM_LIBRARIES.items():
        if library in error:
            return _apt(package)
    if any(text in error for text in NO_OPENGL):
        return f"unset MUJOCO_GL (now {os.environ.get('MUJOCO_GL')!r}), or set it to one that renders below"
    pin = _pins().get((missing_module or "").partition(".")[0].replace("_", "-"))
    return f"{INSTALL_ALL}; this package alone: {_pip(pin)}" if pin else INSTALL_ALL


def _apt(packages: str) -> str:
    return f"apt-get install -y {packages}  (as root; Debian, Ubuntu)"


def _pip(pin: str) -> str:
    """Without dependencies where they would undo the other pins; torch brings its own."""
    return f"{PIP} {'' if pin.startswith('torch') else '--no-deps '}{pin}"


# Checks in this process


def check_python() -> Check:
    """The simulators have wheels for one minor version in common."""
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        return Check("python", "ok", version, core=True)
    return Check("python", "fail", f"{version}, needs 3.11", "make setup PYTHON=/path/to/python3.11", core=True)


def check_packages() -> Check:
    """Installed versions against the pins of this distribution; another version runs, but gives other numbers."""
    pins = _pins()
    if not pins:
        return Check(
            "packages", "warn", "tdmpc2-bench is not installed, so its pins are unknown", f"{PIP} --no-deps -e ."
        )
    wrong = []
    for name, pin in pins.items():
        try:
            installed = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            wrong.append(f"{pin} (not installed)")
            continue
        if f"{name}=={installed}" != pin:
            wrong.append(f"{pin} (installed: {installed})")
    if wrong:
        return Check("packages", "warn", f"not as pinned: {', '.join(wrong)}", INSTALL_ALL)
    return Check("packages", "ok", f"{len(pins)} pinned packages are as they should be")


def _pins() -> dict[str, str]:
    """Package -> `package==version`, of every exact pin of this distribution, extras included."""
    try:
        requirements = metadata.requires("tdmpc2-bench") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)==([\w.]+)", requirement) for requirement in requirements)
    return {match[1]: match[0] for match in found if match}


def check_results(results: Path) -> Check:
    """The folder that runs go to: really written to, and the room left on its disk."""
    folder = results.absolute()
    while not folder.is_dir():
        if folder.exists():
            return Check("results", "fail", f"{folder} is a file", "choose another results folder", core=True)
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".bench-doctor-") as file:
            file.write(b"bench")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        mend = f"make {folder} writable, or choose another results folder"
        return Check("results", "fail", f"cannot write to {folder}: {error.strerror}", mend, core=True)
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < LOW_DISK_GB:
        mend = "free some space, or choose a results folder on another disk"
        return Check("results", "warn", f"{results}: only {free_gb:.1f} GB free", mend, core=True)
    return Check("results", "ok", f"{results}: writable, {free_gb:.0f} GB free", core=True)


def check_maniskill_assets(folder: Path) -> Check:
    """The downloaded models that pick-ycb and turn-faucet need; the cube tasks need none.

    Args:
        folder: MS2_ASSET_DIR, `data` in the working directory where it is not set.
    """
    name = "maniskill-assets"
    spec = util.find_spec("mani_skill2")
    if spec is None or spec.origin is None:
        return Check(name, "fail", "mani_skill2 is not installed", _mend("", "mani_skill2"))
    faucets = loads((Path(spec.origin).parent / "assets/partnet_mobility/meta/info_faucet_train.json").read_text())
    lacking = {
        "pick-ycb": _lacking_ycb(folder / "mani_skill2_ycb"),
        "turn-faucet": _lacking(
            folder / "partnet_mobility/dataset", faucets, lambda model: model / "mobility_cvx.urdf"
        ),
    }
    lacking = {task: what for task, what in lacking.items() if what}
    if not lacking:
        return Check(name, "ok", f"pick-ycb and turn-faucet: complete in {folder}")
    found = "; ".join(f"{task}: {what}" for task, what in lacking.items())
    download = " && ".join(f"{PYTHON} -m mani_skill2.utils.download_asset -y {_asset(task)}" for task in lacking)
    return Check(
        name, "warn", found, f"export MS2_ASSET_DIR={shlex.quote(str(folder.absolute()))} && {download}  (internet)"
    )


def _asset(task: str) -> str:
    return MANISKILL_ASSETS[tasks.get(task).simulator_id]


def _lacking_ycb(folder: Path) -> str | None:
    index = folder / "info_pick_v0.json"
    if not index.is_file():
        return f"no {index}"
    return _lacking(folder / "models", loads(index.read_text()), lambda model: model / "collision.obj")


def _lacking(folder: Path, models: dict[str, object], needed: Callable[[Path], Path]) -> str | None:
    """What is missing of a set of models, each in a folder of its name; None if nothing is."""
    absent = [model for model in models if not needed(folder / model).is_file()]
    return f"{len(absent)} of {len(models)} models missing in {folder}" if absent else None


def check_slurm() -> Check:
    """The commands that submitting needs, and a controller that answers. Without Slurm, sweeps run on this machine."""
    absent = [tool for tool in ("sbatch", "scontrol") if shutil.which(tool) is None]
    if absent:
        return Check(
            "slurm",
            "warn",
            f"no {' and no '.join(absent)}: sweeps run on this machine only",
            "on a cluster, log in to its login node (or load its slurm module)",
        )
    mend = "ask the cluster's administrators: scontrol ping must say UP"
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=15, check=False)
        version = subprocess.run(["sbatch", "--version"], capture_output=True, text=True, timeout=15, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check("slurm", "fail", str(error), mend)
    words = (ping.stdout.strip() or ping.stderr.strip() or f"exit code {ping.returncode}").splitlines()[0]
    if ping.returncode != 0 or not re.search(r"\bUP\b", ping.stdout):
        return Check("slurm", "fail", words, mend)
    return Check("slurm", "ok", f"{version.stdout.strip()}; {words}{_partitions()}")


def _partitions() -> str:
    """`; partitions gpu (4 nodes), cpu (12 nodes)`; nothing where sinfo does not say."""
    command = ["sinfo", "--noheader", "--summarize", "--format=%R (%D nodes)"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"; partitions {', '.join(lines)}" if lines else ""
