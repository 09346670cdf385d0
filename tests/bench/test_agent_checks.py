"""The checks of the protocol find what they are made for: each broken agent is SAC with one mistake."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from agents.entries import AgentEntry
from agents.registry import get
from baselines.sac import SAC
from bench import contract
from bench.__main__ import build_app
from bench.agent_checks import CHECKS, run_check
from bench.agent_probe import Probe
from bench.contract import ProtocolError
from bench.errors import UserError

SMALL = {"hidden_dim": 16, "batch_size": 8}


class WithoutUpdate:
    Hyperparameters = SAC.Hyperparameters
    obs_kinds = ("state",)
    max_fleet = None

    def act(self) -> None: ...

    def updates_due(self) -> None: ...

    state_dict = load_state_dict = act


class Flat(SAC):
    def act(self, obs, first, explore):
        return super().act(obs, first, explore)[:, 0]


class Unbounded(SAC):
    def act(self, obs, first, explore):
        return 1.5 + super().act(obs, first, explore)


class Burst(SAC):
    def updates_due(self, before, after):
        return 1 if after > self.seed_agent_steps else 0


class Averaged(SAC):
    def update(self, batch):
        return super().update(batch) | {"loss": torch.tensor(1.0)}


class Sometimes(SAC):
    def update(self, batch):
        metrics = super().update(batch)
        return metrics if self.updates % 2 else metrics | {"extra": metrics["q"]}


class Lazy(SAC):
    """Its actor never learns."""

    def update(self, batch):
        kept = {name: value.clone() for name, value in self.actor.state_dict().items()}
        metrics = super().update(batch)
        self.actor.load_state_dict(kept)
        return metrics


class Restless(SAC):
    """Acting changes its parameters."""

    def act(self, obs, first, explore):
        with torch.no_grad():
            self.log_alpha += 0.01
        return super().act(obs, first, explore)


class Noisy(SAC):
    """Evaluation draws from the generator of the process."""

    def act(self, obs, first, explore):
        action = super().act(obs, first, explore)
        return action if explore else (action + 0.1 * torch.randn_like(action)).clamp(-1, 1)


class OneStream(SAC):
    """Evaluation takes numbers from the stream that explores."""

    def act(self, obs, first, explore):
        if not explore:
            self.explore_noise.normal(1)
        return super().act(obs, first, explore)


class Objects(SAC):
    def state_dict(self, run):
        return super().state_dict(run) | {"device": self.device}


class Forgetful(SAC):
    """Its state lacks the target critics."""

    def load_state_dict(self, states):
        kept = {name: value.clone() for name, value in self.target.state_dict().items()}
        super().load_state_dict(states)
        self.target.load_state_dict(kept)


class Scaling(SAC):
    def update(self, batch):
        batch.reward *= 0.1
        return super().update(batch)


class Mixed(SAC):
    """Every run learns from the mean of the rewards."""

    def update(self, batch):
        return SAC.update(self, replace(batch, reward=batch.reward.mean(0, True).expand_as(batch.reward)))


class Silent(SAC):
    """What is not a number never shows."""

    def update(self, batch):
        return super().update(replace(batch, reward=batch.reward.nan_to_num()))


class Watching(SAC):
    """What it follows is not part of its state."""

    seen: Tensor

    def observe(self, obs, reward, terminated, truncated):
        self.seen = reward


class Crashing(SAC):
    def load_state_dict(self, states):
        raise KeyError("actor")


BROKEN: list[tuple[type, str, str]] = [
    (Flat, "actions", r"^Flat.act must return a float32 tensor \(R, N, A\) = \(3, 1, 2\) in .*, not float32 \(3, 2\)$"),
    (Unbounded, "actions", r"^Unbounded.act must return actions in \[-1, 1\], not [12]\.\d+$"),
    (Burst, "updates_due", r"^updates_due\(\d+, \d+\) \+ updates_due\(\d+, \d+\) = \d+, but updates_due"),
    (Averaged, "metrics", r"^Averaged.update must return a dict of tensors \(R,\) = \(3,\) .*; 'loss' has shape \(\)$"),
    (Sometimes, "metrics", r"^update reports \[.*\] after \[.*\]: it must report the same names each time$"),
    (Scaling, "metrics", r"^update writes into the batch that it is given$"),
    (Lazy, "parameters", r"^actor.net.0.weight of run 0 does not change in 6 updates$"),
    (Restless, "parameters", r"^policy_optimizer's parameter \d+ changes by acting: parameters may change in update"),
    (Noisy, "evaluation", r"^two agents with the same state give different evaluation actions$"),
    (OneStream, "independence", r"^training is another one with evaluation in between \(first in exploring action 2"),
    (Objects, "state", r"^state_dict: device is a device: tensors, numbers and strings alone$"),
    (Forgetful, "resume", r"^an agent resumed from its state does not go on as it would have \(first in update 1's "),
    (Mixed, "fleet", r"^run 0 of a fleet of 3 is another one than alone \(first at \[0\]\[1\]\.critic_loss\)$"),
    (Crashing, "regroup", r"^KeyError: 'actor' \(test_agent_checks.py:\d+, load_state_dict\)$"),
    (Mixed, "nan", r"^one run that is not a number reaches the others \(first at \[0\]\.critic_loss\)$"),
    (Silent, "nan", r"^rewards that are not a number show neither in the metrics nor in the actions$"),
    (Watching, "observe", r"^what observe takes in is not part of state_dict: a resumed run would lose it$"),
]  # fmt: skip


@pytest.mark.parametrize(("agent_class", "check", "line"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_each_mistake_is_one_line(agent_class: type, check: str, line: str) -> None:
    entry = AgentEntry(
        "broken", f"{__name__}:{agent_class.__name__}", f"{__name__}:SAC.Hyperparameters", ("state",), None, ""
    )
    (chosen,) = (one for one in CHECKS if one.name == check)
    outcome = run_check(chosen, Probe(entry, SMALL, "state"))
    assert outcome.state == "failed"
    assert "\n" not in outcome.line
    assert re.search(line, outcome.line), outcome.line


def test_the_registry_and_the_class_agree() -> None:
    entry = AgentEntry("sac", "baselines.sac:SAC", "baselines.hyperparameters.sac:SAC", ("state",), None, "")
    outcome = run_check(CHECKS[0], Probe(entry, SMALL, "state"))
    assert outcome.line == "the registry says obs_kinds = ('state',), the class ('state', 'rgb')"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_fleet": 0}, r"Changed.max_fleet must be None \(any number of runs\) or at least 1, not 0"),
        ({"obs_kinds": "state"}, r"Changed.obs_kinds must be a tuple of some of state, rgb, not 'state'"),
        ({"Hyperparameters": dict}, r"Changed.Hyperparameters must be a pydantic model, not <class 'dict'>"),
        ({"update": 3}, r"Changed.update must be a method"),
    ],
)
def test_what_a_class_must_say(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ProtocolError, match=line):
        contract.check_class(type("Changed", (SAC,), changes))


def test_an_agent_of_a_path() -> None:
    """`module:Class` names an agent; what is wrong with it is one line."""
    assert get(f"{__name__}:Lazy").summary == "Its actor never learns."
    for path, message in {
        f"{__name__}:WithoutUpdate": "WithoutUpdate lacks update, which agents.protocol.Agent asks for",
        f"{__name__}:Lasy": f"unknown class of {__name__} 'Lasy': did you mean Lazy",
        "no_such_module:TD3": "agent 'no_such_module:TD3': there is no module no_such_module: run in its folder",
    }.items():
        with pytest.raises(UserError, match=f"^{re.escape(message)}"):
            get(path)


@pytest.fixture
def command() -> Callable[..., Any]:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(build_app(), ["agents", "check", *arguments])

    return run


def test_the_command(command: Callable[..., Any]) -> None:
    small = [f"{key}={value}" for key, value in SMALL.items()]
    fine = command("sac", *small)
    assert fine.exit_code == 0, fine.output
    assert "sac (state): no failed of 14" in fine.output
    broken = command(f"{__name__}:Noisy", *small)
    assert broken.exit_code == 1
    assert "evaluation   failed   two agents with the same state give different evaluation actions" in broken.output
    assert isinstance(command("sac", "--obs", "sound").exception, UserError)
