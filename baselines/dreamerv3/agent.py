"""DreamerV3 on the agent protocol, R runs in lockstep: generations 2023 (arXiv 2301.04104v1) and 2024 (Nature, 2025).

What differs from the authors' code, in both generations:
- float32 throughout (they: float16 with loss scaling, later bfloat16). Observations of a task are one vector.
- The train ratio counts agent steps; theirs counts the observations of resets too (0.2 % of DMControl's). A time limit
  is never taught as an end: theirs does so outside DMControl. Replay evicts whole episodes and keeps clipped actions,
  which the model would clip anyway. The first observation of an environment's whole stream is never learned from.
- Evaluation takes tanh of the policy's mean as all agents here do; theirs draws (`evaluate_with: sample`), and its
  published curves are returns of training episodes.
- One training environment unless a sweep says otherwise (`num_envs`); theirs has 4 in 2023 and 16 in 2024.
2024 besides:
- The recurrent state before a sequence is built up over `burn_in` observations, where theirs keeps the latents of every
  observation in replay and renews them: those would have to be in every checkpoint for a run to go on exactly.
- No queue that trains on new sequences first (0.2 % of theirs at this ratio); parameters act as soon as they are
  learned.
- Action repeat and train ratio are those of their DMControl setting of 2024 (size 12M, 512, repeat 2), not of the later
  one (size 1M, 1024, repeat 1).

Shapes: R runs, N environments, T time, B batch, A action, D deterministic state, S variables of C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

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
from baselines.dreamerv3.behaviour import Behaviour
from baselines.dreamerv3.hyperparameters import Hyperparameters as DreamerV3Hyperparameters
from baselines.dreamerv3.laprop import LaProp
from baselines.dreamerv3.layers import initialise
from baselines.dreamerv3.memory import Memory
from baselines.dreamerv3.rssm import State
from baselines.dreamerv3.world_model import WorldModel
from bench.errors import UserError
from bench.seeding import derive_seed

MODEL_GRAD_CLIP, BEHAVIOUR_GRAD_CLIP = 1000.0, 100.0
MODEL_ADAM_EPS, BEHAVIOUR_ADAM_EPS = 1e-8, 1e-5


class DreamerV3:
    """A recurrent world model with categorical latents, and a policy learned in its imagination (Hafner et al. 2023).

    Args:
        spec: sizes of the environments.
        hyperparameters: see `Hyperparameters`.
        seeds: the seed of each run.
        device: where to compute.

    Raises:
        UserError: replay is too small for what learning begins with.
    """

    Hyperparameters: ClassVar[type[DreamerV3Hyperparameters]] = DreamerV3Hyperparameters
    obs_kinds: ClassVar[tuple[str, ...]] = ("state", "rgb")
    max_fleet: ClassVar[int | None] = None

    def __init__(
        self, spec: AgentSpec, hyperparameters: DreamerV3Hyperparameters, seeds: Sequence[int], device: torch.device
    ) -> None:
        self.hp = hp = hyperparameters
        self.runs, self.num_envs, self.device = len(seeds), spec.num_envs, device
        prefill = hp.prefill_agent_steps(spec.num_envs)
        if prefill > hp.replay_capacity:
            raise UserError(
                f"replay_capacity {hp.replay_capacity} is less than the {prefill} transitions that learning begins "
                "with: raise it, or lower prefill_windows or batch_length"
            )
        self.seed_agent_steps = prefill if hp.random_prefill else 0
        self.replay = ReplaySpec(
            hp.batch_size, hp.slice_length, hp.replay_capacity, draw="stream", finished_episodes_only=False
        )
        self.updates = 0

        self.model = WorldModel(spec, hp, self.runs, device)
        self.behaviour = Behaviour(hp, self.runs, spec.action_size, device)
        generators = [torch.Generator().manual_seed(derive_seed("parameters", seed)) for seed in seeds]
        for network in (self.model, self.behaviour.actor, self.behaviour.critic):
            initialise(network, hp.generation, generators)
        self.behaviour.slow_critic.load_state_dict(self.behaviour.critic.state_dict())
        self.model.to(device)
        self.behaviour.to(device)

        self.noise = {stream: Noise(seeds, stream, device) for stream in ("learn", "explore", "evaluate")}
        # Evaluation remembers its own episodes, in any number of environments.
        sizes = (hp.deter, hp.stoch * hp.classes, spec.action_size)
        self.memory = {
            stream: Memory.blank(self.runs, spec.num_envs, sizes, device) for stream in ("explore", "evaluate")
        }
        self.parameters = {
            "model": list(self.model.parameters()),
            "actor": list(self.behaviour.actor.parameters()),
            "critic": list(self.behaviour.critic.parameters()),
        }
        self.optimizers = self._make_optimizers()

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        hp, parameters = self.hp, self.parameters
        rates = {"model": hp.model_lr, "actor": hp.actor_lr, "critic": hp.critic_lr}
        if hp.generation == 2024:
            groups = [{"params": parameters[name], "lr": lr} for name, lr in rates.items()]
            return {"joint": LaProp(groups, hp.model_lr, self.runs)}
        eps = {"model": MODEL_ADAM_EPS, "actor": BEHAVIOUR_ADAM_EPS, "critic": BEHAVIOUR_ADAM_EPS}
        return {
            name: torch.optim.Adam(parameters[name], lr=lr, eps=eps[name], fused=True) for name, lr in rates.items()
        }

    # Acting

    @torch.no_grad()
    def act(self, obs: Tensor, first: Tensor, explore: bool) -> Tensor:
        """Infer the state of each environment from the one before, and act on it; see the protocol.

        Training and evaluation each remember the states and actions of their own environments.
        """
        hp, stream = self.hp, "explore" if explore else "evaluate"
        noise, memory = self.noise[stream], self.memory[stream]
        num_envs = obs.shape[1]
        if memory.fresh.shape[1] != num_envs:
            # Other environments than last time: there is nothing to go on from.
            memory = memory.blank_for(num_envs)
        seen = self.model.rssm.observe(
            self.model.encoder(obs[:, None]),
            memory.action[:, None],
            (first | memory.fresh)[:, None],
            State(memory.deter, memory.stoch),
            noise.uniform(1, num_envs, hp.stoch),
        )
        state = State(seen.state.deter[:, 0], seen.state.stoch[:, 0])
        action, std = self.behaviour.actor(state.features)
        if explore or hp.evaluate_with == "sample":
            action = action + std * noise.normal(*action.shape[1:])
        action = action.clamp(-1, 1)
        self.memory[stream] = Memory(state.deter, state.stoch, action, torch.zeros_like(first))
        return action

    # Learning

    def updates_due(self, before: int, after: int) -> int:
        """Updates owed between two counts of agent steps, so that the train ratio holds exactly."""
        return self.hp.updates_by(after, self.num_envs) - self.hp.updates_by(before, self.num_envs)

    def update(self, batch: Batch) -> Mapping[str, Tensor]:
        """One step of the world model, the actor, the critic and the slow critic of every run."""
        metrics = self._update_in_turn(batch) if self.hp.generation == 2023 else self._update_jointly(batch)
        self.updates += 1
        return metrics

    def _update_in_turn(self, batch: Batch) -> dict[str, Tensor]:
        """2023: the model first; then actor and critic in the new model, from states inferred by the old one."""
        behaviour, noise = self.behaviour, self.noise["learn"]
        model_uniform = noise.uniform(self.hp.burn_in + self.hp.batch_length, self.hp.batch_size, self.hp.stoch)
        sequence = self.model.sequence(batch, model_uniform)
        observed = self.model.observe(sequence, model_uniform[:, self.hp.burn_in :])
        losses = self.model.losses(sequence, observed)
        norms = {"model_grad_norm": self._descend("model", torch.stack(list(losses.values())).sum(0), MODEL_GRAD_CLIP)}

        actor_loss, critic_loss, metrics = behaviour.learn_by_backprop(self.model, sequence, observed.state, noise)
        norms["actor_grad_norm"] = self._descend("actor", actor_loss, BEHAVIOUR_GRAD_CLIP)
        norms["critic_grad_norm"] = self._descend("critic", critic_loss, BEHAVIOUR_GRAD_CLIP)
        # The first update copies the critic.
        behaviour.update_slow_critic(1.0 if self.updates == 0 else self.hp.slow_rate)
        losses |= {"actor": actor_loss, "critic": critic_loss}
        return {f"{name}_loss": loss.detach() for name, loss in losses.items()} | norms | metrics

    def _descend(self, part: str, loss: Tensor, max_norm: float) -> Tensor:
        """Step one part's optimiser on its loss (R,). Returns the gradients' norms (R,) before clipping."""
        loss.sum().backward(inputs=self.parameters[part])
        norm = clip_grad_norms(self.parameters[part], max_norm)
        self.optimizers[part].step()
        self.optimizers[part].zero_grad(set_to_none=True)
        return norm

    def _update_jointly(self, batch: Batch) -> dict[str, Tensor]:
        """2024: one loss of all parts, one step; the slow critic follows afterwards."""
        hp, noise = self.hp, self.noise["learn"]
        uniform = noise.uniform(hp.burn_in + hp.batch_length, hp.batch_size, hp.stoch)
        sequence = self.model.sequence(batch, uniform)
        observed = self.model.observe(sequence, uniform[:, hp.burn_in :])
        losses = self.model.losses(sequence, observed)
        actor, critic, replay_critic, metrics = self.behaviour.learn_by_reinforce(
            self.model, sequence, observed.state, noise
        )
        losses |= {"actor": actor, "critic": critic, "replay_critic": hp.replay_value_scale * replay_critic}
        torch.stack(list(losses.values())).sum().backward()
        self.optimizers["joint"].step()
        self.optimizers["joint"].zero_grad(set_to_none=True)
        self.behaviour.update_slow_critic(hp.slow_rate)
        return {f"{name}_loss": loss.detach() for name, loss in losses.items()} | metrics

    # State

    def state_dict(self, run: int) -> dict[str, Any]:
        """Everything that run `run` needs to go on; see the protocol."""
        return {
            "model": module_state(self.model, run, self.runs),
            "behaviour": module_state(self.behaviour, run, self.runs),
            "optimizers": {name: optimizer_state(each, run, self.runs) for name, each in self.optimizers.items()},
            "return_scale": self.behaviour.return_scale.state(run),
            "memory": {stream: memory.state(run) for stream, memory in self.memory.items()},
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
        load_module_states(self.behaviour, [state["behaviour"] for state in states])
        for name, optimizer in self.optimizers.items():
            load_optimizer_states(optimizer, [state["optimizers"][name] for state in states])
        self.behaviour.return_scale.load([state["return_scale"] for state in states])
        for stream in self.memory:
            self.memory[stream] = Memory.of_states([state["memory"][stream] for state in states], self.device)
        for stream, noise in self.noise.items():
            noise.load([state["noise"][stream] for state in states])
