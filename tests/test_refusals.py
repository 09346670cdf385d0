"""A command that is refused, or has nothing to do, changes nothing: every folder is compared byte by byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import atomic
from bench.processes import Process

pytestmark = pytest.mark.whole

TRAIN = ("train", "sac", "pendulum-swingup", "--env-steps", "1000", "--eval-every-env-steps", "500")
TINY = ("hidden_dim=8", "batch_size=8", "seed_agent_steps=400", "--threads", "1", "--env-workers", "0")
SWEEP = """\
name: tiny
agents: [{agent: sac, hyperparameters: {hidden_dim: 8, batch_size: 8, seed_agent_steps: 400}}]
tasks: [pendulum-swingup]
seeds: 1
env_steps: 1000
eval_every_env_steps: 500
eval_episodes: 2
resources: {device: cpu, threads: 1, slots: 1, env_workers: 0}
"""


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(Path(__file__).parents[1]), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | path, capture_output=True, text=True, timeout=300)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file and folder: what it holds, and when it last changed."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of `bench train` that is done, and a sweep that is."""
    folder = tmp_path_factory.mktemp("finished")
    trained = bench(folder, *TRAIN, *TINY, "--eval-episodes", "2")
    assert trained.returncode == 0, trained.stderr
    assert "to extend it later, start it with --keep-replay" in trained.stdout
    (folder / "tiny.yaml").write_text(SWEEP)
    launched = bench(folder, "sweep", "launch", "tiny.yaml", "--wait")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    return folder


REFUSED: dict[str, tuple[Sequence[str], str]] = {
    "extended without replay": (
        (*TRAIN[:4], "2000", *TRAIN[5:], *TINY, "--eval-episodes", "2"),
        "its replay was removed, so it cannot continue to 2,000 env steps",
    ),
    "a device that is not here": ((*TRAIN, *TINY, "--seed", "2", "--device", "cuda"), "device cuda is not here"),
    "an unknown device": ((*TRAIN, *TINY, "--seed", "2", "--device", "tpu"), "unknown device 'tpu'"),
    "an unknown tracker": ((*TRAIN, *TINY, "--seed", "2", "--sink", "tensorbord"), "unknown tracker 'tensorbord'"),
    "an unknown hyperparameter": ((*TRAIN, *TINY, "hiden_dim=8"), "hiden_dim"),
    "a start from a checkpoint": (
        (*TRAIN, *TINY, "--seed", "2", "--init", "gone.pt"),
        "sac cannot start from a checkpoint",
    ),
    "a launch of an unknown cluster": (("sweep", "launch", "tiny.yaml", "--cluster", "nowhere"), "nowhere"),
    "a budget below 0": (("sweep", "launch", "tiny.yaml", "--set", "env_steps=-1"), "env_steps"),
    "a report of nothing": (("report", "absent"), "absent"),
    "a comparison with nobody": (("compare", "results/tiny", "--against", "nobody"), "nobody"),
    "a comparison of an unknown agent": (
        ("compare", "results/tiny", "results/train", "-o", "out", "--agent", "none"),
        "none",
    ),
}
NOTHING_TO_DO: dict[str, tuple[Sequence[str], str]] = {
    "done": ((*TRAIN, *TINY, "--eval-episodes", "2"), "done already"),
    "done with other evaluations": (
        (*TRAIN, *TINY, "--eval-episodes", "20"),
        "its evaluations stay as they are: eval_episodes 2, not 20",
    ),
    "done to a smaller budget": ((*TRAIN[:4], "500", *TRAIN[5:], *TINY), "done already"),
    "launched": (("sweep", "launch", "tiny.yaml"), "done already"),
    "cancelled": (("sweep", "cancel", "tiny.yaml"), "nothing to cancel"),
    "retried": (("sweep", "retry", "tiny.yaml"), ""),
    "status": (("sweep", "status", "tiny.yaml"), "1 done"),
    "failures": (("sweep", "failures", "tiny.yaml"), ""),
    "plan": (("sweep", "plan", "tiny.yaml", "--set", "seeds=3"), ""),
    "dry run": (("sweep", "launch", "tiny.yaml", "--set", "seeds=3", "--dry-run"), ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_command_changes_nothing(finished: Path, case: str) -> None:
    arguments, words = REFUSED[case]
    before = contents(finished)
    refused = bench(finished, *arguments)
    assert refused.returncode not in (0, 1), refused.stdout + refused.stderr
    assert words in refused.stderr
    assert contents(finished) == before


@pytest.mark.parametrize("case", NOTHING_TO_DO)
def test_a_command_with_nothing_to_do_changes_nothing(finished: Path, case: str) -> None:
    arguments, words = NOTHING_TO_DO[case]
    before = contents(finished)
    done = bench(finished, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert words in done.stdout
    assert {name: what for name, (what, _) in contents(finished).items()} == {
        name: what for name, (what, _) in before.items()
    }


def test_a_run_that_another_process_trains_keeps_its_budget(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    (run,) = (tmp_path / "copy" / "results" / "train").glob("sac/*/*")
    (run / "done.json").unlink()
    held = {"process": Process.current().to_json(), "token": "another", "job_id": None}
    atomic.write_json(run / "lock", held)
    before = contents(tmp_path)
    refused = bench(tmp_path / "copy", *TRAIN[:4], "2000", *TRAIN[5:], *TINY, "--eval-episodes", "2")
    assert refused.returncode == 2
    assert "is being trained by process" in refused.stderr
    assert contents(tmp_path) == before


def test_a_launch_that_cannot_start_leaves_no_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.errors import UserError
    from sweeps import expand, launch
    from sweeps.local import LocalExecutor

    def refuse(self: LocalExecutor, record: object) -> None:
        raise UserError("refused")

    monkeypatch.setattr(LocalExecutor, "submit", refuse)
    shutil.copytree(finished, tmp_path / "copy")
    sweep = expand.load(tmp_path / "copy" / "tiny.yaml", ["seeds=3"])
    for results in (tmp_path / "copy" / "results", tmp_path / "new" / "results"):
        before = {name: what for name, (what, _) in contents(tmp_path).items()}
        with pytest.raises(UserError, match="refused"):
            launch.launch(sweep, results, LocalExecutor())
        after = {name: what for name, (what, _) in contents(tmp_path).items()}
        after.pop("new", None)
        assert after == before
