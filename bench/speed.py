"""How fast an agent updates, acts and trains on this machine, by fleet size.

Loads no simulator where the environments are made up: torch, numpy, pydantic, typer and rich are enough then.
"""

from __future__ import annotations

import gc
import re
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.protocol import Agent, AgentSpec, Scheduled
from agents.registry import get as get_agent
from bench import cuda_graphs, speed_profile
from bench.collector import Collector
from bench.cpu import choose_matmul
from bench.envs import ObsKind
from bench.errors import UserError
from bench.loop import Loop
from bench.replay import Replay
from bench.speed_file import Measurement, Timing
from bench.speed_worlds import World
from bench.transfer import to_device

WARM_UP_CALLS = cuda_graphs.WARM_UP_CALLS + 1
"""With CUDA graphs the last of them records."""
REPLAY_EPISODES = 2
PROFILED_CALLS = 3
LOOP_PARTS = 4
"""The loop is timed in so many parts, of which the median counts."""


def timed(call: Callable[[], Any], calls: int, device: torch.device) -> Timing:
    """Time calls, each until the device has finished it."""
    times = []
    for _ in range(WARM_UP_CALLS + calls):
        begin = time.perf_counter()
        call()
        synchronise(device)
        times.append(1000 * (time.perf_counter() - begin))
    low, middle, high = statistics.quantiles(times[WARM_UP_CALLS:], n=4)
    return Timing(round(middle, 3), round((high - low) / 2, 3), round(times[0], 3))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Fleet:
    """R runs of one agent in the training loop, with a small replay and at the end of the agent's schedules."""

    def __init__(
        self,
        agent_name: str,
        hyperparameters: Mapping[str, Any],
        world: World,
        runs: int,
        device: torch.device,
        obs: ObsKind = "state",
        num_envs: int = 1,
        graphs: bool = False,
    ) -> None:
        entry = get_agent(agent_name)
        if entry.max_fleet is not None and runs > entry.max_fleet:
            raise UserError(f"{agent_name} trains at most {entry.max_fleet} runs as one fleet, not {runs}")
        self.spec: AgentSpec = world.spec(obs, hyperparameters, num_envs)
        seeds = list(range(runs))
        self.device, self.runs = device, runs
        self.agent: Agent = entry.load()(self.spec, entry.hyperparameters_model()(**hyperparameters), seeds, device)
        choose_matmul(self.agent)
        if graphs:
            cuda_graphs.attach(self.agent)
        self.replay = Replay.of_agent(self.agent.replay, self.spec, seeds, device)
        self.pool = world.pool(self.spec, hyperparameters, runs)
        self.collector = Collector(self.pool, seeds, num_envs, self.spec.episode_agent_steps)
        overlap = (world.task is None or world.env_workers > 0 or device.type == "cuda") and not (
            world.task is not None and world.task.terminates
        )
        self.loop = Loop(self.agent, self.spec, seeds, self.collector, self.replay, device, overlap)
        self._updates_owed = 0.0

    def prepare(self) -> None:
        """Fill the replay with random episodes, and be late in the run."""
        self.collector.start()
        self.replay.begin(self.collector.obs)
        steps = REPLAY_EPISODES * self.spec.episode_agent_steps
        # Before the first agent step every action is random and no update is owed.
        self.loop.agent_steps = -steps * self.spec.num_envs
        for _ in range(steps):
            self.loop.agent_step(updates=0)
            self.replay.pop_finished()
        self.loop.agent_steps = max(self.spec.budget_agent_steps, self.agent.seed_agent_steps)
        if isinstance(self.agent, Scheduled):
            self.agent.go_to(self.spec.budget_agent_steps)

    @property
    def updates_per_agent_step(self) -> float:
        """On average over whole episodes, some after the seed phase: learning may go by episodes, and begin with a
        burst."""
        some = 10 * self.spec.num_envs * self.spec.episode_agent_steps
        return self.agent.updates_due(self.agent.seed_agent_steps + some, self.agent.seed_agent_steps + 2 * some) / some

    def update(self) -> None:
        """One update, with the batch that it needs."""
        with torch.profiler.record_function(speed_profile.REPLAY):
            batch = self.replay.sample()
        self.agent.update(batch)
        self.replay.set_priorities(batch)

    def act(self) -> None:
        """Choose actions for all environments, and bring them to the host."""
        obs, first = to_device(self.collector.obs, self.device), to_device(self.collector.first, self.device)
        self.agent.act(obs, first, explore=True).cpu()

    def agent_step(self) -> None:
        """One agent step of the loop, with an even share of the updates."""
        self._updates_owed += self.updates_per_agent_step * self.spec.num_envs
        due = int(self._updates_owed)
        self._updates_owed -= due
        self.loop.agent_step(updates=due)
        self.replay.pop_finished()

    def loop_rate(self, agent_steps: int) -> tuple[float, float]:
        """Agent steps per second of each run, the median of `LOOP_PARTS` parts, and half their range."""
        each = max(1, agent_steps // LOOP_PARTS)
        self.agent_step()
        synchronise(self.device)
        self.loop.waited_s = self.loop.stepped_s = 0.0
        rates = []
        for _ in range(LOOP_PARTS):
            begin = time.perf_counter()
            for _ in range(each):
                self.agent_step()
            synchronise(self.device)
            rates.append(each * self.spec.num_envs / (time.perf_counter() - begin))
        return statistics.median(rates), (max(rates) - min(rates)) / 2


def measure(
    agent_name: str,
    hyperparameters: Mapping[str, Any],
    world: World,
    runs: int,
    device: torch.device,
    calls: int,
    obs: ObsKind = "state",
    num_envs: int = 1,
    profile: bool = True,
    graphs: bool = False,
) -> Measurement:
    """Measure one fleet.

    Args:
        agent_name: an agent of the registry.
        hyperparameters: all of them, resolved.
        world: the environments.
        runs: R.
        device: the learner's.
        calls: timed calls of each kind, and agent steps of the loop.
        obs: kind of observation.
        num_envs: N, of each run.
        profile: whether to say where the time goes.
        graphs: whether acting and updating are recorded as CUDA graphs.

    Raises:
        UserError: the agent cannot train so many runs as a fleet, or cannot be recorded.
    """
    _reset_peaks(device)
    fleet = Fleet(agent_name, hyperparameters, world, runs, device, obs, num_envs, graphs)
    try:
        fleet.prepare()
        update, act = timed(fleet.update, calls, device), timed(fleet.act, calls, device)
        rate, spread = fleet.loop_rate(calls)
        env_wait_share = fleet.loop.env_wait_share or 0.0
        profiles = {}
        if profile:
            for name, call in (("update", fleet.update), ("act", fleet.act)):
                profiles[name] = speed_profile.shares(call, PROFILED_CALLS, device)
        env = timed(lambda: _step(fleet), calls, torch.device("cpu"))
        peak_gpu_gb = _peak_gpu_gb(fleet, device)
    finally:
        fleet.collector.close()
    updates = fleet.updates_per_agent_step
    step_ms = act.ms + env.ms + updates * num_envs * update.ms
    return Measurement(
        agent=agent_name,
        hyperparameters=dict(hyperparameters),
        obs=obs,
        num_envs=num_envs,
        fleet=runs,
        world=world.facts,
        update=update,
        act=act,
        env=env,
        updates_per_agent_step=round(updates, 4),
        loop_agent_steps_per_s=round(rate, 3),
        loop_spread=round(spread, 3),
        parts_agent_steps_per_s=round(1000 * num_envs / step_ms, 3),
        env_wait_share=round(env_wait_share, 4),
        peak_rss_gb=_peak_rss_gb(),
        replay_gb=round(fleet.replay.full_bytes(fleet.spec.budget_agent_steps) / 1e9, 3),
        peak_gpu_gb=peak_gpu_gb,
        threads=torch.get_num_threads(),
        profile=profiles,
        cuda_graphs=graphs,
    )


def _step(fleet: Fleet) -> None:
    """The environments alone; what they give is left out of the replay."""
    fleet.collector.send(np.zeros((fleet.runs, fleet.spec.num_envs, fleet.spec.action_size), np.float32))
    fleet.collector.receive()


def _peak_gpu_gb(fleet: Fleet, device: torch.device) -> float | None:
    """Peak GPU memory in GB that a run to its budget will have; None on a CPU.

    The replay is small here, and doubles as it grows: the largest moment is that of the last doubling, when the tensors
    of half the size are copied into the full ones.
    """
    if device.type != "cuda":
        return None
    learner = torch.cuda.max_memory_allocated(device) - fleet.replay.allocated_bytes
    return round((learner + 1.5 * fleet.replay.full_bytes(fleet.spec.budget_agent_steps)) / 1e9, 3)


def _reset_peaks(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the process so far


def _peak_rss_gb() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3)
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return round(int(found[1]) * 1024 / 1e9, 3) if found else 0.0
