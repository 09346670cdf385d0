"""How far two ways to compute the same agent are apart on a device: a fleet and its runs alone, CUDA graphs and plain
calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agents.protocol import Agent
from agents.registry import get as get_agent
from bench import cuda_graphs
from bench.envs import ObsKind
from bench.speed import Fleet
from bench.speed_worlds import World

RUNS = 2
ROUNDS = cuda_graphs.WARM_UP_CALLS + 3


def fleet_difference(
    agent: str, hyperparameters: Mapping[str, Any], world: World, device: torch.device, obs: ObsKind = "state"
) -> float | None:
    """The largest difference of a parameter, or an action, between a fleet of 2 and its runs alone after an update,
    over the largest of its kind; None for an agent that is no fleet, or has no `noise` streams.

    On a GPU a fleet draws its noise at once. Here it gets a generator for each run, and a run alone the same one.
    """
    if get_agent(agent).max_fleet == 1:
        return None
    fleet = _prepared(agent, hyperparameters, world, device, obs)
    if not isinstance(getattr(fleet.agent, "noise", None), dict):
        return None
    batch, (shown, first) = fleet.replay.sample(), _shown(fleet)
    states = [fleet.agent.state_dict(run) for run in range(RUNS)]
    _own_noise(fleet.agent, range(RUNS), device)
    together = fleet.agent.act(shown, first, explore=True)
    fleet.agent.update(batch)
    largest = 0.0
    for run in range(RUNS):
        alone = Fleet(agent, hyperparameters, world, 1, device, obs).agent
        alone.load_state_dict([states[run]])
        _own_noise(alone, [run], device)
        own = {
            name: value[run : run + 1] if isinstance(value, Tensor) else value for name, value in vars(batch).items()
        }
        action = alone.act(shown[run : run + 1], first[run : run + 1], explore=True)
        alone.update(type(batch)(**own))
        largest = max(largest, float((action[0] - together[run]).abs().max()))
        largest = max(largest, _of_parameters(fleet.agent.state_dict(run), alone.state_dict(0)))
    return largest


def graphs_difference(
    agent: str, hyperparameters: Mapping[str, Any], world: World, device: torch.device, obs: ObsKind = "state"
) -> tuple[float | None, float | None]:
    """The largest difference of a parameter, or an action, between a fleet of 2 that is recorded and replayed and a
    plain one over some rounds of act and update, as in `fleet_difference`; and that of two plain ones beside it, which
    on a GPU need not be 0. None without a GPU, or for an agent that cannot be recorded.
    """
    if device.type != "cuda" or not get_agent(agent).capturable:
        return None, None
    fleet = _prepared(agent, hyperparameters, world, device, obs)
    states = [fleet.agent.state_dict(run) for run in range(RUNS)]
    others = [Fleet(agent, hyperparameters, world, RUNS, device, obs, graphs=graphs).agent for graphs in (True, False)]
    agents: list[Agent] = [fleet.agent, *others]
    for other in agents:
        other.load_state_dict(states)
    largest = [0.0, 0.0]
    for _ in range(ROUNDS):
        batch, (shown, first) = fleet.replay.sample(), _shown(fleet)
        plain, *actions = [other.act(shown, first, explore=True).clone() for other in agents]
        for other in agents:
            other.update(batch)
        largest = [max(one, float((action - plain).abs().max())) for one, action in zip(largest, actions, strict=True)]
    for run in range(RUNS):
        plain_state = fleet.agent.state_dict(run)
        apart = [_of_parameters(other.state_dict(run), plain_state) for other in others]
        largest = [max(pair) for pair in zip(largest, apart, strict=True)]
    return largest[0], largest[1]


def _prepared(
    agent: str, hyperparameters: Mapping[str, Any], world: World, device: torch.device, obs: ObsKind
) -> Fleet:
    fleet = Fleet(agent, hyperparameters, world, RUNS, device, obs)
    fleet.prepare()
    return fleet


def _shown(fleet: Fleet) -> tuple[Tensor, Tensor]:
    obs, first = fleet.collector.obs, fleet.collector.first
    return torch.from_numpy(obs).to(fleet.device), torch.from_numpy(first).to(fleet.device)


def _own_noise(agent: Any, runs: Sequence[int], device: torch.device) -> None:
    for stream in agent.noise.values():
        stream.generators = [torch.Generator(device=device).manual_seed(1000 + run) for run in runs]


def _of_parameters(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Over the largest of each tensor of the model."""
    pairs = zip(one["model"].values(), other["model"].values(), strict=True)
    apart = [(a - b).abs().max() / b.abs().max().clamp(min=1e-3) for a, b in pairs if a.is_floating_point()]
    return float(torch.stack(apart).max())
