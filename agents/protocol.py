"""The agent protocol: what every agent offers and the loop that drives it.

An agent trains R runs in lockstep (a fleet; R = 1 is the ordinary case), each with N environments. Every tensor has the
run axis first. The loop, for one fleet:

    agent = AgentClass(spec, hyperparameters, seeds=[1, 2, 3], device=device)
    agent_steps = 0                                     # of one run, over its N environments
    while agent_steps < spec.budget_agent_steps:
        if agent_steps < agent.seed_agent_steps:
            action = uniform(-1, 1)                     # (R, N, A)
        else:
            action = agent.act(obs, first, explore=True)
        obs, reward, terminated, truncated = environments.step(action)
        agent.observe(...)                              # where it has that method
        replay.add(...)
        for _ in range(agent.updates_due(agent_steps, agent_steps + N)):
            batch = replay.sample()
            metrics = agent.update(batch)
            replay.set_priorities(batch)                # where draws are prioritised
        agent_steps += N

Evaluation calls `act(obs, first, explore=False)` with environments of its own; it uses a noise stream and a planner
memory of its own, so training is the same with and without it.

An agent of several tasks (`spec.tasks`) learns from batches that say which task each slice is from, and its `act` takes
one more argument, `task` (R, N) int64; see `agents.multitask`.

The runs of a fleet may be of different tasks whose sizes are equal. An agent whose class says `pads = True` also takes
runs of different sizes, each by itself what it would be alone: `spec.sizes` then has the sizes of each run. What a run
lacks to the largest is zero in observations and in actions, those that `act` returns included, and its state has the
run's own sizes. Where something else depends on the size of the action (TD-MPC2 plans longer from 20 dimensions on),
its Hyperparameters have a method `padding_class(action_size)`: only runs for which it is equal are put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import BaseModel
from torch import Tensor


@dataclass(frozen=True)
class TaskSpec:
    """What a multi-task agent needs to know of one of its tasks."""

    name: str
    obs_size: int
    """Its observations are padded with zeros at the end, to the largest of all tasks."""
    action_size: int
    """The environment takes so many of the first dimensions of an action."""
    episode_agent_steps: int


@dataclass(frozen=True)
class Sizes:
    """What one run of a padded fleet has alone."""

    obs: int
    """O, of its state observations."""
    action: int
    """A."""


@dataclass(frozen=True)
class AgentSpec:
    """What an agent needs to know of its environments, and nothing more."""

    obs_shape: tuple[int, ...]
    """(O,) for state vectors, (C, height, width) for stacked images."""
    obs_kind: Literal["state", "rgb"]
    action_size: int
    episode_agent_steps: int
    budget_agent_steps: int
    num_envs: int = 1
    """N, environments of each run."""
    tasks: tuple[TaskSpec, ...] = ()
    """Of a multi-task agent, in the order of their numbers; obs_shape and action_size are then those of the largest. An
    agent finetuned from one has its own task here, alone, and is not told the number."""
    frame_stack: int = 1
    """Pictures that make up one image observation, the oldest first; C is 3 x this."""
    sizes: tuple[Sizes, ...] = ()
    """Of a padded fleet, for each run in the order of the seeds; obs_shape and action_size are then the largest. Empty
    where all runs have the same."""


@dataclass(frozen=True)
class ReplaySpec:
    """How an agent wants its batches drawn."""

    batch_size: int
    """B, slices in a batch, for each run."""
    length: int
    """L, consecutive observations in a slice; L - 1 transitions. 2 gives plain (obs, action, reward, next obs)."""
    capacity: int
    """Transitions that a run keeps; the oldest go first."""
    draw: Literal["episode", "transition", "stream", "prioritised"]
    """`episode`: an episode uniformly, then a start within it; `transition`: every start equally likely; `stream`: the
    same, but slices run on from one episode of an environment into its next, and `Batch.first` says where;
    `prioritised`: a start in proportion to priority ** priority_alpha, from finished episodes."""
    finished_episodes_only: bool
    """Whether the episode in progress is left out until it ends."""
    priority_alpha: float = 0.6
    """Prioritised draws: how much the priorities count; 0 draws uniformly."""
    priority_beta: float = 0.4
    """Prioritised draws: how much of the bias `Batch.weight` takes back; 1 takes back all."""


@dataclass
class Batch:
    """Slices of replay, time before batch; `action[t]`, `reward[t]`, `terminated[t]` lead from obs[t] to obs[t+1]."""

    obs: Tensor  # (R, L, B, *obs_shape) float32, or uint8 for images
    action: Tensor  # (R, L-1, B, A) float32
    reward: Tensor  # (R, L-1, B) float32
    terminated: Tensor  # (R, L-1, B) float32: 1 where the environment ended by itself, 0 at a time limit
    first: Tensor | None = None
    """(R, L, B) bool, of streams only: obs[t] is the first of an episode. Where first[t+1], a reset led from obs[t] to
    obs[t+1]: action[t], reward[t] and terminated[t] are zero."""
    task: Tensor | None = None
    """(R, B) int64, of a multi-task agent only: the number of each slice's task."""
    weight: Tensor | None = None
    """(R, B) float32, of prioritised draws only: importance weights, the largest of each run 1."""
    start: Tensor | None = None
    """(R, B) int64 on the host, of prioritised draws only: which slices these are, for the replay."""
    priority: Tensor | None = None
    """(R, B), set by `update` where draws are prioritised: the priorities, above 0, of these slices from now on."""


