"""What the tests on a real Slurm share: profiles, launches and what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bench.rundir import RunDir
from sweeps import cluster, expand, launch, slurm_state, state
from sweeps.expand import Sweep
from sweeps.launch import Launched
from sweeps.record import LaunchRecord
from sweeps.slurm import SlurmExecutor

FAKE = """\
name: x
agents: [sac]
tasks: [cup-catch]
seeds: 3
env_steps: 2000
resources: {device: cpu, threads: 1}
"""
"""For the worker that obeys the test (`behave`)."""

REAL = """\
name: real
agents: [{agent: sac, variant: tiny, hyperparameters: {hidden_dim: 16, batch_size: 8, seed_agent_steps: 300}}]
tasks: [cartpole-balance]
seeds: [1]
env_steps: 4000000
eval_every_env_steps: 4000000
eval_episodes: 1
resources: {device: cpu, threads: 1, env_workers: 0, checkpoint_every_s: 2}
"""
"""Real training that no test waits to the end of."""


def executor(tmp_path: Path, **keys: Any) -> SlurmExecutor:
    """An executor of a profile with these keys."""
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({"partition": "main", "time_h": 1.0, **keys}))
    return SlurmExecutor(cluster.load(str(path)), path.name)


def start(sweep: Sweep, results: Path, runs_it: SlurmExecutor) -> LaunchRecord:
    """Launch, and give the record."""
    launched: Launched = launch.launch(sweep, results, runs_it)
    assert launched.record is not None
    return launched.record


def states(sweep: Sweep, results: Path) -> list[str]:
    """The states of a sweep's runs, as their directories say."""
    return [run.state for run in state.read_all(results / sweep.name, sweep.runs)]


def run_dirs(sweep: Sweep, results: Path) -> list[RunDir]:
    """The run directories, in order."""
    return [RunDir(results / sweep.name / run.run_id) for run in sweep.runs]


def attempts(run: RunDir) -> list[dict[str, Any]]:
    """What run.json says of each attempt."""
    found: list[dict[str, Any]] = run.info()["attempts"]
    return found


def job_words(record: LaunchRecord) -> list[str]:
    """Slurm's state of each slot's job."""
    found = slurm_state.states(record)
    return [found[job].state for job in record.jobs().values()]


def wait_for(condition: Callable[[], bool], timeout_s: float = 120.0, what: Callable[[], object] = lambda: "") -> None:
    """Wait for a condition at a pace that leaves the machine to the jobs."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen: {what()}"
        time.sleep(0.3)


def load(write: Callable[..., Path], text: str, *assignments: str) -> Sweep:
    """A sweep from text."""
    return expand.load(write(text), assignments)
