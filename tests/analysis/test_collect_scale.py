"""Time and memory of `bench collect` on many run directories.

Last run on 2 CPU cores, another program on one of them: first and again, seconds and peak memory of the process.

    2,000 directories x 20 evaluations of 10 episodes     4.2 s, 0.21 GB    0.9 s, 0.21 GB
    2,000 directories x 200 evaluations of 1 episode      7.6 s, 0.53 GB    1.8 s, 0.45 GB
    20,000 directories x 20 evaluations of 10 episodes   42.3 s, 0.67 GB    4.3 s, 0.73 GB

Again with `python -m pytest -m slow tests/analysis/test_collect_scale.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.runspec import RunSpec
from bench.schema import EVAL_CSV, SCHEMA_VERSION


@dataclass(frozen=True)
class Size:
    """So many directories, and what collecting them may take."""

    runs: int
    evaluations: int
    episodes: int
    first_s: float
    again_s: float
    peak_gb: float


SIZES = (Size(2_000, 20, 10, 20, 3, 1), Size(2_000, 200, 1, 20, 3, 1), Size(20_000, 20, 10, 200, 30, 4))


def write_runs(folder: Path, size: Size) -> None:
    """Finished runs as training leaves them, without a flush to disk for each file."""
    header = ",".join(EVAL_CSV)
    rows = [
        f"{1000 * i},{500 * i},{12.5 * i},{episode},{431.0627 + i + episode / 7},0.0,500"
        for i in range(size.evaluations)
        for episode in range(size.episodes)
    ]
    text = "\n".join([header, *rows]) + "\n"
    attempt = {"started": "2026-01-01T00:00:00+00:00", "commit": "abc", "dirty": False, "host": "node1", "gpu": "H200"}
    attempt |= {"device": "cuda:0", "fleet": 2, "job_id": "7", "versions": {f"package{i}": "1.2.3" for i in range(40)}}
    beat = {"time": time.time(), "process": {}, "ended": True, "env_steps": 1_000_000, "wall_s": 3600.0}
    for number in range(size.runs):
        spec = RunSpec(
            agent=("sac", "tdmpc2")[number % 2],
            hyperparameters={f"setting{i}": i / 7 for i in range(40)},
            task=("walker-walk", "mw-assembly", "dog-run")[number % 3],
            domain=("dmcontrol", "metaworld", "dmcontrol")[number % 3],
            domain_version="1",
            seed=number,
            action_repeat=2,
            budget_env_steps=1_000_000,
            eval_every_env_steps=1000,
            eval_episodes=size.episodes,
        )
        run = folder / spec.run_id
        run.mkdir(parents=True)
        info = {"schema_version": SCHEMA_VERSION, "hash": spec.hash, "spec": spec.model_dump(), "attempts": [attempt]}
        (run / "run.json").write_text(json.dumps(info, indent=2))
        (run / "eval.csv").write_text(text)
        (run / "heartbeat").write_text(json.dumps(beat))
        (run / "done.json").write_text(json.dumps({"ended": "2026-01-02T00:00:00+00:00", "env_steps": 1_000_000}))


def collect(folder: Path) -> tuple[float, float]:
    """Seconds and peak memory in GB of a whole `bench collect`, its start included."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "bench", "collect", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.runs}x{size.evaluations}x{size.episodes}")
def test_collect_keeps_its_promise(size: Size, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(tmp_path, size)
    time.sleep(3)  # what changed within the last seconds would be read again
    first_s, first_gb = collect(tmp_path)
    written = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    again_s, again_gb = collect(tmp_path)
    with capsys.disabled():
        print(f"\n{size}: first {first_s:.1f} s, {first_gb:.2f} GB; again {again_s:.1f} s, {again_gb:.2f} GB")  # noqa: T201
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == written
    assert first_s < size.first_s
    assert again_s < size.again_s
    assert max(first_gb, again_gb) < size.peak_gb
