"""A made-up world for checking agents, and ways to look at what they do: no simulator, a few seconds on a CPU."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.entries import AgentEntry
from agents.protocol import Agent, Batch, Observing
from bench import agent_spec
from bench.replay import Replay
from bench.tasks import Task

CPU = torch.device("cpu")
FLEET = 3
BATCHES = 6
EPISODES = 3
UPDATES = 3
"""Updates between two looks at an agent."""
WORLD = Task(
    name="made-up",
    domain="made-up",
    simulator_id="made:up",
    obs_size=5,
    action_size=2,
    action_repeat=1,
    episode_agent_steps=30,
    budget_env_steps=100_000,
    metric="return",
)
"""The made-up world, as a row of the task table; no environment of it is ever made."""

EXACT = 0.0
"""Tolerance of the very same computation (see `difference`)."""


class Failed(Exception):
    """The agent breaks a rule; the message is one line that says which and how it shows."""


class Skipped(Exception):
    """A check that does not concern this agent, or cannot run here."""


class Probe:
    """Fleets of one agent, and random data for them.

    Args:
        entry: the agent.
        hyperparameters: all of them, resolved.
        obs_kind: one that the agent learns from.
    """

    def __init__(self, entry: AgentEntry, hyperparameters: Mapping[str, Any], obs_kind: str) -> None:
        self.entry = entry
        self.hyperparameters = entry.hyperparameters_model()(**hyperparameters)
        self.runs = FLEET if entry.max_fleet is None else min(FLEET, entry.max_fleet)
        self.spec = agent_spec.of_task(WORLD, obs_kind, hyperparameters)  # type: ignore[arg-type]  # one of its kinds
        # An episode has to hold a slice.
        length = self.agent([0]).replay.length
        if length > self.spec.episode_agent_steps:
            self.spec = replace(self.spec, episode_agent_steps=length)

    # Agents

    def agent(self, runs: Sequence[int] | None = None, num_envs: int = 1, device: torch.device = CPU) -> Agent:
        """A fresh fleet of some of the runs; run r has seed r + 1 in every fleet."""
        seeds = [run + 1 for run in (range(self.runs) if runs is None else runs)]
        agent: Agent = self.entry.load()(replace(self.spec, num_envs=num_envs), self.hyperparameters, seeds, device)
        return agent

    def prepared(self, runs: Sequence[int] | None = None) -> Agent:
        """A fresh fleet that has seen the data, as it would have in its seed phase."""
        agent = self.agent(runs)
        self.observe(agent, runs)
        return agent

    def trained(self, updates: int = 2) -> Agent:
        """A fleet of all runs after a few agent steps and updates."""
        agent = self.prepared()
        for number, batch in enumerate(self.batches[:updates]):
            self.act(agent, explore=True, seed=10 + number, is_first=number == 0)
            self.act(agent, explore=False, seed=20 + number, is_first=number == 0)
            agent.update(batch)
        return agent

    def observe(self, agent: Agent, runs: Sequence[int] | None = None) -> None:
        """Show an agent that follows its environments what they did."""
        if isinstance(agent, Observing):
            chosen = list(range(self.runs) if runs is None else runs)
            for step in self.history:
                agent.observe(*(value[chosen] for value in step))

    def act(
        self,
        agent: Agent,
        explore: bool,
        seed: int = 0,
        is_first: bool = True,
        num_envs: int = 1,
        runs: Sequence[int] | None = None,
    ) -> Tensor:
        """An action of a fleet of some of the runs at random observations, which depend on `seed` and the run alone."""
        chosen = list(range(self.runs) if runs is None else runs)
        first = torch.full((len(chosen), num_envs), is_first)
        return agent.act(self.obs(num_envs, seed)[chosen], first, explore).clone()

    def go_on(self, agent: Agent, runs: Sequence[int], fresh: bool = False) -> list[Any]:
        """Act and update alternately, on the slices of some runs, from the start of an episode or (not `fresh`) within
        one: what the agent says."""
        seen: list[Any] = []
        for number, batch in enumerate(self.batches[:UPDATES]):
            seen.append(self.act(agent, explore=True, seed=number, is_first=fresh and number == 0, runs=runs))
            seen.append(dict(agent.update(select(batch, runs))))
        return seen

    # Data

    def obs(self, num_envs: int, seed: int) -> Tensor:
        """Random observations (R, N, *obs_shape)."""
        rng = np.random.default_rng([seed, num_envs])
        return torch.from_numpy(self._random_obs(rng, self.runs, num_envs))

    def _random_obs(self, rng: np.random.Generator, *leading: int, before: np.ndarray | None = None) -> np.ndarray:
        """Observations of resets, or those that follow `before`: stacks of images lose the oldest for a new one."""
        if self.spec.obs_kind == "state":
            return rng.standard_normal((*leading, *self.spec.obs_shape)).astype(np.float32)
        picture = rng.integers(0, 256, (*leading, 3, *self.spec.obs_shape[1:]), dtype=np.uint8)
        if before is None:
            return np.tile(picture, (1,) * len(leading) + (self.spec.frame_stack, 1, 1))
        return np.concatenate([before[:, :, 3:], picture], axis=2)

    @cached_property
    def history(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What the environments did, step by step: (obs, reward, terminated, truncated), each (R, 1, …)."""
        return [(step[0], step[2], step[3], step[4]) for step in self._steps]

    @cached_property
    def _steps(self) -> list[tuple[Tensor, ...]]:
        """(obs, action, reward, terminated, truncated, next obs, reset obs) of a few random episodes."""
        rng = np.random.default_rng(0)
        steps: list[tuple[Tensor, ...]] = []
        shape = (self.runs, 1)
        obs = self._random_obs(rng, *shape)
        for episode in range(EPISODES):
            length = self.spec.episode_agent_steps
            for number in range(length):
                last = number == length - 1
                after, reset = self._random_obs(rng, *shape, before=obs), self._random_obs(rng, *shape)
                # The first episode terminates, the others reach the time limit.
                steps.append(
                    (
                        torch.from_numpy(obs),
                        torch.from_numpy(rng.uniform(-1, 1, (*shape, self.spec.action_size)).astype(np.float32)),
                        torch.from_numpy(rng.standard_normal(shape).astype(np.float32)),
                        torch.full(shape, last and episode == 0),
                        torch.full(shape, last and episode > 0),
                        torch.from_numpy(after),
                        torch.from_numpy(reset),
                    )
                )
                obs = reset if last else after
        return steps

    @cached_property
    def batches(self) -> list[Batch]:
        """Batches for all runs, drawn from a replay of the random episodes as the agent wants them drawn."""
        seeds = [run + 1 for run in range(self.runs)]
        replay = Replay.of_agent(self.agent().replay, self.spec, seeds, CPU)
        replay.begin(self._steps[0][0].numpy())
        for _, action, reward, terminated, truncated, after, reset in self._steps:
            replay.add(*(value.numpy() for value in (after, action, reward, terminated, truncated)))
            replay.pop_finished()
            ended = (terminated | truncated).numpy()
            if ended.any():
                replay.begin(reset.numpy(), ended)
        return [replay.sample() for _ in range(BATCHES)]

    def poisoned(self, batch: Batch, run: int) -> Batch:
        """A batch in which one run's rewards are not a number."""
        reward = batch.reward.clone()
        reward[run] = torch.nan
        return replace(batch, reward=reward)

    def on(self, batch: Batch, device: torch.device) -> Batch:
        """A batch on another device."""
        values = {key: value.to(device) for key, value in vars(batch).items() if isinstance(value, Tensor)}
        return replace(batch, **values)

    def through_a_file(self, states: Sequence[Mapping[str, Any]]) -> list[Any]:
        """States as a checkpoint would give them back."""
        file = io.BytesIO()
        torch.save(list(states), file)
        file.seek(0)
        try:
            loaded: list[Any] = torch.load(file, weights_only=True)
        except Exception as error:
            raise Failed(f"state_dict cannot be loaded with weights_only=True: {str(error).splitlines()[0]}") from error
        return loaded


