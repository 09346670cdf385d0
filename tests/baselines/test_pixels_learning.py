"""From pixels they learn: the best action is where a bright bar stands in the picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents import registry
from agents.protocol import Agent, AgentSpec, Batch
from bench.seeding import derive_seed

pytestmark = pytest.mark.whole

SIZE, BATCH = 18, 32
SMALL = {"num_channels": 6, "feature_dim": 16, "hidden_dim": 32, "batch_size": BATCH, "image_size": SIZE}
OVERRIDES: dict[str, dict[str, Any]] = {
    "drqv2": {"lr": 2e-3, "shift_pad": 1, "n_step": 1, "std_start": 0.1},
    "curl": {"crop_size": 16, "alpha_lr": 3e-3, "actor_every": 1},
    "sac": {"actor_lr": 1e-3, "critic_lr": 1e-3, "alpha_lr": 3e-3, "tau": 0.01},
}


def pictures(bar: torch.Tensor) -> torch.Tensor:
    """(R, M, 9, SIZE, SIZE): a bar of three pixels at `bar` (R, M) in [-1, 1], bright and dark by turns of channels."""
    centre = (SIZE - 1) / 2 + bar[..., None] * (SIZE / 2 - 4)
    distance = (torch.arange(SIZE) - centre).abs()  # (R, M, SIZE)
    row = (255 * (2 - distance).clamp(0, 1)).to(torch.uint8)
    bright = row[:, :, None, None, :].expand(-1, -1, 9, SIZE, -1)
    return torch.where(torch.arange(9)[:, None, None] % 2 == 0, bright, 255 - bright)


def error(agent: Agent) -> torch.Tensor:
    """How far each run's action is from the bar, as a mean over five pictures; (R,)."""
    bars = torch.linspace(-0.8, 0.8, 5)[None]
    action = agent.act(pictures(bars), torch.ones(1, 5, dtype=torch.bool), explore=False)
    return (action[..., 0] - bars).abs().mean(1)


@pytest.mark.parametrize("name", OVERRIDES)
def test_the_action_follows_what_is_seen(name: str) -> None:
    entry = registry.get(name)
    hp = entry.hyperparameters_model()(**(SMALL | OVERRIDES[name]))
    spec = AgentSpec((9, SIZE, SIZE), "rgb", 1, 1, 1000)
    agent = entry.load()(spec, hp, (1,), torch.device("cpu"))
    generator = torch.Generator().manual_seed(derive_seed("bars"))
    assert (error(agent) > 0.4).all()
    for _ in range(400):
        bar = 2 * torch.rand(1, BATCH, generator=generator) - 1
        action = 2 * torch.rand(1, 1, BATCH, 1, generator=generator) - 1
        obs = pictures(bar)[:, None].expand(-1, 2, -1, -1, -1, -1)
        reward = 1 - (action[..., 0] - bar[:, None]).square()
        agent.update(Batch(obs, action, reward, torch.ones(1, 1, BATCH)))
    assert (error(agent) < 0.3).all()
