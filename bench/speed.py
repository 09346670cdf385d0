"""How fast an agent updates, acts and trains on this machine, by fleet size: what sweeps estimate their cost from."""

from __future__ import annotations

import json
import re
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.protocol import Agent, AgentSpec
from agents.registry import get as get_agent
from agents.registry import resolve_hyperparameters
from bench import agent_spec, atomic, provenance
from bench.cpu import choose_matmul
from bench.envs import ObsKind, agents_pixels
from bench.envs.pool import EnvPool
from bench.replay import Replay
from bench.tasks import get as get_task

WARM_UP_CALLS = 3
REPLAY_EPISODES = 2


@dataclass(frozen=True)
class Measurement:
    """One fleet size. Times are medians in ms of one call for the whole fleet, spreads half the interquartile range."""

    agent: str
    hyperparameters: dict[str, Any]
    task: str
    obs: str
    num_envs: int
    fleet: int
    update_ms: float
    update_spread_ms: float
    act_ms: float
    act_spread_ms: float
    env_ms: float
    loop_agent_steps_per_s: float
    """Of each run: one act, one agent step of its environment and the updates owed for it, after the seed phase."""
    peak_gpu_gb: float | None = None
    """Most GPU memory of the whole fleet: what was measured, with the replay as large as a whole run makes it."""


def timed(call: Callable[[], Any], calls: int, device: torch.device) -> tuple[float, float]:
    """Median and half the interquartile range of a call, in ms, after a warm-up."""
    times = []
    for number in range(WARM_UP_CALLS + calls):
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= WARM_UP_CALLS:
            times.append(1000 * (time.perf_counter() - begin))
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, (high - low) / 2


def measure(
    agent_name: str,
    overrides: Mapping[str, Any],
    task_name: str,
    runs: int,
    device: torch.device,
    calls: int,
    obs: ObsKind = "state",
) -> Measurement:
    """Measure one fleet on one task; the environments step in this process.

    Args:
        overrides: hyperparameters that differ from the agent's defaults.
        runs: R.
        calls: timed calls of each kind.
        obs: kind of observation.
    """
    task, entry = get_task(task_name), get_agent(agent_name)
    hyperparameters = resolve_hyperparameters(agent_name, overrides, task, obs)
    pixels = agents_pixels(hyperparameters)
    spec = agent_spec.of_task(task, obs, hyperparameters)
    seeds = list(range(runs))
    agent: Agent = entry.load()(spec, entry.hyperparameters_model()(**hyperparameters), seeds, device)
    choose_matmul(agent)
    replay = Replay.of_agent(agent.replay, spec, seeds, device)
    with EnvPool([task.name] * runs, obs, workers=0, pixels=pixels) as pool:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        shown = torch.from_numpy(_fill(replay, pool, runs, spec)).to(device)
        first = torch.zeros(runs, 1, dtype=torch.bool, device=device)
        update_ms, update_spread_ms = timed(lambda: _update(agent, replay), calls, device)
        act_ms, act_spread_ms = timed(lambda: agent.act(shown, first, explore=True).cpu(), calls, device)
        rest = np.zeros((runs, spec.action_size), np.float32)
        env_ms, _ = timed(lambda: pool.step(rest), calls, torch.device("cpu"))
        peak_gpu_gb = _peak_gpu_gb(replay, spec, device)
    # Whole episodes, and some after the seed phase: learning may go by episodes, and a burst may end that phase.
    some = 10 * spec.episode_agent_steps
    updates = agent.updates_due(agent.seed_agent_steps + some, agent.seed_agent_steps + 2 * some) / some
    return Measurement(
        agent=agent_name,
        hyperparameters=hyperparameters,
        task=task.name,
        obs=obs,
        num_envs=1,
        fleet=runs,
        update_ms=round(update_ms, 3),
        update_spread_ms=round(update_spread_ms, 3),
        act_ms=round(act_ms, 3),
        act_spread_ms=round(act_spread_ms, 3),
        env_ms=round(env_ms, 3),
        loop_agent_steps_per_s=round(1000 / (act_ms + env_ms + updates * update_ms), 3),
        peak_gpu_gb=peak_gpu_gb,
    )


def _peak_gpu_gb(replay: Replay, spec: AgentSpec, device: torch.device) -> float | None:
    """Peak GPU memory in GB that a run to its budget will have; None on a CPU.

    The replay is small here, and doubles as it grows: the largest moment is that of the last doubling, when the tensors
    of half the size are copied into the full ones.
    """
    if device.type != "cuda":
        return None
    learner = torch.cuda.max_memory_allocated(device) - replay.allocated_bytes
    return round((learner + 1.5 * replay.full_bytes(spec.budget_agent_steps)) / 1e9, 3)


def _update(agent: Agent, replay: Replay) -> None:
    batch = replay.sample()
    agent.update(batch)
    replay.set_priorities(batch)


def _fill(replay: Replay, pool: EnvPool, runs: int, spec: AgentSpec) -> np.ndarray:
    """Play random episodes into the replay, and leave the environments mid-episode. Returns obs (R, 1, *obs_shape)."""
    rng = np.random.default_rng(0)
    indices = list(range(runs))
    for episode in range(REPLAY_EPISODES):
        obs = pool.reset(indices, [1000 * episode + index for index in indices])
        replay.begin(obs[:, None])
        for _ in range(spec.episode_agent_steps):
            action = rng.uniform(-1, 1, (runs, spec.action_size)).astype(np.float32)
            result = pool.step(action)
            ended = result.terminated[:, None], result.truncated[:, None]
            replay.add(result.obs[:, None], action[:, None], result.reward[:, None], *ended)
        replay.pop_finished()
    return pool.reset(indices, indices)[:, None]


def write(measurements: Sequence[Measurement], device: str, folder: Path) -> Path:
    """Add measurements to this machine's file in a results folder; a new figure for the same fleet replaces the old."""
    path = folder / "speed" / (re.sub(r"[^\w.-]+", "-", f"{socket.gethostname()}-{device}") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text())["measurements"] if path.exists() else []
    new = [asdict(measurement) for measurement in measurements]

    def what(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("agent", "hyperparameters", "task", "obs", "num_envs", "fleet"))

    kept = [row for row in kept if what(row) not in [what(other) for other in new]]
    facts = provenance.collect(device)
    about = {key: facts[key] for key in ("commit", "dirty", "cpu", "cpu_count", "gpu", "driver", "versions")}
    content = {"host": socket.gethostname(), "device": device, "threads": torch.get_num_threads(), **about}
    atomic.write_json(path, content | {"measurements": kept + new})
    return path
