"""The training loop: an interrupted run equals one that never was, fleets equal single runs, failures stay apart."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.registry import resolve_hyperparameters
from bench import checkpoint
from bench.collector import Collector
from bench.errors import UserError
from bench.evaluation import Evaluator
from bench.failures import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED
from bench.fleet import TrainOptions
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.tasks import get
from bench.worker import lockstep_groups, train_runs

pytestmark = pytest.mark.whole

TINY: dict[str, dict[str, Any]] = {
    "tdmpc2": {
        "enc_dim": 16, "mlp_dim": 16, "latent_dim": 16, "num_q": 2, "num_samples": 16, "num_elites": 4,
        "num_pi_trajs": 2, "iterations": 1, "batch_size": 8, "seed_agent_steps": 500,
    },
    "sac": {"hidden_dim": 16, "batch_size": 8, "seed_agent_steps": 300},
}  # fmt: skip


def spec(agent: str, seed: int = 1, task: str = "cartpole-balance", **changes: Any) -> RunSpec:
    row = get(task)
    values: dict[str, Any] = {
        "agent": agent,
        "hyperparameters": resolve_hyperparameters(agent, TINY[agent]),
        "task": task,
        "domain": row.domain,
        "domain_version": row.domain_version,
        "seed": seed,
        "action_repeat": row.action_repeat,
        "budget_env_steps": 1400,
        "eval_every_env_steps": 700,
        "eval_episodes": 2,
    }
    return RunSpec(**(values | changes))


def options(**changes: Any) -> TrainOptions:
    return TrainOptions(**({"env_workers": 0, "threads": 1, "keep_replay": True} | changes))


def never() -> bool:
    return False


def after(calls: int) -> Callable[[], bool]:
    """An interruption at the given safe point."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def evaluations(run: RunDir) -> list[dict[str, str]]:
    """eval.csv without the times, which no two runs share."""
    with run.eval_csv.open() as file:
        return [{key: value for key, value in row.items() if key != "wall_s"} for row in csv.DictReader(file)]


def train(folder: Path, specs: list[RunSpec], **changes: Any) -> list[RunDir]:
    runs = [RunDir.create(folder, one) for one in specs]
    assert train_runs(runs, options(**changes), None, never) == EXIT_DONE
    return runs


@pytest.mark.parametrize("agent", sorted(TINY))
def test_an_interrupted_run_equals_one_that_never_was(agent: str, tmp_path: Path) -> None:
    (whole,) = train(tmp_path / "whole", [spec(agent)])
    rows = evaluations(whole)
    assert [row["env_steps"] for row in rows[::2]] == ["0", "700", "1400"]
    assert {row["length"] for row in rows} == {"500"}

    run = RunDir.create(tmp_path / "parts", spec(agent))
    # Before anything, in the first evaluation, after it, mid-episode, in the second evaluation, past the burst, ...;
    # in some attempts environments step in a process of their own, while the learner updates.
    for calls, env_workers in ((1, 0), (250, 0), (520, 1), (30, 0), (400, 1), (655, 0), (100, 1)):
        assert train_runs([run], options(env_workers=env_workers), None, after(calls)) == EXIT_INTERRUPTED
        assert run.progress().state == "pending"
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert evaluations(run) == rows
    final = [checkpoint.load(one, 700) for one in (whole, run)]
    assert final[0] is not None
    assert final[1] is not None
    for part in ("agent", "replay", "collector", "random_actions"):
        assert_equal(final[0][part], final[1][part], part)
    assert len(run.info()["attempts"]) == 8
    done = run.read_json("done.json")
    assert done is not None
    assert 0 < done["env_wait_share"] < 1


