"""Small fleets of DreamerV3, batches and comparisons that its tests share."""

from __future__ import annotations

import torch

from agents.protocol import AgentSpec, Batch
from baselines.dreamerv3.agent import DreamerV3
from baselines.dreamerv3.hyperparameters import Hyperparameters

CPU = torch.device("cpu")
OBS, A = 5, 2
SPECS = {
    "state": AgentSpec((OBS,), "state", A, episode_agent_steps=100, budget_agent_steps=10_000),
    "rgb": AgentSpec((3, 16, 16), "rgb", A, episode_agent_steps=100, budget_agent_steps=10_000),
}
SMALL = {
    "deter": 16,
    "hidden": 12,
    "units": 10,
    "stoch": 3,
    "classes": 4,
    "vector_layers": 2,
    "vector_units": 14,
    "cnn_depth": 2,
    "image_size": 16,
    "bins": 31,
    "horizon": 4,
    "batch_size": 3,
    "batch_length": 6,
    "prefill_windows": 8,
}
GENERATIONS = [2023, 2024]


def hyperparameters(generation, **changes):
    extra = {"blocks": 4, "burn_in": 2} if generation == 2024 else {}
    return Hyperparameters(**({"generation": generation} | SMALL | extra | changes))


def agent(generation, seeds=(1, 2, 3), obs_kind="state", **changes):
    return DreamerV3(SPECS[obs_kind], hyperparameters(generation, **changes), seeds, CPU)


def batch(hp, runs=3, seed=0, obs_kind="state"):
    """Slices with resets and terminal steps in them."""
    generator = torch.Generator().manual_seed(seed)
    length, size = hp.slice_length, hp.batch_size
    obs = torch.randn(runs, length, size, *SPECS[obs_kind].obs_shape, generator=generator)
    if obs_kind == "rgb":
        obs = (obs * 60 + 128).clamp(0, 255).to(torch.uint8)
    first = torch.rand(runs, length, size, generator=generator) < 0.25
    went_on = (~first[:, 1:]).float()
    action = torch.rand(runs, length - 1, size, A, generator=generator) * 2 - 1
    terminated = torch.rand(runs, length - 1, size, generator=generator) < 0.2
    reward = torch.randn(runs, length - 1, size, generator=generator)
    return Batch(obs, action * went_on[..., None], reward * went_on, terminated * went_on, first)


def of_runs(whole, runs):
    fields = (whole.obs, whole.action, whole.reward, whole.terminated, whole.first)
    return Batch(*(field[runs] for field in fields))


def wake(fleet, scale=0.3):
    """Give every output layer weights, so that rewards and values are not all zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (fleet.model, fleet.behaviour):
            for parameter in network.parameters():
                draw = torch.randn(parameter.shape[1:], generator=generator) * scale
                parameter += draw  # the same for each run: their own draws differ already
    return fleet


def assert_close(value, expected, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)


def assert_equal(value, expected):
    assert torch.equal(value, expected)


def assert_states(state, expected, check=assert_equal):
    """Two nested states with the same keys and tensors that pass `check`."""
    assert type(state) is type(expected)
    if isinstance(state, dict):
        assert state.keys() == expected.keys()
        for key in state.keys() - {"runs"}:  # the size of the fleet that drew the noise
            assert_states(state[key], expected[key], check)
    elif isinstance(state, list):
        for one, other in zip(state, expected, strict=True):
            assert_states(one, other, check)
    elif isinstance(state, torch.Tensor):
        check(state, expected)
    else:
        assert state == expected
