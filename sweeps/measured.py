"""What was really measured of training speed, memory and disk: what plans are made with.

Two sources: the run directories below the results folder (finished runs: agent steps over wall time, evaluation
included; running ones: the rate of their heartbeat once they learn), and the files of `bench speed`:

    results/speed/*.json: {"device": "cpu", "host": "...", "measurements": [
        {"agent": ..., "hyperparameters": {all of them}, "obs": "state", "num_envs": 1, "fleet": 4,
         "loop_agent_steps_per_s": of each run, "peak_gpu_gb": of the process, null on a CPU}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from agents import registry
from bench.errors import UserError
from bench.rundir import RunDir, find_runs
from bench.runspec import RunSpec, decisive
from bench.tasks import tasks


@dataclass(frozen=True)
class Measurement:
    """What was measured of one run, or of one fleet by `bench speed`."""

    agent: str
    hyperparameters: dict[str, Any]
    obs: str
    num_envs: int
    fleet: int
    device: str
    host: str
    task: str | None
    domain: str | None
    speed: float
    """Of each run of the fleet, on its clock: agent steps a second, or updates where it learns offline."""
    kind: str
    """`finished run`, `running run`, or the name of a speed file."""
    tasks: tuple[str, ...] = ()
    """Of a run that learns offline."""
    pack: int = 1
    """Workers that shared the device."""
    cuda_graphs: bool = False
    """Whether acting and updating were recorded as CUDA graphs."""
    peak_gpu_gb: float | None = None
    """Of the whole fleet's process; of finished runs, whose replay has grown as far as it will."""
    made_up: bool = False
    """Whether its environments were made up: their time, or none, stands in the speed instead of a simulator's."""
    checkpoint_bytes: int | None = None
    """Of the checkpoints that the run keeps."""

    @cached_property
    def configuration(self) -> str:
        """Equal for what is of one configuration (see `is_of`)."""
        return _configuration(self)

    def is_of(self, spec: RunSpec) -> bool:
        """Whether it is of the same agent, observation kind and environments, with the same hyperparameters but for
        those that change neither speed nor memory (learning rates, discounts, …: an agent's `free`)."""
        return self.configuration == _configuration(spec)


def _configuration(of: Measurement | RunSpec) -> str:
    offline = of.tasks if isinstance(of, Measurement) else of.offline.tasks if of.offline else ()
    free = registry.free_hyperparameters(of.agent)
    own = {key: value for key, value in decisive(of.hyperparameters).items() if key not in free}
    return json.dumps([of.agent, own, of.obs, of.num_envs, offline], sort_keys=True)


def by_configuration(measurements: Iterable[Measurement]) -> Callable[[RunSpec], list[Measurement]]:
    """What gives the measurements of a run's configuration, quickly also where thousands were made."""
    found: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        found.setdefault(measurement.configuration, []).append(measurement)
    return lambda spec: found.get(_configuration(spec), [])


def read(results: Path) -> list[Measurement]:
    """Every measurement that can be found below a results folder."""
    return [*_of_runs(results), *_of_speed_files(results / "speed")]


def sources(measurements: Sequence[Measurement]) -> str:
    """`2 × finished run, vm-cpu.json`, for people."""
    return f"{len(measurements)} × {', '.join(dict.fromkeys(m.kind for m in measurements))}"


def _of_runs(results: Path) -> Iterator[Measurement]:
    for directory in find_runs(results)[0] if results.is_dir() else ():
        try:
            found = _of_run(directory)
        except (UserError, KeyError, TypeError, ZeroDivisionError):
            continue  # a damaged directory says nothing about speed; `status` names it
        if found is not None:
            yield found


def _of_run(directory: RunDir) -> Measurement | None:
    attempts = directory.info()["attempts"]
    done, beat = directory.read_json("done.json"), directory.read_json("heartbeat")
    if not attempts or "device" not in attempts[-1]:
        return None
    spec, last = directory.spec, attempts[-1]
    if done is not None and done.get("wall_s"):
        speed, kind = done[spec.axis] / spec.action_repeat / done["wall_s"], "finished run"
    elif beat is not None and beat.get(f"{spec.clock}_per_s") and directory.train_csv.exists():
        speed, kind = beat[f"{spec.clock}_per_s"], "running run"  # train.csv begins with the first update
    else:
        return None
    return Measurement(
        agent=spec.agent,
        hyperparameters=spec.hyperparameters,
        obs=spec.obs,
        num_envs=spec.num_envs,
        fleet=last.get("fleet", 1),
        device=last["device"].partition(":")[0],
        host=last.get("host", "unknown host"),
        task=spec.task,
        domain=spec.domain,
        speed=speed,
        kind=kind,
        tasks=spec.offline.tasks if spec.offline else (),
        pack=last.get("pack", 1),
        cuda_graphs=last.get("cuda_graphs", False),
        peak_gpu_gb=None if done is None else done.get("peak_gpu_gb"),
        checkpoint_bytes=sum(path.stat().st_size for path in directory.checkpoints.glob("[0-9]*.pt")) or None,
    )


def _of_speed_files(folder: Path) -> Iterator[Measurement]:
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not JSON ({error}): remove it, or measure again with `bench speed`") from error
        if not isinstance(content, dict):
            continue
        for row in content.get("measurements", ()):
            yield Measurement(
                agent=row["agent"],
                hyperparameters=row["hyperparameters"],
                obs=row.get("obs", "state"),
                num_envs=row.get("num_envs", 1),
                fleet=row["fleet"],
                device=content["device"].partition(":")[0],
                host=content["host"],
                task=row.get("task"),
                domain=_domain(row.get("task")),
                speed=row["loop_agent_steps_per_s"],
                kind=path.name,
                peak_gpu_gb=row.get("peak_gpu_gb"),
                cuda_graphs=row.get("cuda_graphs", False),
                made_up=row.get("synthetic") is not None,
            )


def _domain(task: str | None) -> str | None:
    """Of a task that was measured; None where there was none, or it is not known here (a user's own, elsewhere)."""
    return next((row.domain for row in tasks() if row.name == task), None)
