"""Every agent of the registry keeps the protocol, from every kind of observation: a new one is tested by its row."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from small_settings import SMALL

from agents import entries
from agents.entries import AgentEntry
from agents.registry import BUILT_IN, get, resolve_hyperparameters
from bench.agent_checks import CHECKS, Check, run_check
from bench.agent_probe import Probe

LONG = ("independence", "resume", "fleet", "regroup", "nan")
"""Checks of many updates: in `make test-fast` from the first kind of observation alone, which is the quicker one."""
CASES = [
    pytest.param(
        check,
        entry.name,
        obs,
        id=f"{check.name}-{entry.name}-{obs}",
        marks=[pytest.mark.whole] if check.name in LONG and obs != entry.obs_kinds[0] else [],
    )
    for check in CHECKS
    for entry in BUILT_IN
    for obs in entry.obs_kinds
]


@cache
def probe(agent: str, obs: str) -> Probe:
    few = {"batch_size": 4} if obs == "rgb" else {}
    return Probe(get(agent), resolve_hyperparameters(agent, SMALL[agent] | few, None, obs), obs)


@pytest.mark.parametrize(("check", "agent", "obs"), CASES)
def test_the_protocol(check: Check, agent: str, obs: str) -> None:
    assert agent in SMALL, f"give {agent} a row of small hyperparameters in small_settings.py"
    torch.set_num_threads(1)
    outcome = run_check(check, probe(agent, obs))
    if outcome.state == "skipped":
        pytest.skip(outcome.line)
    assert outcome.state == "ok", outcome.line


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_the_registry_says_what_the_class_says(entry: AgentEntry) -> None:
    described = entries.of_class(entry.name, entry.agent, entry.load())
    for member in ("obs_kinds", "max_fleet", "multitask", "pads", "capturable"):
        assert getattr(entry, member) == getattr(described, member), member
