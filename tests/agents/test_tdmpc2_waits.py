"""Acting and updating never wait for the device: on PyTorch's meta device, whatever would bring a value to the host
(`item`, `bool`, `cpu`, an index by a mask) is an error, as is a tensor left on the host."""

from dataclasses import replace

import pytest
import torch
from plain_tdmpc2 import MULTITASK_SPEC, SMALL, SPEC

from agents.noise import Noise
from agents.protocol import Batch
from agents.tdmpc2 import agent as tdmpc2
from agents.tdmpc2.hyperparameters import Hyperparameters

META = torch.device("meta")
RUNS, N, B, H = 2, 3, 6, 3


class MetaNoise(Noise):
    """There is no generator for the meta device; the draws are otherwise those of a GPU."""

    def __init__(self, seeds, stream, device, sizes=()):
        self.runs, self.device, self.sizes, self.generators = len(seeds), device, sizes, [None]


def on_meta(monkeypatch, spec, **overrides):
    monkeypatch.setattr(tdmpc2, "Noise", MetaNoise)
    agent = tdmpc2.TDMPC2(
        replace(spec, num_envs=N), Hyperparameters(**(SMALL | {"iterations": 1} | overrides)), [1] * RUNS, META
    )
    for optimizer in (agent.optimizer, agent.policy_optimizer):
        for group in optimizer.param_groups:  # the fused kernel knows no meta tensors
            group["fused"], group["foreach"] = False, True
    return agent


@pytest.mark.parametrize(
    ("spec", "overrides"),
    [
        (SPEC, {}),
        (SPEC, {"precision": "bf16"}),
        (SPEC, {"episodic": True, "uncertainty_coef": 0.5}),
        (SPEC, {"preset": "paper", "regression": "continuous"}),
        (SPEC, {"mpc": False, "num_pi_trajs": 0, "layer_norm": False}),
        (MULTITASK_SPEC, {}),
    ],
)
def test_nothing_is_brought_to_the_host(monkeypatch, spec, overrides):
    agent = on_meta(monkeypatch, spec, **overrides)
    task = torch.zeros(RUNS, B, dtype=torch.long, device=META) if spec.tasks else None
    batch = Batch(
        torch.zeros(RUNS, H + 1, B, *spec.obs_shape, device=META),
        torch.zeros(RUNS, H, B, spec.action_size, device=META),
        *(torch.zeros(RUNS, H, B, device=META) for _ in range(2)),
        task=task,
    )
    metrics = agent.update(batch)
    assert {(value.device, value.shape) for value in metrics.values()} == {(META, torch.Size([RUNS]))}
    for explore in (True, False):
        obs, first = torch.zeros(RUNS, N, *spec.obs_shape, device=META), torch.zeros(RUNS, N, device=META) > 0
        action = agent.act(obs, first, explore, *(() if task is None else (task[:, :N],)))
        assert (action.device, action.shape) == (META, (RUNS, N, spec.action_size))


@pytest.mark.parametrize("wait", [float, bool, torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.nonzero])
def test_a_wait_would_be_found(wait):
    with pytest.raises((RuntimeError, NotImplementedError)):
        wait(torch.zeros((), device=META))