def test_an_interrupted_evaluation_is_done_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops within a step, and the run goes on from the checkpoint right before it."""
    short = spec("tdmpc2", budget_env_steps=100, eval_every_env_steps=50, eval_episodes=1)
    (whole,) = train(tmp_path / "whole", [short])
    run = RunDir.create(tmp_path / "parts", short)
    begun: list[int] = []
    evaluate = Evaluator.evaluate

    def stops_in_it(self: Evaluator, agent: Any, device: torch.device, agent_steps: int) -> Any:
        begun.append(agent_steps)
        self.interrupted = after(100)
        return evaluate(self, agent, device, agent_steps)

    for agent_steps in (0, 25, 50):
        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "evaluate", stops_in_it)
            assert train_runs([run], options(), None, never) == EXIT_INTERRUPTED
        assert begun.pop() == agent_steps
        assert checkpoint.saved(run)[-1] == agent_steps
        if agent_steps < 50:  # just past this evaluation, so that it counts
            assert train_runs([run], options(), None, after(502)) == EXIT_INTERRUPTED
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert evaluations(run) == evaluations(whole)


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Every tensor and number the same, bit for bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_equal(one, other, f"{where}[{number}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


@pytest.mark.parametrize("agent", sorted(TINY))
def test_a_fleet_gives_what_single_runs_give(agent: str, tmp_path: Path) -> None:
    """Same seeds, same returns: how runs are grouped is no part of a result (to float tolerance, on a CPU)."""
    # A low learning rate, for training amplifies differences in the last digit.
    rates = {"tdmpc2": {"lr": 1e-5}, "sac": {"actor_lr": 1e-6, "critic_lr": 1e-6, "alpha_lr": 1e-6}}[agent]
    slow = resolve_hyperparameters(agent, TINY[agent] | rates)
    changes = {"hyperparameters": slow, "eval_every_env_steps": 1100, "eval_episodes": 1, "budget_env_steps": 1100}
    specs = [spec(agent, seed, **changes) for seed in (1, 2)]
    fleet = train(tmp_path / "fleet", specs)
    for one, together in zip(specs, fleet, strict=True):
        (alone,) = train(tmp_path / "single", [one])
        for left, right in zip(evaluations(alone), evaluations(together), strict=True):
            assert float(left["return"]) == pytest.approx(float(right["return"]), rel=0.02)
    returns = [evaluations(run)[-1]["return"] for run in fleet]
    assert returns[0] != returns[1]


def test_a_fleet_killed_between_its_checkpoints_stays_together(tmp_path: Path) -> None:
    specs = [spec("sac", seed) for seed in (1, 2)]
    whole = train(tmp_path / "whole", specs)
    runs = [RunDir.create(tmp_path / "parts", one) for one in specs]
    for calls in (450, 150):
        assert train_runs(runs, options(), None, after(calls)) == EXIT_INTERRUPTED
    newest = checkpoint.saved(runs[1])[-1]
    (runs[1].checkpoints / f"{newest:010d}.pt").unlink()
    assert lockstep_groups(runs) == [runs]
    assert train_runs(runs, options(), None, never) == EXIT_DONE
    for one, other in zip(whole, runs, strict=True):
        assert evaluations(one) == evaluations(other)


def test_several_environments_for_each_run_resume_too(tmp_path: Path) -> None:
    phase = resolve_hyperparameters("tdmpc2", TINY["tdmpc2"] | {"seed_agent_steps": 1500})
    changes = {"eval_every_env_steps": 3080, "eval_episodes": 1, "budget_env_steps": 3080}
    one = spec("tdmpc2", num_envs=3, hyperparameters=phase, **changes)
    (whole,) = train(tmp_path / "whole", [one])
    run = RunDir.create(tmp_path / "parts", one)
    for calls in (502, 5):
        assert train_runs([run], options(), None, after(calls)) == EXIT_INTERRUPTED
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert evaluations(run) == evaluations(whole)


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    often, seldom = (
        train(tmp_path / name, [spec("sac", eval_every_env_steps=every, eval_episodes=1)])[0]
        for name, every in (("often", 200), ("seldom", 1400))
    )
    states = [checkpoint.load(run, 700) for run in (often, seldom)]
    assert states[0] is not None
    assert states[1] is not None
    for part in ("replay", "collector", "random_actions"):
        assert_equal(states[0][part], states[1][part], part)
    assert_equal(states[0]["agent"], states[1]["agent"], "agent")


def test_a_run_that_turns_nan_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from baselines.sac import SAC

    specs = [spec("sac", seed, eval_episodes=1) for seed in (1, 2, 3)]
    alone = train(tmp_path / "alone", [specs[0], specs[2]])
    act = SAC.act

    def poisoned(self: Any, obs: torch.Tensor, first: torch.Tensor, explore: bool) -> torch.Tensor:
        action = act(self, obs, first, explore)
        if explore and action.shape[0] == 3:
            poisoned.calls += 1  # type: ignore[attr-defined]
            if poisoned.calls > 150:  # type: ignore[attr-defined]
                action[1] = float("nan")
        return action

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(SAC, "act", poisoned)
    runs = [RunDir.create(tmp_path / "fleet", one) for one in specs]
    assert train_runs(runs, options(), None, never) == EXIT_FAILED
    assert [run.progress().state for run in runs] == ["done", "failed", "done"]
    failed = runs[1].read_json("failed.json")
    assert failed is not None
    assert failed["class"] == "NaNError"
    assert "not a number at agent step 45" in failed["message"]
    for one, other in zip(alone, (runs[0], runs[2]), strict=True):
        for left, right in zip(evaluations(one), evaluations(other), strict=True):
            assert float(left["return"]) == pytest.approx(float(right["return"]), rel=0.02)


def test_a_bug_in_the_agent_is_recorded_and_a_second_try_clears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from baselines.sac import SAC

    def broken(self: Any, batch: Any) -> Any:
        raise IndexError("the agent has a bug")

    run = RunDir.create(tmp_path, spec("sac", budget_env_steps=800, eval_every_env_steps=800))
    with monkeypatch.context() as patch:
        patch.setattr(SAC, "update", broken)
        assert train_runs([run], options(), None, never) == EXIT_FAILED
    failed = run.read_json("failed.json")
    assert failed is not None
    assert (failed["class"], failed["message"]) == ("IndexError", "the agent has a bug")
    assert "in broken" in failed["traceback"]
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert run.progress().state == "done"


def test_a_finished_run_can_be_extended_only_with_its_replay(tmp_path: Path) -> None:
    short = spec("sac", budget_env_steps=700)
    (whole,) = train(tmp_path / "whole", [spec("sac")])
    (run,) = train(tmp_path / "extended", [short])
    run.update_spec(spec("sac"))
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert evaluations(run) == evaluations(whole)

    (gone,) = train(tmp_path / "gone", [short], keep_replay=False)
    assert not gone.replay.exists()
    gone.update_spec(spec("sac"))
    with pytest.raises(UserError, match="keep-replay"):
        train_runs([gone], options(), None, never)


@pytest.mark.parametrize("agent", sorted(TINY))
def test_killed_with_sigkill_at_random_moments(agent: str, tmp_path: Path) -> None:
    (whole,) = train(tmp_path / "whole", [spec(agent)])
    run = RunDir.create(tmp_path / "killed", spec(agent))
    arguments = ["worker", str(run.path), "--env-workers", "1", "--threads", "1", "--checkpoint-every-s", "0.3"]
    rng, deaths, begun = random.Random(7), 0, 0
    while True:
        child = subprocess.Popen([sys.executable, "-m", "bench", *arguments], stdout=subprocess.PIPE)
        if deaths < 4:
            # Not while Python is still importing: wait until this attempt has been entered in run.json.
            while child.poll() is None and len(run.info()["attempts"]) == begun:
                time.sleep(0.02)
            time.sleep(rng.uniform(0.2, 3.0))
        if deaths < 4 and child.poll() is None:
            child.send_signal(signal.SIGKILL)
            deaths += 1
        child.communicate()
        begun = len(run.info()["attempts"])
        if child.returncode == EXIT_DONE:
            break
        assert child.returncode == -signal.SIGKILL
    assert deaths >= 2
    assert evaluations(run) == evaluations(whole)


def test_sigterm_checkpoints_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "bench", "train", "sac", "cartpole-balance", "hidden_dim=16", "batch_size=8",
        "--env-steps", "60000", "--eval-every-env-steps", "60000", "--eval-episodes", "1", "--results", str(tmp_path),
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not any(json.loads(path.read_text())["env_steps"] for path in tmp_path.rglob("heartbeat")):
        assert child.poll() is None
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == EXIT_INTERRUPTED, out
    assert "the same command goes on" in out
    (run,) = (RunDir(path.parent) for path in tmp_path.rglob("run.json"))
    assert checkpoint.saved(run)[-1] > 0
    assert run.progress().state == "pending"


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """On a file system of its own, with room for the start of a run only; then the room is made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        (whole,) = train(tmp_path / "whole", [spec("sac")])
        run = RunDir.create(disk, spec("sac"))
        filler = disk / "filler"
        free = shutil.disk_usage(disk).free
        filler.write_bytes(b"x" * free)
        with pytest.raises(UserError, match=r"cannot write .*No space left on device; mend that and run again"):
            train_runs([run], options(), None, never)
        filler.unlink()
        assert train_runs([run], options(), None, lambda: True) == EXIT_INTERRUPTED  # it begins, and notes the code
        free = shutil.disk_usage(disk).free
        filler.write_bytes(b"x" * (free - 24_000))
        assert train_runs([run], options(checkpoint_every_s=0.2), None, never) == EXIT_FAILED
        assert run.progress().state != "done"
        json.loads(run.run_json.read_text())
        filler.unlink()
        assert train_runs([run], options(), None, never) == EXIT_DONE
        assert evaluations(run) == evaluations(whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_short_run_whose_losses_are_not_numbers_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends before any row of train.csv would have shown them."""
    from baselines.sac import SAC

    update = SAC.update

    def poisoned(self: Any, batch: Any) -> Any:
        return {name: value * float("nan") for name, value in update(self, batch).items()}

    monkeypatch.setattr(SAC, "update", poisoned)
    short = spec("sac", budget_env_steps=720, eval_every_env_steps=720, eval_episodes=1)
    run = RunDir.create(tmp_path, short)
    assert train_runs([run], options(), None, never) == EXIT_FAILED
    failure = run.read_json("failed.json") or {}
    assert failure["class"] == "NaNError"
    assert "a loss is not a number" in failure["message"]
    assert not (run.path / "done.json").exists()


def test_rewards_beyond_the_two_hot_range_are_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Collector.receive

    def huge(self: Collector) -> Any:
        step = receive(self)
        return replace(step, reward=step.reward + np.float32(1e6))

    monkeypatch.setattr(Collector, "receive", huge)
    run = RunDir.create(tmp_path, spec("tdmpc2"))
    with pytest.warns(UserWarning, match=r"a reward of 1e\+06 is beyond what TDMPC2 can represent") as said:
        assert train_runs([run], options(), None, after(600)) == EXIT_INTERRUPTED
    assert len([one for one in said if "-22,025 to 22,025" in str(one.message)]) == 1
