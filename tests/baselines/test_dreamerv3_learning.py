"""DreamerV3 learns a small task from made-up sequences: the action is seen, and best near 0.4.

Last ran on 2026-11-25: passes, 50 s of one core.
"""

from __future__ import annotations

import pytest
import torch

from agents.protocol import AgentSpec, Batch
from baselines.dreamerv3.agent import DreamerV3
from baselines.dreamerv3.hyperparameters import Hyperparameters

pytestmark = pytest.mark.slow

SMALL = {
    "deter": 32, "hidden": 32, "units": 32, "stoch": 4, "classes": 8, "vector_layers": 1, "vector_units": 32,
    "reward_layers": 1, "continue_layers": 1, "actor_layers": 1, "critic_layers": 1, "bins": 63, "cnn_depth": 2,
    "horizon": 3, "discount": 0.5, "batch_size": 8, "batch_length": 8,
}  # fmt: skip
OPTIMISER = {
    2023: {"model_lr": 3e-3, "actor_lr": 5e-4, "critic_lr": 3e-3},
    2024: {"model_lr": 2e-2, "actor_lr": 2e-2, "critic_lr": 2e-2, "burn_in": 2},  # reached after 1000 updates only
}
BEST = 0.4


def sequences(hp: Hyperparameters, generator: torch.Generator) -> Batch:
    """Random actions of two runs, each seen as the next observation and rewarded by its distance from the best."""
    length, size = hp.slice_length, hp.batch_size
    action = 2 * torch.rand(2, length - 1, size, 1, generator=generator) - 1
    obs = torch.cat([torch.zeros(2, 1, size, 1), action], 1)
    reward = 1 - (action[..., 0] - BEST).abs()
    return Batch(obs, action, reward, torch.zeros_like(reward), torch.zeros(2, length, size, dtype=torch.bool))


@pytest.mark.parametrize("generation", [2023, 2024])
def test_the_best_action_is_found_in_imagination(generation: int) -> None:
    hp = Hyperparameters(**({"generation": generation} | SMALL | OPTIMISER[generation]))
    dreamer = DreamerV3(AgentSpec((1,), "state", 1, 100, 1000), hp, (1, 2), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    losses = [dreamer.update(sequences(hp, generator)) for _ in range(800)]
    for name in ("reconstruction_loss", "reward_loss"):
        assert (losses[-1][name] < 0.3 * losses[0][name]).all()
    action = dreamer.act(torch.zeros(2, 1, 1), torch.ones(2, 1, dtype=torch.bool), explore=False)
    assert (action - BEST).abs().max() < 0.25, action
