"""A small agent that learns from pictures, and a task of short episodes, for tests of the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from agents import entries
from agents.protocol import AgentSpec, Batch, ReplaySpec
from bench import tasks
from bench.seeding import derive_seed
from bench.tasks import Task

FEATURES = 4

TASK = Task(
    name="brief-balance",
    domain="dmcontrol",
    simulator_id="cartpole/balance",
    obs_size=5,
    action_size=1,
    action_repeat=2,
    episode_agent_steps=20,
    budget_env_steps=100,
    metric="return",
)


class Hyperparameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = 20
    frame_stack: int = 2
    lr: float = 0.01
    seed_agent_steps: int = 15


class PixelAgent:
    """Random convolutions under linear layers for the action and for the reward; the reward's are learned."""

    Hyperparameters: ClassVar = Hyperparameters
    obs_kinds: ClassVar = ("rgb",)
    max_fleet: ClassVar = None

    def __init__(self, spec: AgentSpec, hyperparameters: Hyperparameters, seeds: Sequence[int], device: torch.device):
        size, stack = hyperparameters.image_size, hyperparameters.frame_stack
        assert spec.obs_shape == (3 * stack, size, size)
        assert (spec.obs_kind, spec.frame_stack) == ("rgb", stack)
        self.replay = ReplaySpec(8, 2, 1000, "transition", False)
        self.seed_agent_steps, self.lr = hyperparameters.seed_agent_steps, hyperparameters.lr
        self.generators = [torch.Generator().manual_seed(derive_seed(seed, "init")) for seed in seeds]
        self.weights = [
            {
                "conv": torch.randn(FEATURES, 3 * stack, 4, 4, generator=generator) / 8,
                "action": torch.randn(spec.action_size, FEATURES, generator=generator),
                "reward": torch.zeros(FEATURES, requires_grad=True),
            }
            for generator in self.generators
        ]

    def features(self, run: int, obs: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, FEATURES)."""
        assert obs.dtype == torch.uint8
        return torch.tanh(F.conv2d(obs / 255 - 0.5, self.weights[run]["conv"], stride=4).mean((2, 3)))

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        # What was learned moves the action, so that an evaluation tells one state of the agent from another.
        actions = torch.stack(
            [
                torch.tanh(self.features(run, obs[run]) @ weights["action"].T + 100 * weights["reward"].sum())
                for run, weights in enumerate(self.weights)
            ]
        )
        if explore:
            noise = [torch.randn(actions.shape[1:], generator=generator) for generator in self.generators]
            actions = (actions + 0.3 * torch.stack(noise)).clamp(-1, 1)
        return actions

    def updates_due(self, before: int, after: int) -> int:
        return max(0, after - self.seed_agent_steps) - max(0, before - self.seed_agent_steps)

    def update(self, batch: Batch) -> Mapping[str, Tensor]:
        losses = []
        for run, weights in enumerate(self.weights):
            loss = (self.features(run, batch.obs[run, 1]) @ weights["reward"] - batch.reward[run, 0]).square().mean()
            (gradient,) = torch.autograd.grad(loss, weights["reward"])
            with torch.no_grad():
                weights["reward"] -= self.lr * gradient
            losses.append(loss.detach())
        return {"loss": torch.stack(losses)}

    def state_dict(self, run: int) -> dict[str, Any]:
        weights = {name: weight.detach() for name, weight in self.weights[run].items()}
        return {"weights": weights, "generator": self.generators[run].get_state()}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        for run, state in enumerate(states):
            self.weights[run] = {name: weight.clone() for name, weight in state["weights"].items()}
            self.weights[run]["reward"].requires_grad_()
            self.generators[run].set_state(state["generator"])


def install(site: Path) -> None:
    """Make `site`, put on the import path, a place where the agent is installed as `pixel`, and its task."""
    about = site / "pixel_agent-0.1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pixel-agent\nVersion: 0.1.0\n")
    (about / "entry_points.txt").write_text(
        "[tdmpc2_bench.agents]\npixel = pixel_agent:PixelAgent\n[tdmpc2_bench.tasks]\nbrief = pixel_agent:TASK\n"
    )


@contextlib.contextmanager
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The agent and its task, known to this process from now on."""
    install(site)
    monkeypatch.syspath_prepend(site)
    caches = (entries.installed, tasks._table, tasks._sets)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()
