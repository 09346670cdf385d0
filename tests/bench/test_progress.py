"""The progress of a fleet: a rate only where there is one, and a line that a person can follow."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import progress
from bench.rundir import RunDir
from bench.runspec import RunSpec


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_rate_line_and_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    spec = RunSpec(
        agent="sac", hyperparameters={}, task="cup-catch", domain="dmcontrol", domain_version="v", seed=3,
        action_repeat=2, budget_env_steps=8000, eval_every_env_steps=1000,
    )  # fmt: skip
    run = RunDir.create(tmp_path, spec)
    out = io.StringIO()
    monitor = progress.Monitor([run], torch.device("cpu"), Console(file=out, width=200))
    monitor.tick(0, [0.0])
    assert monitor.rate is None, "nothing to go by yet"
    for number in range(1, 11):
        clock.now = 5.0 * number
        monitor.tick(100 * number, [clock.now])
    assert monitor.rate == pytest.approx(20.0)
    for number in range(11, 14):
        clock.now = 5.0 * number
        monitor.tick(1000, [clock.now])
    assert monitor.rate is None, "a burst of updates says nothing about the rate"
    for number in range(14, 40):
        clock.now = 5.0 * number
        monitor.tick(1000 + 50 * (number - 13), [clock.now])
    assert monitor.rate == pytest.approx(10.0), "the last minute counts"
    monitor.eval_return(0, 812.4)
    clock.now += 20
    monitor.tick(2350, [clock.now])
    line = out.getvalue().splitlines()[-1]
    assert line.startswith("sac cup-catch seed 3: 4,700/8,000 env steps · return 812 · ")
    assert line.endswith("ETA 3:40"), "1,650 agent steps at 7.5 a second"
    beat = json.loads((run.path / "heartbeat").read_text())
    assert (beat["env_steps"], beat["return"], beat["ended"]) == (4700, 812.4, False)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3600, "1:00:00"), (86399.6, "24:00:00")])
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
