"""Small fleets of SAC, batches and comparisons that its tests share."""

from __future__ import annotations

import torch

from agents.protocol import AgentSpec, Batch
from baselines.hyperparameters.sac import SAC as Hyperparameters
from baselines.sac import SAC

CPU = torch.device("cpu")
OBS, A, B = 5, 3, 16
SPEC = AgentSpec(obs_shape=(OBS,), obs_kind="state", action_size=A, episode_agent_steps=100, budget_agent_steps=10_000)
SMALL = Hyperparameters(hidden_dim=32, batch_size=B, actor_lr=3e-4, critic_lr=1e-3, alpha_lr=1e-2)


def agent(seeds=(1, 2, 3), **changes):
    return SAC(SPEC, SMALL.model_copy(update=changes), seeds, CPU)


def batch(runs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(runs, 2, B, OBS, generator=generator),
        action=torch.randn(runs, 1, B, A, generator=generator).tanh(),
        reward=torch.randn(runs, 1, B, generator=generator),
        terminated=(torch.rand(runs, 1, B, generator=generator) < 0.3).float(),
    )


def of_run(whole, run):
    part = slice(run, run + 1)
    return Batch(whole.obs[part], whole.action[part], whole.reward[part], whole.terminated[part])


def assert_close(value, expected, rtol=2e-5, atol=2e-6):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)


def assert_states_close(state, expected, close=assert_close):
    """Two nested states with the same keys and near tensors."""
    assert type(state) is type(expected)
    if isinstance(state, dict):
        assert state.keys() == expected.keys()
        for key in state.keys() - {"runs"}:  # the size of the fleet that drew the noise
            assert_states_close(state[key], expected[key], close)
    elif isinstance(state, list):
        for one, other in zip(state, expected, strict=True):
            assert_states_close(one, other, close)
    elif isinstance(state, torch.Tensor):
        close(state, expected)
    else:
        assert state == expected


def assert_equal(value, expected):
    assert torch.equal(value, expected)
