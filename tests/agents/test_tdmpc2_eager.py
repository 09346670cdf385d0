"""The agent at the paper's sizes against ordinary torch: what `tests/agents/benchmark_tdmpc2.py` compares is equal."""

from dataclasses import replace

import pytest
import torch
from eager_tdmpc2 import EagerTDMPC2
from plain_tdmpc2 import CPU, SPEC, make_agent, make_batch

from agents.tdmpc2.agent import TDMPC2
from agents.tdmpc2.hyperparameters import Hyperparameters

WALKER = replace(SPEC, obs_shape=(24,), action_size=6, episode_agent_steps=500)


@pytest.mark.usefixtures("double")
def test_updates_and_plans_equal_ordinary_torch():
    agent = make_agent(seeds=(1,), dropout=0.0)
    eager = EagerTDMPC2(agent, seed=1)
    for number in range(3):
        batch, obs, first = make_batch((1 + number,)), torch.randn(1, 1, 5), torch.tensor([[number == 0]])
        ours, theirs = agent.update(batch), eager.update(batch)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name][0], value, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(agent.act(obs, first, True), eager.act(obs, first, True), rtol=1e-7, atol=1e-7)


def test_an_update_at_full_size_equals_ordinary_torch_in_float32():
    agent = TDMPC2(WALKER, Hyperparameters(dropout=0.0), [1], CPU)
    for index, parameter in enumerate(agent.model.parameters()):
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    eager = EagerTDMPC2(agent, seed=1)
    batch = make_batch((3,), spec=WALKER, size=256)
    ours, theirs = agent.update(batch), eager.update(batch)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name][0], value, rtol=2e-5, atol=1e-6)
