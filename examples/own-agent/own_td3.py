"""TD3 (Fujimoto et al. 2018, arXiv 1802.09477) as an agent of one's own: a whole agent in one file.

Shapes: R runs, N environments, B batch, O observation, A action. Parameters have the run axis first, so R runs train by
the same matrix products as one; `max_fleet = 1` and parameters without that axis would do as well.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from agents.nn import Linear, ema_update, load_module_states, load_optimizer_states, module_state, optimizer_state
from agents.noise import Noise
from agents.protocol import AgentSpec, Batch, ReplaySpec
from bench.seeding import derive_seed


class Hyperparameters(BaseModel):
    """Every number that decides a result. The defaults are the paper's (table 3), but for the random phase."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch_size: int = Field(default=256, ge=1)
    """Transitions in a batch, for each run."""
    replay_capacity: int = Field(default=1_000_000, ge=1)
    """Transitions kept, for each run."""
    seed_agent_steps: int = Field(default=5000, ge=0)
    """Uniformly random agent steps before the first update."""
    hidden_dim: int = Field(default=256, ge=1)
    """Width of the two hidden layers."""
    lr: float = Field(default=3e-4, gt=0)
    """Adam's learning rate."""
    discount: float = Field(default=0.99, ge=0, le=1)
    """Discount for each agent step."""
    tau: float = Field(default=0.005, gt=0, le=1)
    """Step of the targets towards the networks."""
    policy_every: int = Field(default=2, ge=1)
    """Updates of the critics for each one of the actor and the targets."""
    explore_std: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise on actions in training."""
    target_std: float = Field(default=0.2, ge=0)
    """Standard deviation of the noise on the target policy's actions."""
    target_clip: float = Field(default=0.5, gt=0)
    """Largest noise on them."""


