"""The training loop from pictures, by a small agent that another package brings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pixel_agent import TASK, installed
from test_training import after, assert_equal, evaluations, never, options

from agents.registry import resolve_hyperparameters
from bench import checkpoint
from bench.envs import agents_pixels, rendering
from bench.errors import UserError
from bench.failures import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED
from bench.replay_log import ReplayLog
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.worker import train_runs

try:
    rendering.choose_backend()
    REASON = ""
except UserError as error:
    REASON = str(error)
pytestmark = [pytest.mark.whole, pytest.mark.skipif(bool(REASON), reason=REASON)]

BUDGET = 50  # agent steps: two and a half episodes of the short task


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with installed(tmp_path / "site", monkeypatch):
        yield


def spec(seed: int = 1, **changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "agent": "pixel",
        "hyperparameters": resolve_hyperparameters("pixel", {}),
        "task": TASK.name,
        "domain": TASK.domain,
        "domain_version": TASK.domain_version,
        "obs": "rgb",
        "seed": seed,
        "action_repeat": TASK.action_repeat,
        "budget_env_steps": 2 * BUDGET,
        "eval_every_env_steps": 60,
        "eval_episodes": 1,
    }
    return RunSpec(**(values | changes))


def train(folder: Path, specs: Sequence[RunSpec], **changes: Any) -> list[RunDir]:
    runs = [RunDir.create(folder, one) for one in specs]
    # Frames come from worker processes: this one has loaded MuJoCo without OpenGL, for other tests.
    assert train_runs(runs, options(env_workers=1, **changes), None, never) == EXIT_DONE
    return runs


def test_an_interrupted_run_equals_one_that_never_was(tmp_path: Path) -> None:
    (whole,) = train(tmp_path / "whole", [spec()])
    rows = evaluations(whole)
    assert [int(row["env_steps"]) for row in rows] == [0, 60, 100]
    assert len({row["return"] for row in rows}) > 1

    run = RunDir.create(tmp_path / "parts", spec())
    for calls in (5, 25, 10):  # in the seed phase, in the second episode, later in it
        assert train_runs([run], options(env_workers=1), None, after(calls)) == EXIT_INTERRUPTED
    assert train_runs([run], options(env_workers=1), None, never) == EXIT_DONE
    assert evaluations(run) == rows
    final = [checkpoint.load(one, BUDGET) for one in (whole, run)]
    assert final[0] is not None
    assert final[1] is not None
    for part in ("agent", "replay", "collector", "random_actions"):
        assert_equal(final[0][part], final[1][part], part)

    log = ReplayLog(run.replay)  # each picture once
    episodes = list(log.read(log.position(), 1000))
    assert [episode.obs.shape for episode in episodes] == [(21, 3, 20, 20)] * 2


def test_fleets_environments_and_videos(tmp_path: Path) -> None:
    """A fleet of two with two environments each gives what single runs do; films leave the runs as they are."""
    specs = [spec(seed, num_envs=2, eval_every_env_steps=2 * BUDGET) for seed in (1, 2)]
    fleet = train(tmp_path / "fleet", specs, video=True)
    for one, together in zip(specs, fleet, strict=True):
        (alone,) = train(tmp_path / "single", [one])
        assert evaluations(alone) == evaluations(together)
        films = sorted(path.name for path in (together.path / "videos").iterdir())
        assert films == [f"{0:010d}.mp4", f"{2 * BUDGET:010d}.mp4"]
    assert evaluations(fleet[0]) != evaluations(fleet[1])


def test_failures_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that turns NaN and one whose environment's process dies fail; each can be tried again."""
    from pixel_agent import PixelAgent

    from bench.collector import Collector

    act, send = PixelAgent.act, Collector.send

    def poisoned(self: Any, obs: Any, first: Any, explore: bool) -> Any:
        action = act(self, obs, first, explore)
        if explore and len(action) == 2:
            action[1] = float("nan")
        return action

    def killed(self: Any, action: Any) -> Any:
        if self.episode.max() >= 1:
            os.kill(self.pool._workers[0].process.pid, signal.SIGKILL)
        return send(self, action)

    runs = [RunDir.create(tmp_path, spec(seed, eval_every_env_steps=2 * BUDGET)) for seed in (1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(PixelAgent, "act", poisoned)
        assert train_runs(runs, options(env_workers=1), None, never) == EXIT_FAILED
    assert [run.progress().state for run in runs] == ["done", "failed"]
    with monkeypatch.context() as patch:
        patch.setattr(Collector, "send", killed)
        assert train_runs(runs[1:], options(env_workers=1), None, never) == EXIT_FAILED
    failed = runs[1].read_json("failed.json")
    assert failed is not None
    assert "brief-balance (environment 0) was killed by SIGKILL" in failed["message"]
    assert train_runs(runs[1:], options(env_workers=1), None, never) == EXIT_DONE


def bench(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, [tmp_path / "site", Path(__file__).parents[1], Path(__file__).parents[2]]))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)


def test_from_the_command_line_in_the_learners_process(tmp_path: Path) -> None:
    budget = ["--eval-every-env-steps", "100", "--eval-episodes", "1", "--env-workers", "0"]
    done = bench(tmp_path, "train", "pixel", "brief-balance", "image_size=12", *budget)
    assert done.returncode == EXIT_DONE, done.stderr
    (run,) = (RunDir(path.parent) for path in (tmp_path / "results").rglob("run.json"))
    assert (run.spec.obs, agents_pixels(run.spec.hyperparameters).obs_shape) == ("rgb", (6, 12, 12))
    assert [row["length"] for row in evaluations(run)] == ["20", "20"]
    timed = bench(tmp_path, "speed", "pixel", "--task", "brief-balance", "--fleet", "1", "--calls", "4")
    assert "pixel on brief-balance from rgb" in timed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "pixel", "cup-catch", "--obs", "state"], "unknown observation kind of pixel 'state': valid are rgb"),
        (["train", "pixel", "mw-push"], "obs=rgb is not to be had for mw-push: domain metaworld gives state"),
        (["train", "pixel", "cup-catch", "image_size=0"], "pictures of size 0, 2 stacked: both must be at least 1"),
        (["sweep", "plan", "s.yaml"], "s.yaml:3: tasks: obs=rgb is not to be had for myo-reach"),
    ],
    ids=" ".join,
)
def test_one_line_before_anything_is_written(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "s.yaml").write_text("name: s\nagents: [pixel]\ntasks: [cup-catch, myo-reach]\nseeds: 1\n")
    done = bench(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()
