"""One run of DreamerV3 from states by plain tensor arithmetic and loops: what a fleet's update is tested against."""

from __future__ import annotations

import math

import torch
from torch import distributions as D
from torch.nn import functional as F

from agents.distributions import TwoHot, symlog
from agents.nn import module_state
from baselines.dreamerv3.heads import SymexpTwoHot


class Plain:
    """Losses of one run with the parameters it has now.

    Args:
        fleet: the agent.
        run: which of its runs.
        noise: the run's own stream of draws for learning.
    """

    def __init__(self, fleet, run, noise):
        self.hp, self.fleet, self.run, self.noise = fleet.hp, fleet, run, noise
        self.old = fleet.hp.generation == 2023
        self.two_hot = (
            TwoHot(self.hp.bins, -20, 20, torch.device("cpu"))
            if self.old
            else SymexpTwoHot(self.hp.bins, torch.device("cpu"))
        )
        self.ends = fleet.behaviour.return_scale.ends[run].clone()
        self.take_parameters()

    def take_parameters(self):
        states = {
            "model": module_state(self.fleet.model, self.run, self.fleet.runs),
            **{
                name: module_state(getattr(self.fleet.behaviour, name), self.run, self.fleet.runs)
                for name in ("actor", "critic", "slow_critic")
            },
        }
        self.p = {
            f"{part}.{name}": tensor.clone().requires_grad_()
            for part, s in states.items()
            for name, tensor in s.items()
        }

    def gradients(self, part, loss):
        """By the parameter's name; `loss` is a scalar."""
        names = [name for name in self.p if name.startswith(f"{part}.")]
        grads = torch.autograd.grad(loss, [self.p[name] for name in names], retain_graph=True)
        return dict(zip(names, grads, strict=True))

    # Layers

    def norm(self, x, name):
        if self.old:
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()
            return x * self.p[f"{name}.weight"][0, 0] + self.p[f"{name}.bias"][0, 0]
        return x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * self.p[f"{name}.weight"][0, 0]

    def linear(self, x, name):
        y = x @ self.p[f"{name}.weight"][0]
        return y + self.p[f"{name}.bias"][0, 0] if f"{name}.bias" in self.p else y

    def dense(self, x, name):
        return F.silu(self.norm(self.linear(x, f"{name}.linear"), f"{name}.norm"))

    def trunk(self, x, name):
        layer = 0
        while f"{name}.layers.{layer}.linear.weight" in self.p:
            x = self.dense(x, f"{name}.layers.{layer}")
            layer += 1
        return x

    def head(self, x, name):
        return self.linear(self.trunk(x, f"{name}.trunk"), f"{name}.output")

    def block_linear(self, x, name):
        weight, bias = self.p[f"{name}.linear.weight"], self.p[f"{name}.linear.bias"]
        return [part @ weight[block] + bias[block, 0] for block, part in enumerate(x)]

    # Recurrent state-space model

    def core(self, deter, stoch, action):
        action = action / action.detach().abs().clamp(min=1)
        name, size = "model.rssm.core", self.hp.deter
        if self.old:
            x = self.dense(torch.cat([stoch, action], -1), f"{name}.input")
            gates = self.norm(self.linear(torch.cat([deter, x], -1), f"{name}.gates"), f"{name}.norm")
            reset, candidate, update = gates[:, :size], gates[:, size : 2 * size], gates[:, 2 * size :]
        else:
            shared = [self.dense(x, f"{name}.inputs.{i}") for i, x in enumerate((deter, stoch, action))]
            width = size // self.hp.blocks
            own = [deter[:, j * width : (j + 1) * width] for j in range(self.hp.blocks)]
            hidden = self.block_linear([torch.cat([part, *shared], -1) for part in own], f"{name}.hidden")
            hidden = F.silu(self.norm(torch.cat(hidden, -1), f"{name}.norm"))
            own = [hidden[:, j * width : (j + 1) * width] for j in range(self.hp.blocks)]
            gates = self.block_linear(own, f"{name}.gates")
            reset, candidate, update = (
                torch.cat([gate[:, i * width : (i + 1) * width] for gate in gates], -1) for i in range(3)
            )
        share = torch.sigmoid(update - 1)
        return share * torch.tanh(torch.sigmoid(reset) * candidate) + (1 - share) * deter

    def probs(self, logits):
        soft = logits.reshape(*logits.shape[:-1], self.hp.stoch, self.hp.classes).softmax(-1)
        return 0.99 * soft + 0.01 / self.hp.classes

    def prior(self, deter):
        return self.probs(self.head(deter, "model.rssm.prior_head"))

    def posterior(self, deter, embed):
        x = self.dense(torch.cat([deter, embed], -1), "model.rssm.posterior_head.hidden")
        return self.probs(self.linear(x, "model.rssm.posterior_head.output"))

    def sample(self, probs, uniform):
        one_hot = torch.zeros_like(probs)
        for b in range(len(probs)):
            for s in range(self.hp.stoch):
                total = 0.0
                for c in range(self.hp.classes):
                    total += float(probs[b, s, c].detach())
                    if total > float(uniform[b, s]) or c == self.hp.classes - 1:
                        one_hot[b, s, c] = 1
                        break
        return (one_hot + probs - probs.detach()).flatten(1)

    def initial(self, count):
        if not self.old:
            return torch.zeros(count, self.hp.deter), torch.zeros(count, self.hp.stoch * self.hp.classes)
        deter = self.p["model.rssm.initial_deter"][0].tanh().expand(count, -1)
        best = self.prior(deter).argmax(-1)
        return deter, F.one_hot(best, self.hp.classes).float().flatten(1)

    def observe(self, obs, action, first, deter, stoch, uniform):
        """Lists over time of deter, stoch and posterior."""
        deters, stochs, posteriors = [], [], []
        deter0, stoch0 = self.initial(obs.shape[1])
        for t in range(len(obs)):
            reset = first[t][:, None].float()
            deter, stoch = reset * deter0 + (1 - reset) * deter, reset * stoch0 + (1 - reset) * stoch
            deter = self.core(deter, stoch, (1 - reset) * action[t])
            embed = self.trunk(symlog(obs[t]), "model.encoder.trunk")
            posteriors.append(self.posterior(deter, embed))
            stoch = self.sample(posteriors[-1], uniform[t])
            deters.append(deter)
            stochs.append(stoch)
        return deters, stochs, posteriors

    # World model

    def model_losses(self, batch):
        """Losses of the world model on one run's slices, scalars."""
        hp, length = self.hp, self.hp.batch_length
        uniform = self.noise.uniform(hp.burn_in + length, hp.batch_size, hp.stoch)[0]
        obs, first = batch.obs[0], batch.first[0].clone()
        before = torch.cat([torch.zeros_like(batch.action[0, :1]), batch.action[0]])  # what led to each observation
        deter, stoch = self.initial(hp.batch_size)
        begin = len(obs) - length
        if hp.burn_in == 0:
            first[begin] = True
        else:
            with torch.no_grad():
                deters, stochs, _ = self.observe(
                    obs[:begin], before[:begin], first[:begin], deter, stoch, uniform[:begin]
                )
                deter, stoch = deters[-1], stochs[-1]
        deters, stochs, posteriors = self.observe(
            obs[begin:], before[begin:], first[begin:], deter, stoch, uniform[hp.burn_in :]
        )
        self.features = [torch.cat(pair, -1) for pair in zip(deters, stochs, strict=True)]
        self.states = list(zip(deters, stochs, strict=True))
        self.reward, self.terminal = batch.reward[0, -length:], batch.terminated[0, -length:]
        self.first = batch.first[0, -length:]
        parts = {name: [] for name in ("reconstruction", "reward", "continue", "dyn", "rep")}
        for t, features in enumerate(self.features):
            error = (self.head(features, "model.decoder.head") - symlog(obs[begin + t])).square()
            parts["reconstruction"].append(error.sum(-1))
            parts["reward"].append(self.two_hot.cross_entropy(self.head(features, "model.reward_head"), self.reward[t]))
            goes_on = (1 - self.terminal[t]) * (1 if self.old else hp.discount)
            logit = self.head(features, "model.continue_head")[:, 0]
            parts["continue"].append(-goes_on * F.logsigmoid(logit) - (1 - goes_on) * F.logsigmoid(-logit))
            prior, posterior = self.prior(deters[t]), posteriors[t]
            for name, p, q in (("dyn", posterior.detach(), prior), ("rep", posterior, prior.detach())):
                divergence = (p * (p / q).log()).sum((1, 2))
                scale = {"dyn": hp.dyn_scale, "rep": hp.rep_scale}[name]
                parts[name].append(scale * torch.where(divergence > 1, divergence, torch.ones(())))
        return {name: torch.cat(values).mean() for name, values in parts.items()}

    # Behaviour

    def value(self, features, critic="critic"):
        return self.two_hot.decode(self.head(features, critic))

    def policy(self, features):
        x = self.trunk(features, "actor.trunk")
        mean, std = self.linear(x, "actor.mean").tanh(), 0.9 * torch.sigmoid(self.linear(x, "actor.std") + 2) + 0.1
        return D.Normal(mean, std)

    def critic_loss(self, features, target):
        logits = self.head(features, "critic")
        slow = self.value(features, "slow_critic").detach()
        return self.two_hot.cross_entropy(logits, target) + self.two_hot.cross_entropy(logits, slow)

    def imagine(self):
        """Features, policies and actions of each imagined step, from all replayed states, time before batch."""
        hp = self.hp
        deter, stoch = (torch.cat(parts).detach() for parts in zip(*self.states, strict=True))
        uniform = self.noise.uniform(hp.horizon, len(deter), hp.stoch)[0]
        features, policies, actions = [torch.cat([deter, stoch], -1)], [], []
        for k in range(hp.horizon):
            policy = self.policy(features[-1].detach())
            action = policy.mean + policy.stddev * self.noise.normal(*policy.mean.shape)[0]
            deter = self.core(deter, stoch, action)
            stoch = self.sample(self.prior(deter), uniform[k])
            features.append(torch.cat([deter, stoch], -1))
            policies.append(policy)
            actions.append(action)
        return features, policies, actions

    def lambda_return(self, rewards, discounts, values, k):
        """R_k by recursion over the imagined steps."""
        if k == self.hp.horizon:
            return values[k]
        after = 0.05 * values[k + 1] + 0.95 * self.lambda_return(rewards, discounts, values, k + 1)
        return rewards[k + 1] + discounts[k + 1] * after

    def behaviour_losses(self):
        """Losses of actor and critic, and of 2024's critic on replayed states, scalars."""
        hp = self.hp
        features, policies, actions = self.imagine()
        rewards = [self.two_hot.decode(self.head(f, "model.reward_head")) for f in features]
        values = [self.value(f) for f in features]
        logits = [self.head(f, "model.continue_head")[:, 0].detach() for f in features]
        if self.old:
            discounts = [hp.discount * (logit > 0).float() for logit in logits]
            discounts[0] = hp.discount * (1 - self.terminal.flatten())
        else:
            discounts = [torch.sigmoid(logit) for logit in logits]
        returns = [self.lambda_return(rewards, discounts, values, k) for k in range(hp.horizon)]
        low, high = (torch.quantile(torch.stack(returns).detach(), q) for q in (0.05, 0.95))
        self.ends = 0.99 * self.ends + 0.01 * torch.stack([low, high])
        scale = max(1.0, float(self.ends[1] - self.ends[0]))
        actor, critic = [], []
        weight = torch.ones(len(values[0])) / (hp.discount if self.old else 1)
        for k in range(hp.horizon):
            weight = weight * discounts[k]
            advantage = (returns[k] - values[k]) / scale
            if not self.old:
                policy = self.policy(features[k].detach())
                log_prob = policy.log_prob(actions[k].detach()).sum(-1)
                objective = log_prob * advantage.detach() + 3e-4 * policy.entropy().sum(-1)
            else:
                objective = advantage + 3e-4 * policies[k].entropy().sum(-1)
            actor.append(-weight * objective)
            critic.append(weight * self.critic_loss(features[k].detach(), returns[k].detach()))
        losses = {"actor": torch.cat(actor).mean(), "critic": torch.cat(critic).mean()}
        if not self.old:
            losses["replay_critic"] = hp.replay_value_scale * self.replay_critic_loss(returns[0].detach())
        return losses

    def replay_critic_loss(self, imagined):
        """Of each replayed state but the last of an episode or of the slice."""
        hp = self.hp
        length, size = self.reward.shape
        bootstrap = imagined.reshape(length, size)
        logits = [self.critic_loss_target(features) for features in self.features]
        total = torch.zeros(())
        for b in range(size):
            target = float(bootstrap[length - 1, b])
            for t in reversed(range(length - 1)):
                ends_after = t + 2 < length and bool(self.first[t + 2, b])  # state t + 1 is the last of its episode
                mix = 0.0 if ends_after else 0.95
                after = (1 - mix) * float(bootstrap[t + 1, b]) + mix * target
                goes_on = 1 - float(self.terminal[t + 1, b])
                target = float(self.reward[t + 1, b]) + hp.discount * goes_on * after
                if not self.first[t + 1, b]:
                    of_critic, slow = logits[t]
                    one = torch.tensor([target])
                    total = total + self.two_hot.cross_entropy(of_critic[b : b + 1], one)[0]
                    total = total + self.two_hot.cross_entropy(of_critic[b : b + 1], slow[b : b + 1])[0]
        return total / ((length - 1) * size)

    def critic_loss_target(self, features):
        return self.head(features, "critic"), self.value(features, "slow_critic").detach()


def global_norm(grads):
    return math.sqrt(sum(float(grad.square().sum()) for grad in grads.values()))