def mlp(runs: int, inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """R networks with two hidden layers, `(R, M, inputs) -> (R, M, outputs)`."""
    sizes = Linear(runs, inputs, hidden), nn.ReLU(), Linear(runs, hidden, hidden), nn.ReLU()
    return nn.Sequential(*sizes, Linear(runs, hidden, outputs))


@torch.no_grad()
def initialise(network: nn.Module, member: int, generator: torch.Generator) -> None:
    """Uniform within 1 / sqrt(inputs), PyTorch's own, from the run's seed: a run starts the same in any fleet."""
    for layer in network.modules():
        if isinstance(layer, Linear):
            bound = layer.weight.shape[1] ** -0.5
            for parameter in (layer.weight, layer.bias):
                parameter[member] = (torch.rand(parameter.shape[1:], generator=generator) * 2 - 1) * bound


class TD3:
    """Twin delayed deep deterministic policy gradient."""

    Hyperparameters: ClassVar = Hyperparameters
    obs_kinds: ClassVar = ("state",)
    max_fleet: ClassVar = None

    def __init__(
        self, spec: AgentSpec, hyperparameters: Hyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        self.hp = hp = hyperparameters
        self.runs = runs = len(seeds)
        self.device = device
        self.seed_agent_steps = hp.seed_agent_steps
        self.replay = ReplaySpec(hp.batch_size, 2, hp.replay_capacity, "transition", finished_episodes_only=False)
        self.updates = 0

        obs_size, action_size = spec.obs_shape[0], spec.action_size
        self.actor = mlp(runs, obs_size, hp.hidden_dim, action_size)
        # Two critics a run, next to each other on the first axis.
        self.critics = mlp(2 * runs, obs_size + action_size, hp.hidden_dim, 1)
        for run, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(derive_seed(seed, "init"))
            initialise(self.actor, run, generator)
            initialise(self.critics, 2 * run, generator)
            initialise(self.critics, 2 * run + 1, generator)
        self.actor.to(device)
        self.critics.to(device)
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=hp.lr)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=hp.lr)
        # A stream of noise for each use: evaluation draws none, so training is the same with and without it.
        self.explore_noise = Noise(seeds, "explore", device)
        self.learn_noise = Noise(seeds, "learn", device)
        self.actor_loss = torch.zeros(runs, device=device)

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """(R, N, O) -> (R, N, A): the policy's action, with noise where it explores."""
        action = self.actor(obs).tanh()
        if explore:
            action = action + self.hp.explore_std * self.explore_noise.normal(*action.shape[1:])
        return action.clamp(-1, 1)

    def updates_due(self, before: int, after: int) -> int:
        """One update for each agent step that was not random."""
        return max(0, after - self.seed_agent_steps) - max(0, before - self.seed_agent_steps)

    def q(self, critics: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
        """(R, B, O), (R, B, A) -> (R, 2, B)."""
        x = torch.cat([obs, action], -1).repeat_interleave(2, dim=0)
        return critics(x).view(self.runs, 2, -1)

    @torch.no_grad()
    def td_target(self, next_obs: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """r + discount * min Q_target(s', pi_target(s') + noise); only r where the episode terminated. (R, B)."""
        action = self.target_actor(next_obs).tanh()
        noise = self.hp.target_std * self.learn_noise.normal(*action.shape[1:])
        action = (action + noise.clamp(-self.hp.target_clip, self.hp.target_clip)).clamp(-1, 1)
        value = self.q(self.target_critics, next_obs, action).amin(1)
        return reward + (1 - terminated) * self.hp.discount * value

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics, and every `policy_every` updates one of the actor and the targets."""
        obs, next_obs = batch.obs.unbind(1)  # (R, B, O)
        target = self.td_target(next_obs, batch.reward[:, 0], batch.terminated[:, 0])
        q = self.q(self.critics, obs, batch.action[:, 0])
        critic_loss = (q - target[:, None]).square().mean(2).sum(1)  # (R,)
        self.critic_optimizer.zero_grad()
        critic_loss.sum().backward()  # losses of runs are summed: their gradients never mix
        self.critic_optimizer.step()

        self.updates += 1
        if self.updates % self.hp.policy_every == 0:
            actor_loss = -self.q(self.critics, obs, self.actor(obs).tanh())[:, 0].mean(1)
            self.actor_optimizer.zero_grad()
            actor_loss.sum().backward(inputs=list(self.actor.parameters()))
            self.actor_optimizer.step()
            self.actor_loss = actor_loss.detach()
            ema_update(self.target_actor.parameters(), self.actor.parameters(), self.hp.tau)
            ema_update(self.target_critics.parameters(), self.critics.parameters(), self.hp.tau)
        return {"critic_loss": critic_loss.detach(), "actor_loss": self.actor_loss, "q": q.detach().mean((1, 2))}

    MODULES: ClassVar = ("actor", "critics", "target_actor", "target_critics")
    OPTIMIZERS: ClassVar = ("actor_optimizer", "critic_optimizer")
    NOISES: ClassVar = ("explore_noise", "learn_noise")

    def state_dict(self, run: int) -> dict[str, Any]:
        """All that one run needs to go on, alone or in another fleet."""
        return {
            **{name: module_state(getattr(self, name), run, self.runs) for name in self.MODULES},
            **{name: optimizer_state(getattr(self, name), run, self.runs) for name in self.OPTIMIZERS},
            **{name: getattr(self, name).state(run) for name in self.NOISES},
            "actor_loss": self.actor_loss[run].cpu(),
            "updates": self.updates,
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order."""
        for name in self.MODULES:
            load_module_states(getattr(self, name), [state[name] for state in states])
        for name in self.OPTIMIZERS:
            load_optimizer_states(getattr(self, name), [state[name] for state in states])
        for name in self.NOISES:
            getattr(self, name).load([state[name] for state in states])
        self.actor_loss = torch.stack([state["actor_loss"] for state in states]).to(self.device)
        self.updates = states[0]["updates"]
