"""Every agent of the registry keeps the protocol, from every kind of observation: a new one is tested by its row."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from small_settings import SMALL

from agents import registry
from agents.entries import AgentEntry
from agents.registry import BUILT_IN, get, resolve_hyperparameters
from bench.agent_checks import CHECKS, Check, run_check
from bench.agent_probe import Probe

CASES = [(entry.name, kind) for entry in BUILT_IN for kind in entry.obs_kinds]


@cache
def probe(agent: str, obs: str) -> Probe:
    return Probe(get(agent), resolve_hyperparameters(agent, SMALL[agent], None, obs), obs)


@pytest.mark.parametrize(("agent", "obs"), CASES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_protocol(check: Check, agent: str, obs: str) -> None:
    assert agent in SMALL, f"give {agent} a row of small hyperparameters in small_settings.py"
    torch.set_num_threads(1)
    outcome = run_check(check, probe(agent, obs))
    if outcome.state == "skipped":
        pytest.skip(outcome.line)
    assert outcome.state == "ok", outcome.line


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_the_registry_says_what_the_class_says(entry: AgentEntry) -> None:
    of_class = registry._entry(entry.name, entry.agent, entry.load())
    for member in ("obs_kinds", "max_fleet", "multitask", "pads", "capturable"):
        assert getattr(entry, member) == getattr(of_class, member), member
