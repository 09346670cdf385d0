"""What the planners of TD-MPC and TD-MPC2 share."""

from __future__ import annotations

import torch

from agents.mppi import warm_start


def test_warm_start_shifts_the_last_plan_and_first_resets_it() -> None:
    last = torch.randn(3, 3, 2, 4)
    first = torch.tensor([[True, False], [False, False], [False, True]])
    start = warm_start(last, first, 3)
    assert start.shape == last.shape
    for run in range(3):
        for env in range(2):
            if first[run, env]:
                assert (start[run, :, env] == 0).all()
            else:
                assert torch.equal(start[run, :2, env], last[run, 1:, env])
                assert (start[run, 2, env] == 0).all()