def select(batch: Batch, runs: Sequence[int]) -> Batch:
    """The part of a batch that belongs to some runs."""
    values = {key: value[list(runs)] for key, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **values)


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The innermost values of nested dicts, lists and tuples, each with its place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{where}[{number}]")
    else:
        yield where, value


def difference(left: Any, right: Any, tolerance: float) -> str | None:
    """The first place where two nested values differ, None if nowhere.

    Args:
        tolerance: of tensors, relative to their largest value or to 1; 0 asks for equality, where NaN equals NaN.
    """
    ours, theirs = dict(leaves(left)), dict(leaves(right))
    for where in (*ours, *theirs):
        if where not in ours or where not in theirs:
            return where
        a, b = ours[where], theirs[where]
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            if a != b:
                return where
        elif a.shape != b.shape or a.dtype != b.dtype or not _near(a, b, tolerance):
            return where
    return None


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if not a.is_floating_point() or tolerance == 0:
        return bool(torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan()))
    return bool(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(a.abs().max()) if a.numel() else 0))
    )


def trained_parameters(agent: Agent) -> dict[str, nn.Parameter]:
    """The parameters that the agent's optimisers hold, by their place in its modules where they have one."""
    optimisers = [
        (attribute, value) for attribute, value in _attributes(agent) if isinstance(value, torch.optim.Optimizer)
    ]
    names = {
        id(parameter): f"{attribute}.{name}"
        for attribute, value in _attributes(agent)
        if isinstance(value, nn.Module)
        for name, parameter in value.named_parameters()
    }
    found = {}
    for attribute, optimiser in optimisers:
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for number, parameter in enumerate(parameters):
            found[names.get(id(parameter), f"{attribute}'s parameter {number}")] = parameter
    return found


def _attributes(agent: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object, also those in lists and dicts, and those of its plain parts one level down."""
    for attribute, value in leaves(vars(agent)):
        yield attribute, value
        if hasattr(value, "__dict__") and not isinstance(value, Tensor | nn.Module | torch.optim.Optimizer | type):
            yield from leaves(vars(value), attribute)


def unmoved(before: Tensor, after: Tensor, runs: int) -> list[int]:
    """The runs whose part of a parameter is still the same; the first axis holds the runs where it can."""
    parts = runs if before.dim() and before.shape[0] % runs == 0 else 1
    pairs = zip(before.chunk(parts), after.detach().chunk(parts), strict=True)
    return [run for run, (old, new) in enumerate(pairs) if torch.equal(old, new)]
