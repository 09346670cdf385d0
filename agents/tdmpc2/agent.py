"""TD-MPC2 (Hansen, Su and Wang, ICLR 2024), for one task or several, from state observations or images.

Shapes: R runs, N environments, B batch, H horizon, O observation, A action, L latent, K Q-functions, V bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.distributions import SymlogScalar, TwoHot, gaussian_log_prob, squash_log_det
from agents.mppi import warm_start
from agents.nn import clip_grad_norms, load_module_states, load_optimizer_states, module_state, optimizer_state
from agents.noise import Noise
from agents.precision import Products, in_own_precision
from agents.protocol import AgentSpec, Batch, ReplaySpec
from agents.tdmpc2.hyperparameters import Hyperparameters as TDMPC2Hyperparameters
from agents.tdmpc2.padding import parameter_names
from agents.tdmpc2.planner import Planner
from agents.tdmpc2.scale import RunningScale
from agents.tdmpc2.tasks import TaskContext
from agents.tdmpc2.world_model import WorldModel
from bench.errors import UserError

POLICY_ADAM_EPS = 1e-5


class TDMPC2:
    """MPPI planning in the latent space of a decoder-free world model, with a policy prior and a terminal value.

    Args:
        spec: sizes of the environments.
        hyperparameters: see `Hyperparameters`.
        seeds: the seed of each run.
        device: where to compute.

    Raises:
        UserError: a horizon longer than an episode, or a seed phase that ends before the first episode does; several
            tasks from images; runs that cannot be padded to one size; a precision that the device lacks.
    """

    Hyperparameters: ClassVar[type[TDMPC2Hyperparameters]] = TDMPC2Hyperparameters
    obs_kinds: ClassVar[tuple[str, ...]] = ("state", "rgb")
    max_fleet: ClassVar[int | None] = None
    multitask: ClassVar[bool] = True
    pads: ClassVar[bool] = True

    def __init__(
        self, spec: AgentSpec, hyperparameters: TDMPC2Hyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        self.spec = spec
        self.hp = hp = hyperparameters
        self.runs, self.action_size, self.device = len(seeds), spec.action_size, device
        if spec.obs_kind not in self.obs_kinds:
            raise UserError(f"tdmpc2 learns from {', '.join(self.obs_kinds)} observations, not from {spec.obs_kind}")
        if spec.tasks and spec.obs_kind == "rgb":
            raise UserError("tdmpc2 learns several tasks from state observations only, not from rgb")
        if hp.horizon > spec.episode_agent_steps:
            raise UserError(
                f"horizon {hp.horizon} is longer than an episode ({spec.episode_agent_steps} agent steps): shorten it"
            )
        self.seed_phase = hp.seed_phase(spec.num_envs, spec.episode_agent_steps)
        # The authors act at random once more after the seed phase; the burst of updates follows that action.
        self.seed_agent_steps = self.seed_phase + 1
        self.replay = ReplaySpec(hp.batch_size, hp.horizon + 1, hp.buffer_size, "episode", finished_episodes_only=True)

        self.gamma = hp.discount(spec.episode_agent_steps)
        self.model = WorldModel(spec, hp, seeds, device)
        self.products = Products(hp.precision, device, [self.model])
        self.scalars: TwoHot | SymlogScalar
        self.scalar_loss: Callable[[Tensor, Tensor], Tensor]
        if hp.regression == "discrete":
            self.scalars = two_hot = TwoHot(hp.num_bins, hp.vmin, hp.vmax, device)
            self.scalar_loss = two_hot.cross_entropy
            self.reward_range = two_hot.range
        else:
            self.scalars = number = SymlogScalar()
            self.scalar_loss = number.squared_error
        self.planner = Planner(self.model, self.scalars, hp, self.gamma, spec.action_size)
        self.scale = RunningScale(self.runs, hp.tau, device)
        self.rho = hp.rho ** torch.arange(hp.horizon + 1, device=device)  # (H+1,)
        own_actions = [own.action for own in spec.sizes]
        self.noise = {s: Noise(seeds, s, device, own_actions) for s in ("learn", "explore", "evaluate")}
        # Means of the last plans, (R, H, N, A); evaluation has a memory of its own, and any number of environments.
        self.plan_means = {
            stream: torch.zeros(self.runs, hp.horizon, spec.num_envs, spec.action_size, device=device)
            for stream in ("explore", "evaluate")
        }

        model = self.model
        others = [*model.dynamics.parameters(), *model.reward_head.parameters(), *model.online_q.parameters()]
        for part in (model.termination_head, model.tasks):
            others += [] if part is None else part.parameters()
        self.model_parameters = [*model.encoder.parameters(), *others]
        self.policy_parameters = list(model.policy_head.parameters())
        groups: list[dict[str, Any]] = [
            {"params": list(model.encoder.parameters()), "lr": hp.lr * hp.enc_lr_scale},
            {"params": others},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=hp.lr, fused=True)
        self.policy_optimizer = torch.optim.Adam(self.policy_parameters, lr=hp.lr, eps=POLICY_ADAM_EPS, fused=True)

    # Acting

    @torch.no_grad()
    @in_own_precision
    def act(self, obs: Tensor, first: Tensor, explore: bool, task: Tensor | None = None) -> Tensor:
        """Plan an action for each environment, or take the policy's where `mpc` is off.

        A run whose parameters have diverged gives NaN actions; the others are not touched by it.

        Args:
            obs: (R, N, *obs_shape).
            first: (R, N) bool; there the plan starts from zero instead of the previous plan.
            explore: whether to add exploration noise.
            task: (R, N) int64, the number of each environment's task; of a multi-task agent only.

        Returns:
            (R, N, A) in [-1, 1].
        """
        stream = "explore" if explore else "evaluate"
        tasks = self.model.context(task)
        if self.hp.mpc:
            start = warm_start(self.plan_means[stream], first, self.hp.horizon)
            action, mean = self.planner.plan(obs, start, self.noise[stream], explore, tasks)
            if self.plan_means[stream].shape == mean.shape:
                self.plan_means[stream].copy_(mean)  # in place, where a recorded call looks for it
            else:
                self.plan_means[stream] = mean
            return action
        z = self.model.encode(obs, self.noise[stream], tasks)
        if explore:
            return self.model.sample_action(z, self.noise[stream], tasks)[0]
        return self.model.policy(z, tasks)[0].tanh()

    # Learning

    def updates_due(self, before: int, after: int) -> int:
        """Updates owed between two counts of agent steps.

        After `seed_agent_steps` (one more than the seed phase) comes a burst of as many updates as the seed phase had
        agent steps; each further agent step owes one.
        """
        return self._updates_by(after) - self._updates_by(before)

    def _updates_by(self, agent_steps: int) -> int:
        return agent_steps - 1 if agent_steps > self.seed_phase else 0

    @in_own_precision
    def update(self, batch: Batch) -> Mapping[str, Tensor]:
        """One step of the world model, the policy and the target Q-functions of every run."""
        hp, model, noise = self.hp, self.model, self.noise["learn"]
        rho = self.rho[: hp.horizon] / hp.horizon  # (H,)
        tasks = model.context(batch.task)  # (R, B)
        over_time = None if tasks is None else tasks.unsqueeze(1)  # (R, 1, B)

        # Targets
        with torch.no_grad():
            next_z = model.encode(batch.obs[:, 1:], noise, over_time)  # (R, H, B, L)
            td_target = self.td_target(next_z, batch.reward, batch.terminated, over_time)  # (R, H, B)

        # Latent rollout
        latents = [model.encode(batch.obs[:, 0], noise, tasks)]
        for t in range(hp.horizon):
            latents.append(model.next(latents[-1], batch.action[:, t], tasks))
        zs = torch.stack(latents, 1)  # (R, H+1, B, L)

        # Losses, each (R,)
        consistency = (zs[:, 1:] - next_z).square().mean((2, 3)) @ rho
        reward_logits = model.reward(zs[:, :-1], batch.action, over_time)  # (R, H, B, V)
        reward = self.scalar_loss(reward_logits, batch.reward).mean(2) @ rho
        keep = model.dropout_mask(noise, hp.num_q, zs[:, :-1])
        q_logits = model.q(zs[:, :-1], batch.action, over_time, keep)  # (R, K, H, B, V)
        value = self.scalar_loss(q_logits, td_target[:, None]).mean((1, 3)) @ rho
        total = hp.consistency_coef * consistency + hp.reward_coef * reward + hp.value_coef * value
        losses = {"consistency": consistency, "reward": reward, "value": value}
        ends: dict[str, Tensor] = {}
        if hp.episodic:
            ended = model.termination(zs[:, 1:], over_time)  # (R, H, B) logits, of the predicted next latent state
            losses["termination"] = F.binary_cross_entropy_with_logits(ended, batch.terminated, reduction="none").mean(
                (1, 2)
            )
            total = total + hp.termination_coef * losses["termination"]
            ends = _termination_metrics(ended[:, -1].detach(), batch.terminated[:, -1])

        # World model step
        total.sum().backward()
        grad_norm = clip_grad_norms(self.model_parameters, hp.grad_clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        policy_metrics = self.update_policy(zs.detach(), batch.task)
        model.update_target(hp.tau)
        return {
            **{f"{name}_loss": loss.detach() for name, loss in losses.items()},
            "total_loss": total.detach(),
            **ends,
            "grad_norm": grad_norm,
            **policy_metrics,
        }

    @torch.no_grad()
    def td_target(self, next_z: Tensor, reward: Tensor, terminated: Tensor, tasks: TaskContext | None = None) -> Tensor:
        """r + gamma (1 - terminated) min over two target Q-functions, one pair for each run; all (R, H, B)."""
        noise = self.noise["learn"]
        gamma = self.gamma if tasks is None else tasks.discount
        action = self.model.sample_action(next_z, noise, tasks)[0]
        heads = noise.choose(2, self.hp.num_q)
        keep = self.model.dropout_mask(noise, 2, next_z) if self.hp.lasting_dropout else None
        q = self.model.q_heads(next_z, action, heads, tasks, target=True, keep=keep)  # (R, 2, H, B, V)
        return reward + gamma * (1 - terminated) * self.scalars.decode(q).amin(1)

    def update_policy(self, zs: Tensor, task: Tensor | None = None) -> dict[str, Tensor]:
        """Maximise scaled Q and entropy along the latent rollout `zs` (R, H+1, B, L) of tasks (R, B).

        The task embeddings are left alone, as in the paper.
        """
        hp, noise = self.hp, self.noise["learn"]
        context = self.model.context(task)
        tasks = None if context is None else context.detach().unsqueeze(1)  # (R, 1, B)
        action, eps, log_std = self.model.sample_action(zs, noise, tasks)  # (R, H+1, B, A)
        heads = noise.choose(2, hp.num_q)
        keep = self.model.dropout_mask(noise, 2, zs)
        q = self.scalars.decode(self.model.q_heads(zs, action, heads, tasks, keep=keep)).mean(1)  # (R, H+1, B)
        self.scale.update(q[:, 0].detach())

        # The entropy in the loss is that of the Gaussian before tanh, times the size of the action; in the paper's
        # algorithm with tanh's correction, not scaled. (The paper has another constant, which has no gradient.)
        # What a run of a padded fleet lacks does not count. (In a model of several tasks it does, as with the authors:
        # a constant without a gradient.)
        counted = None if tasks is None or self.model.padding is None else tasks.action_mask
        log_prob = gaussian_log_prob(eps, log_std, counted)  # (R, H+1, B)
        action_size = self.action_size if tasks is None else tasks.action_size
        scaled_entropy = -action_size * log_prob
        if hp.squashed_entropy:
            scaled_entropy = scaled_entropy + squash_log_det(action, counted)
        objective = hp.entropy_coef * scaled_entropy + q / self.scale.value[:, None, None]
        loss = -objective.mean(2) @ (self.rho / (hp.horizon + 1))  # (R,)

        loss.sum().backward()
        grad_norm = clip_grad_norms(self.policy_parameters, hp.grad_clip_norm)
        self.policy_optimizer.step()
        self.policy_optimizer.zero_grad(set_to_none=True)
        return {
            "pi_loss": loss.detach(),
            "pi_grad_norm": grad_norm,
            "pi_entropy": (squash_log_det(action.detach(), counted) - log_prob.detach()).mean((1, 2)),
            "pi_scaled_entropy": scaled_entropy.detach().mean((1, 2)),
            "pi_scale": self.scale.value.clone(),
        }

    # What a recording of act and update has to know; see `agents.protocol.Capturable`

    def generators(self) -> list[torch.Generator]:
        """All that is drawn from."""
        return [generator for noise in self.noise.values() for generator in noise.generators]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """All that `update` steps."""
        return [self.optimizer, self.policy_optimizer]

    # State

    def start_from(self, checkpoint: Path, embedding: int | Literal["mean"] | None) -> None:
        """Begin to finetune a trained model; see the protocol and `agents.tdmpc2.finetune`."""
        from agents.tdmpc2 import finetune  # reads checkpoints as agents, and so needs this module

        finetune.start_from(self.model, finetune.read_parameters(checkpoint), embedding)

    def state_dict(self, run: int) -> dict[str, Any]:
        """Everything that run `run` needs to go on; see the protocol."""
        state = {
            "model": module_state(self.model, run, self.runs),
            "optimizer": optimizer_state(self.optimizer, run, self.runs),
            "policy_optimizer": optimizer_state(self.policy_optimizer, run, self.runs),
            "scale": self.scale.value[run].cpu().clone(),
            "plan_means": {stream: mean[run].cpu().clone() for stream, mean in self.plan_means.items()},
            "noise": {stream: noise.state(run) for stream, noise in self.noise.items()},
        }
        padding = self.model.padding
        return state if padding is None else padding.cut_state(state, run, self._optimized())

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take over one state for each run, in order."""
        if self.model.padding is not None:
            names = self._optimized()
            states = [self.model.padding.pad_state(state, run, names) for run, state in enumerate(states)]
        load_module_states(self.model, [state["model"] for state in states])
        load_optimizer_states(self.optimizer, [state["optimizer"] for state in states])
        load_optimizer_states(self.policy_optimizer, [state["policy_optimizer"] for state in states])
        self.scale.value = torch.stack([state["scale"] for state in states]).to(self.device)
        for stream in self.plan_means:
            means = [state["plan_means"][stream] for state in states]
            self.plan_means[stream] = torch.stack(means).to(self.device)
        for stream, noise in self.noise.items():
            noise.load([state["noise"][stream] for state in states])

    def _optimized(self) -> dict[str, list[str]]:
        """The names of the parameters of each optimiser."""
        optimizers = {"optimizer": self.optimizer, "policy_optimizer": self.policy_optimizer}
        return {key: parameter_names(self.model, optimizer) for key, optimizer in optimizers.items()}


def _termination_metrics(logits: Tensor, terminated: Tensor) -> dict[str, Tensor]:
    """How often episodes end in a batch and how well that is predicted (F1), from (R, B) each; gives (R,) each."""
    predicted = (logits > 0).to(terminated.dtype)
    right = (predicted * terminated).sum(1)
    f1 = 2 * right / (predicted.sum(1) + terminated.sum(1)).clamp(min=1)
    return {"termination_rate": terminated.mean(1), "termination_f1": f1}
