"""What `bench doctor` tries in child processes: each probe builds and uses one thing for real.

Run as `python -m bench.probes NAME`. What the probe found, or the error that it met, is one JSON object on stdout;
whatever the libraries print goes to stderr. A probe that crashes takes no other down with it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench import tasks
from bench.envs import vulkan
from bench.installed import is_maniskill3


def dmcontrol() -> str:
    """Build and step walker-walk."""
    _step("walker-walk")
    return f"walker-walk stepped; dm_control {version('dm-control')}, mujoco {version('mujoco')}"


def metaworld() -> str:
    """Build and step mw-reach."""
    _step("mw-reach")
    return f"mw-reach stepped; metaworld {version('metaworld')}"


def myosuite() -> str:
    """Build and step myo-reach."""
    _step("myo-reach")
    return f"myo-reach stepped; myosuite {version('myosuite')}"


def maniskill() -> str:
    """Build and step a task, without a renderer where there is no GPU for one."""
    task, package = ("pick-cube", "mani_skill") if is_maniskill3() else ("lift-cube", "mani_skill2")
    _step(task)
    gpu = vulkan.device()
    pictures = f"videos on {gpu}" if gpu else "no GPU that Vulkan finds, so without a renderer: no videos"
    return f"{task} stepped; {package} {version(package)}, sapien {version('sapien')}; {pictures}"


def _step(task: str) -> None:
    row = tasks.get(task)
    # Not bench.envs.make, which turns an import error into advice: the doctor has its own, for the original error.
    env = import_module(f"bench.envs.{row.domain}").make(row, "state", 0, row.action_repeat, None)
    env.reset(seed=0)
    env.step(np.zeros(row.action_size, np.float32))


def render() -> str:
    """Render one frame with the platform that MUJOCO_GL names."""
    from dm_control import suite

    env = suite.load("walker", "walk", task_kwargs={"random": 0})
    env.reset()
    env.physics.render(64, 64, camera_id=0)
    start = time.perf_counter()
    frame = env.physics.render(64, 64, camera_id=0)
    seconds = time.perf_counter() - start
    if frame.shape != (64, 64, 3) or frame.std() < 1:
        raise RuntimeError(f"the rendered frame is blank ({frame.shape}, mean {frame.mean():.1f})")
    return f"64x64 frame in {1000 * seconds:.0f} ms; chosen by MUJOCO_GL={os.environ['MUJOCO_GL']}"


def video() -> str:
    """Encode two frames."""
    from bench.video import write_mp4

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        write_mp4(path, np.zeros((2, 64, 64, 3), np.uint8), fps=15)
        return f"two frames encoded (H.264, {path.stat().st_size} bytes)"


def torch() -> str:
    """Take a gradient."""
    import torch as library

    weight = library.ones(3, requires_grad=True)
    (weight**2).sum().backward()
    if weight.grad is None or weight.grad.tolist() != [2.0, 2.0, 2.0]:
        raise RuntimeError(f"a gradient came out wrong: {weight.grad}")
    return f"torch {library.__version__}"


def gpu() -> str:
    """Multiply two matrices on every GPU."""
    import torch as library

    if not library.cuda.is_available():
        raise RuntimeError(f"torch {library.__version__} sees no CUDA device")
    names = []
    for index in range(library.cuda.device_count()):
        ones = library.ones(64, 64, device=f"cuda:{index}")
        if (ones @ ones).sum().item() != 64**3:
            raise RuntimeError(f"a matrix product on cuda:{index} came out wrong")
        about = library.cuda.get_device_properties(index)
        names.append(f"{about.name} ({about.total_memory / 1e9:.0f} GB)")
    return f"{', '.join(names)}; CUDA {library.version.cuda}"


def analysis() -> str:
    """Aggregate a score matrix with rliable, and load what draws and stores tables."""
    import jinja2
    import matplotlib
    import pandas
    import pyarrow
    from rliable import metrics

    iqm = metrics.aggregate_iqm(np.arange(8.0).reshape(4, 2))
    if iqm != 3.5:
        raise RuntimeError(f"rliable's interquartile mean of 0..7 is {iqm}, not 3.5")
    return (
        f"rliable {version('rliable')}, pandas {pandas.__version__}, pyarrow {pyarrow.__version__}, "
        f"matplotlib {matplotlib.__version__}, jinja2 {version(jinja2.__name__)}"
    )


PROBES = {probe.__name__: probe for probe in (dmcontrol, metaworld, myosuite, maniskill, render)}
PROBES |= {probe.__name__: probe for probe in (video, torch, gpu, analysis)}


def main(name: str) -> None:
    """Run one probe and report on what was stdout; everything printed meanwhile is sent to stderr."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**values: Any) -> None:
        report.write(json.dumps(values) + "\n")
        report.flush()

    try:
        say(found=PROBES[name]())
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        say(error=f"{type(error).__name__}: {error}", missing_module=missing)
        raise


if __name__ == "__main__":
    main(sys.argv[1])