class Agent(Protocol):
    """R independent runs of one agent, trained in lockstep."""

    Hyperparameters: ClassVar[type[BaseModel]]
    """A frozen model that forbids unknown keys. Where it has a classmethod `task_defaults(task, obs) -> dict`, that
    fills what the user did not set, by the row of the task table and the observation kind."""
    obs_kinds: ClassVar[tuple[str, ...]]
    max_fleet: ClassVar[int | None]
    """Most runs in one fleet; None: as many as memory holds; 1: the agent cannot be a fleet."""

    replay: ReplaySpec
    seed_agent_steps: int
    """Uniformly random agent steps of each run before `act` is asked."""

    def __init__(self, spec: AgentSpec, hyperparameters: Any, seeds: Sequence[int], device: torch.device) -> None: ...

    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """Choose actions.

        Args:
            obs: (R, N, *obs_shape), on the agent's device.
            first: (R, N) bool, true at the first step of an episode.
            explore: true in training; false in evaluation, where no exploration noise is added.

        Returns:
            (R, N, A) float32 in [-1, 1].
        """
        ...

    def updates_due(self, before: int, after: int) -> int:
        """Updates owed for going from `before` to `after` agent steps of a run (a seed phase may owe a burst)."""
        ...

    def update(self, batch: Batch) -> Mapping[str, Tensor]:
        """One gradient step of each run on its own slices. Returns metrics, each (R,), not yet brought to the host.

        An agent with prioritised draws also sets `batch.priority`.
        """
        ...

    def state_dict(self, run: int) -> dict[str, Any]:
        """All that run `run` needs to go on: parameters, optimisers, scalers, planner memory, random generators.

        Holds tensors, numbers, strings, lists and dicts only (it is loaded with `weights_only=True`), and stands alone:
        a fleet may be put together anew from the states of single runs.
        """
        ...

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order."""
        ...


@runtime_checkable
class Finetunable(Protocol):
    """An agent that can start from the parameters of a trained one: optional."""

    def start_from(self, checkpoint: Path, embedding: int | Literal["mean"] | None) -> None:
        """Take over parameters, before the first step; everything else (optimisers, scalers, noise) stays new.

        Args:
            checkpoint: a file of the same agent.
            embedding: of a checkpoint of several tasks: the row of its task embeddings that the own one starts as, or
                the mean of all.

        Raises:
            UserError: the file does not fit.
        """
        ...


@runtime_checkable
class Scheduled(Protocol):
    """An agent that costs more, or less, later in a run than at its start: optional, for measuring its speed."""

    def go_to(self, agent_steps: int) -> None:
        """Be where the schedules are after so many agent steps of a run, without having learned."""
        ...


@runtime_checkable
class Capturable(Protocol):
    """An agent whose `act` and `update` can be recorded as CUDA graphs and replayed (`bench.cuda_graphs`): optional.

    Whatever they change is a tensor that they change in place; they depend on nothing else that changes from call to
    call, such as counts and schedules held in Python; they never wait for the device, and draw from `generators` only.
    `load_state_dict` may put other tensors in place. Draws from replay are not prioritised.
    """

    def generators(self) -> Sequence[torch.Generator]:
        """Every random generator that they draw from."""
        ...

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Every optimiser that `update` steps."""
        ...


@runtime_checkable
class Observing(Protocol):
    """An agent that also follows its training environments in order, for running statistics: optional."""

    def observe(self, obs: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor) -> None:
        """Called once for each agent step, random ones included, before the updates that it owes.

        Args:
            obs: (R, N, *obs_shape) what was acted on, on the agent's device.
            reward: (R, N) float32 that the action earned.
            terminated: (R, N) bool, whether the environment ended by itself.
            truncated: (R, N) bool, whether it reached its time limit.
        """
        ...
