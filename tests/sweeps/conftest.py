"""Sweep files and a worker that obeys a test."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import SlurmCluster

from sweeps import launch
from sweeps.slurm_state import SlurmSilent

BASIC = """\
name: basic
agents: [sac]
tasks: [cartpole-balance]
seeds: [1]
env_steps: 2000
resources: {device: cpu, threads: 1}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write a sweep file and give its path."""

    def _write(text: str = BASIC) -> Path:
        path = tmp_path / "s.yaml"
        path.write_text(text)
        return path

    return _write


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Path]:
    """A results folder; whatever still runs below it is stopped at the end of the test."""
    folder = tmp_path / "results"
    yield folder
    for sweep in folder.glob("*"):
        with contextlib.suppress(SlurmSilent):  # the cluster's own fixture empties its queue
            launch.cancel(sweep, grace_s=0.5)


@pytest.fixture
def behave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Launch the fake worker instead of `bench worker`, and set its behaviours."""
    behaviours = tmp_path / "behaviours.json"

    def _behave(**by_seed: str) -> None:
        by_run = {f"sac/cup-catch/{seed}": behaviour for seed, behaviour in by_seed.items()}
        behaviours.write_text(json.dumps(by_run))

    _behave()
    script = Path(__file__).with_name("fake_worker.py")
    monkeypatch.setattr(launch, "WORKER", (sys.executable, str(script), str(behaviours)))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return _behave


@pytest.fixture(scope="session")
def _cluster() -> Iterator[SlurmCluster]:
    reason = slurm_cluster.lacking()
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.fixture
def slurm(_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The Slurm of this test run, made the one that commands talk to; its queue is emptied after the test."""
    for name, value in _cluster.env.items():
        monkeypatch.setenv(name, value)
    yield _cluster
    _cluster.clear()


@pytest.fixture(scope="module")
def accounting_cluster() -> Iterator[SlurmCluster]:
    """A Slurm with a database, for tests of sacct and of the limits of associations."""
    reason = slurm_cluster.lacking(accounting=True)
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running(accounting=True) as cluster:
        yield cluster
