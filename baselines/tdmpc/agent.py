"""TD-MPC (Hansen, Wang and Su, ICML 2022, arXiv 2203.04955), R runs in lockstep, from state vectors or images.

Networks, constants, schedules and the order of updates are those of nicklashansen/tdmpc at f4d85ec.

Kept, because it shapes the published results:
- The action is that of an elite drawn by its weight, in evaluation too.
- Learning comes in blocks: after each episode as many updates as it had agent steps, and a burst of `seed_agent_steps`
  after the first episode that is planned (with a model that has learned nothing yet).
- The planning horizon follows the agent steps at which an episode began; the floor of the plan's standard deviation
  that of the last update, which counts on through the burst and is set back after it. Training rolls out the whole
  horizon from the start.
- The TD target uses the online encoder and policy, the consistency target the slow encoder. The policy's noise is
  0.05 everywhere, whatever the schedule of the plan.
- The policy's loss has no importance weights and is no mean over time; the model's loss has, and its gradient is
  divided by the horizon.

Mended:
- Actions with noise are cut to [-1, 1], in the environment and in replay; the authors store them as they fall.
- True terminations end the TD target. The authors have no such thing; planning looks beyond them here too.
- Slices reach the last transition of an episode; the authors' stop one short of it.
- Evaluation has noise and warm-start plans of its own.

Otherwise:
- Draws from replay are always with replacement; the authors' are without once the buffer is full.
- Environments, action repeat and budget are the task table's (see `Hyperparameters`).

Shapes: R runs, N environments, B batch, H horizon, A action, L latent, Q = 2 Q-functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.augmentation import random_shift
from agents.mppi import warm_start
from agents.nn import (
    clip_grad_norms,
    load_module_states,
    load_optimizer_states,
    lockstep_count,
    module_state,
    optimizer_state,
)
from agents.noise import Noise
from agents.protocol import AgentSpec, Batch, ReplaySpec
from baselines.tdmpc.hyperparameters import SHIFT_FRACTION
from baselines.tdmpc.hyperparameters import Hyperparameters as TDMPCHyperparameters
from baselines.tdmpc.planner import Planner
from baselines.tdmpc.world_model import WorldModel
from bench.errors import UserError

LARGEST_LOSS = 1e4
"""Each loss of a slice, and its priority, are cut here."""
SMALLEST_PRIORITY = 1e-6


class TDMPC:
    """MPPI planning with a learned latent model, a policy and a terminal value, trained from prioritised replay.

    Args:
        spec: sizes of the environments.
        hyperparameters: see `Hyperparameters`.
        seeds: the seed of each run.
        device: where to compute.

    Raises:
        UserError: a horizon longer than an episode, or images too small for the convolutions.
    """

    Hyperparameters: ClassVar[type[TDMPCHyperparameters]] = TDMPCHyperparameters
    obs_kinds: ClassVar[tuple[str, ...]] = ("state", "rgb")
    max_fleet: ClassVar[int | None] = None

    def __init__(
        self, spec: AgentSpec, hyperparameters: TDMPCHyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        self.hp = hp = hyperparameters
        self.runs, self.action_size = len(seeds), spec.action_size
        if hp.horizon > spec.episode_agent_steps:
            raise UserError(
                f"horizon {hp.horizon} is longer than an episode ({spec.episode_agent_steps} agent steps): shorten it"
            )
        # Agent steps of one episode of every environment: learning and schedules go by these blocks.
        self.block = spec.num_envs * spec.episode_agent_steps
        self.seed_agent_steps = -(-hp.seed_agent_steps // self.block) * self.block
        self.replay = ReplaySpec(
            batch_size=hp.batch_size,
            length=hp.horizon + 1,
            capacity=hp.buffer_size,
            draw="prioritised",
            finished_episodes_only=True,
            priority_alpha=hp.priority_alpha,
            priority_beta=hp.priority_beta,
        )
        self.shift_pixels = hp.image_size // SHIFT_FRACTION if spec.obs_kind == "rgb" else 0
        self.updates = 0

        self.model = WorldModel(spec.obs_shape, spec.action_size, hp, seeds, device)
        self.planner = Planner(self.model, hp, spec.action_size)
        self.rho = hp.rho ** torch.arange(hp.horizon + 1, device=device)  # (H+1,)
        self.noise = {stream: Noise(seeds, stream, device) for stream in ("learn", "explore", "evaluate")}
        # Means of the last plans, (R, H, N, A), zero beyond the planning horizon; evaluation has a memory of its own.
        self.plan_means = {
            stream: torch.zeros(self.runs, hp.horizon, spec.num_envs, spec.action_size, device=device)
            for stream in ("explore", "evaluate")
        }
        self.model_parameters = self.model.model_parameters()
        self.policy_parameters = list(self.model.policy_head.parameters())
        self.optimizer = torch.optim.Adam(self.model_parameters, lr=hp.lr, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy_parameters, lr=hp.lr, fused=True)

    # Acting

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """Plan an action for each environment.

        A run whose parameters have diverged gives NaN actions; the others are not touched by it.
        """
        stream = "explore" if explore else "evaluate"
        start = warm_start(self.plan_means[stream], first, self.hp.horizon)
        horizon = self.hp.plan_horizon(self.episode_start)
        action, mean = self.planner.plan(obs, start[:, :horizon], self.std_floor, self.noise[stream], explore)
        self.plan_means[stream] = torch.cat([mean, torch.zeros_like(start[:, horizon:])], 1)
        return action

    # When to learn, and the schedules

    def updates_due(self, before: int, after: int) -> int:
        """Updates owed between two counts of agent steps: a block whenever an episode of every environment has ended.

        None in the seed phase; one more episode, then a burst of as many updates as the seed phase had agent steps;
        from then on as many as agent steps.
        """
        return self._updates_by(after) - self._updates_by(before)

    def _updates_by(self, agent_steps: int) -> int:
        blocks = agent_steps // self.block * self.block
        return blocks - self.block if blocks > self.seed_agent_steps else 0

    def go_to(self, agent_steps: int) -> None:
        """Be where the schedules are after so many agent steps: the planning horizon grows with them."""
        self.updates = self._updates_by(agent_steps)

    @property
    def episode_start(self) -> int:
        """Agent steps before the current episode, as far as the updates tell: the end of the seed phase until then."""
        return self.updates + self.block if self.updates >= self.seed_agent_steps else self.seed_agent_steps

    def schedule_position(self, update: int) -> int:
        """Agent steps that stand for update number `update`: those before its episode, counted on in its block."""
        return update + (self.block if update >= self.seed_agent_steps else self.seed_agent_steps)

    @property
    def std_floor(self) -> float:
        """Lower bound of the plan's standard deviation now."""
        return self.hp.std_floor(self.schedule_position(self.updates - 1) if self.updates else 0)

    # Learning

    def update(self, batch: Batch) -> Mapping[str, Tensor]:
        """One step of the model, the policy and, when it is due, the target; sets `batch.priority`.

        A batch without weights counts every slice alike.
        """
        hp, model = self.hp, self.model
        obs, next_obs = self.augment(batch.obs[:, 0]), self.augment(batch.obs[:, 1:])

        # Targets
        with torch.no_grad():
            next_z = model.target_encoder(next_obs)  # (R, H, B, L)
            td_target = self.td_target(model.encoder(next_obs), batch.reward, batch.terminated)  # (R, H, B)

        # Latent rollout
        latents = [model.encoder(obs)]
        for t in range(hp.horizon):
            latents.append(model.next(latents[-1], batch.action[:, t]))
        zs = torch.stack(latents, 1)  # (R, H+1, B, L)

        # Losses of each slice, (R, B)
        consistency = self.over_time((zs[:, 1:] - next_z).square().mean(3))
        reward = self.over_time((model.reward(zs[:, :-1], batch.action) - batch.reward).square())
        error = model.q(zs[:, :-1], batch.action) - td_target[:, None]  # (R, Q, H, B)
        value = self.over_time(error.square().sum(1))
        total = (
            hp.consistency_coef * consistency.clamp(max=LARGEST_LOSS)
            + hp.reward_coef * reward.clamp(max=LARGEST_LOSS)
            + hp.value_coef * value.clamp(max=LARGEST_LOSS)
        )
        loss = (total if batch.weight is None else batch.weight * total).mean(1)  # (R,)
        priority = self.over_time(error.detach().abs().sum(1))
        batch.priority = priority.clamp(max=LARGEST_LOSS) + SMALLEST_PRIORITY

        # Model, policy and target
        (loss.sum() / hp.horizon).backward()
        grad_norm = clip_grad_norms(self.model_parameters, hp.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        policy_metrics = self.update_policy(zs.detach())
        if self.schedule_position(self.updates) % hp.target_every == 0:
            model.update_target(hp.tau)
        self.updates += 1
        losses = {"consistency": consistency, "reward": reward, "value": value}
        return {
            **{f"{name}_loss": each.detach().mean(1) for name, each in losses.items()},
            "total_loss": loss.detach(),
            "grad_norm": grad_norm,
            "priority": batch.priority.mean(1),
            **policy_metrics,
        }

    def augment(self, obs: Tensor) -> Tensor:
        """Images moved at random, each by itself; state vectors as they are."""
        return random_shift(obs, self.shift_pixels, self.noise["learn"]) if self.shift_pixels else obs

    def over_time(self, losses: Tensor) -> Tensor:
        """sum over t of rho^t losses[t]; (R, T, B) -> (R, B)."""
        return (self.rho[: losses.shape[1], None] * losses).sum(1)

    @torch.no_grad()
    def td_target(self, next_z: Tensor, reward: Tensor, terminated: Tensor) -> Tensor:
        """r + gamma (1 - terminated) min of the target's Q for the policy's action in `next_z` (R, H, B, L)."""
        action = self.model.policy(next_z, self.noise["learn"].normal(*next_z.shape[1:-1], self.action_size))
        q = self.model.q(next_z, action, target=True).amin(1)  # (R, H, B)
        return reward + self.hp.discount * (1 - terminated) * q

    def update_policy(self, zs: Tensor) -> dict[str, Tensor]:
        """Maximise the smaller Q, of after the model's step, along the latent rollout `zs` (R, H+1, B, L)."""
        action = self.model.policy(zs, self.noise["learn"].normal(*zs.shape[1:-1], self.action_size))
        q = self.model.q(zs, action).amin(1)  # (R, H+1, B)
        loss = -self.over_time(q).mean(1)  # (R,)
        loss.sum().backward(inputs=self.policy_parameters)
        grad_norm = clip_grad_norms(self.policy_parameters, self.hp.grad_clip_norm)
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad(set_to_none=True)
        return {"pi_loss": loss.detach(), "pi_grad_norm": grad_norm}

    # State

    def state_dict(self, run: int) -> dict[str, Any]:
        """Everything that run `run` needs to go on; see the protocol."""
        return {
            "model": module_state(self.model, run, self.runs),
            "optimizer": optimizer_state(self.optimizer, run, self.runs),
            "policy_optimizer": optimizer_state(self.policy_optimizer, run, self.runs),
            "plan_means": {stream: mean[run].cpu().clone() for stream, mean in self.plan_means.items()},
            "noise": {stream: noise.state(run) for stream, noise in self.noise.items()},
            "updates": self.updates,
        }

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order.

        Raises:
            ValueError: as many states as runs are needed, and all after the same number of updates.
        """
        self.updates = lockstep_count(states, self.runs)
        load_module_states(self.model, [state["model"] for state in states])
        load_optimizer_states(self.optimizer, [state["optimizer"] for state in states])
        load_optimizer_states(self.policy_optimizer, [state["policy_optimizer"] for state in states])
        for stream, noise in self.noise.items():
            noise.load([state["noise"][stream] for state in states])
        for stream in self.plan_means:
            means = torch.stack([state["plan_means"][stream] for state in states])
            self.plan_means[stream] = means.to(self.rho.device)
