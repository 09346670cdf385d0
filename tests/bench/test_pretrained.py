"""Starting a run from a checkpoint: what is known of it before it is loaded, and what becomes of a run without it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import after, evaluations, never, options
from typer.testing import CliRunner

from agents.registry import resolve_hyperparameters
from agents.tdmpc2.checkpoints import AuthorsFile
from bench import checkpoint, pretrained
from bench.cli import app
from bench.errors import UserError
from bench.failures import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED
from bench.pretrained import Pretrained, Source
from bench.rundir import RunDir
from bench.runspec import Init, RunSpec
from bench.tasks import get, task_set
from bench.worker import train_runs

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from authors_files import Plain, build

TINY = (16, 24, 16, 2, 3, 12)
SMALL = {"num_samples": 16, "num_elites": 4, "num_pi_trajs": 2, "iterations": 1, "batch_size": 8}
BALANCE, SWINGUP, REACH = get("cartpole-balance"), get("cartpole-swingup"), get("mw-reach")


def save(path: Path, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(build(**({"dims": TINY, "tasks": 5, "obs": 9, "action": 4} | settings)), path)
    return path


def finetuned(
    source: Source, task: Any = REACH, seed: int = 1, init_task: str | None = "3", **overrides: Any
) -> RunSpec:
    hyperparameters, init = source.resolve(SMALL | {"seed_agent_steps": 100} | overrides, task, "state", init_task)
    return RunSpec(
        agent="tdmpc2",
        hyperparameters=hyperparameters,
        task=task.name,
        domain=task.domain,
        domain_version=task.domain_version,
        seed=seed,
        action_repeat=2,
        budget_env_steps=240,
        eval_every_env_steps=240,
        eval_episodes=1,
        init=init,
    )


# What is known before anything is loaded


@pytest.mark.parametrize("layout", ["2023", "2024", "2025"])
@pytest.mark.parametrize(
    "settings", [{}, {"tasks": 0}, {"rgb": True, "tasks": 0, "action": 2, "dims": None, "size": 5}]
)
def test_the_shapes_say_what_the_loaded_file_says(layout: str, settings: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", layout=layout, **settings)
    known, loaded = Pretrained.look_up(path), AuthorsFile.read(path)
    assert known.architecture.items() >= loaded.architecture.items()
    assert (known.obs, known.num_tasks, known.tasks) == (loaded.obs_kind, loaded.num_tasks, ())
    assert Source(path, tmp_path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_looking_up_loads_no_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt")
    code = (
        "import sys; from pathlib import Path; from bench.pretrained import Source\n"
        f"assert Source(Path({str(path)!r}), Path('.')).model.num_tasks == 5\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_published_set_names_its_tasks(tmp_path: Path) -> None:
    known = Pretrained.look_up(save(tmp_path / "x.pt", tasks=30, obs=24, action=6))
    assert known.tasks == tuple(task.name for task in task_set("mt30"))
    assert known.embedding("cup-catch", SWINGUP) == known.tasks.index("cup-catch")
    assert known.embedding("7", SWINGUP) == 7
    assert known.embedding(None, SWINGUP) == known.tasks.index("cartpole-swingup"), "a task of its own has a row"
    assert known.embedding(None, get("mw-reach")) == "mean"
    with pytest.raises(UserError, match=r"unknown task of .*x.pt 'cup-cach': did you mean cup-catch"):
        known.embedding("cup-cach", SWINGUP)


def test_the_architecture_is_the_checkpoints(tmp_path: Path) -> None:
    source = Source(save(tmp_path / "x.pt"), tmp_path)
    hyperparameters, init = source.resolve({"lr": 1e-3, "mlp_dim": 24}, BALANCE, "state", "3")
    expected = {"enc_dim": 16, "mlp_dim": 24, "latent_dim": 16, "num_q": 3, "task_dim": 12, "lr": 1e-3}
    assert hyperparameters.items() >= expected.items()
    assert (init.embedding, init.task, init.path) == (3, "3", str(tmp_path / "x.pt"))
    for mistake, words in (({"mlp_dim": 32}, "mlp_dim is 24 in"), ({"layer_norm": False}, "layer_norm is True in")):
        with pytest.raises(UserError, match=words):
            source.resolve(mistake, BALANCE, "state", None)
    with pytest.raises(UserError, match="a model of state observations, not of rgb"):
        source.resolve({}, BALANCE, "rgb", None)


def test_a_run_of_ones_own_is_looked_up_by_its_specification(tmp_path: Path) -> None:
    hyperparameters = resolve_hyperparameters("tdmpc2", {"mlp_dim": 40, "lr": 1e-3})
    common = {"domain": "dmcontrol", "domain_version": "v", "seed": 1, "action_repeat": 2}
    steps = {"budget_env_steps": 10, "eval_every_env_steps": 10, "task": "cup-catch"}
    for embedding, tasks in ((None, ()), (4, ("cup-catch",))):
        init = None if embedding is None else Init(sha256="a", embedding=embedding, path="x")
        spec = RunSpec(agent="tdmpc2", hyperparameters=hyperparameters, init=init, **common, **steps)  # type: ignore[arg-type]
        run = RunDir.create(tmp_path, spec)
        with pytest.raises(UserError, match="has no checkpoint yet"):
            Pretrained.look_up(run.path)
        for at in (3, 12):
            checkpoint.save(run, at, {"agent": {}})
        known = Pretrained.look_up(run.path)
        assert known.path == run.checkpoints / "0000000012.pt"
        assert (known.architecture["mlp_dim"], known.tasks, "lr" in known.architecture) == (40, tasks, False)
        assert Pretrained.look_up(run.checkpoints / "0000000003.pt").path.name == "0000000003.pt"
    sac = RunSpec(agent="sac", hyperparameters={}, **common, **steps)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="only a checkpoint of tdmpc2 can be finetuned"):
        Pretrained.look_up(RunDir.create(tmp_path, sac).path)


def test_a_missing_checkpoint_is_told_with_what_gets_it(tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            pretrained.check_here(Source(path, tmp_path).resolve({}, BALANCE, "state", None)[1])
        return str(caught.value)

    assert "`bench models download mt70-19M` gets it" in told(Path("results/models/multitask/mt70-19M.pt"))
    elsewhere = tmp_path / "multitask" / "mt30-1M.pt"
    assert f"`bench models download mt30-1M -o {tmp_path}` gets it" in told(elsewhere)
    assert "give an authors' file (.pt), a run directory" in told(tmp_path / "mine.pt")


def test_a_changed_checkpoint_is_told(tmp_path: Path) -> None:
    _, init = Source(save(tmp_path / "x.pt"), tmp_path).resolve({}, BALANCE, "state", None)
    pretrained.check_unchanged(init)
    save(tmp_path / "x.pt", obs=10)
    with pytest.raises(UserError, match="no longer the checkpoint that the run was made for"):
        pretrained.check_unchanged(init)


# Runs


def train(run: RunDir, interrupt_after: int | None = None) -> int:
    return train_runs([run], options(), None, never if interrupt_after is None else after(interrupt_after))


@pytest.mark.whole
def test_a_run_starts_from_the_checkpoint_and_goes_on_without_it(tmp_path: Path) -> None:
    path = save(tmp_path / "models" / "x.pt")
    source = Source(path, tmp_path)
    whole = RunDir.create(tmp_path / "whole", finetuned(source))
    assert train(whole) == EXIT_DONE
    run = RunDir.create(tmp_path / "parts", finetuned(source))
    assert train(run, interrupt_after=3) == EXIT_INTERRUPTED
    first = checkpoint.load(run, checkpoint.saved(run)[-1])  # in the first evaluation: nothing is learned yet
    assert first is not None
    plain = Plain(torch.load(path, weights_only=True))
    ours = first["agent"]["model"]["encoder.hidden.0.linear.weight"][0]  # (39 observations and the embedding, 16)
    theirs = plain.t["_encoder.state.0.weight"].T
    assert torch.equal(ours, torch.cat([theirs[:9], torch.zeros(30, 16), theirs[9:]]))
    shutil.move(path, tmp_path / "away.pt")
    assert train(run) == EXIT_DONE
    assert evaluations(run) == evaluations(whole)
    # The same command finds the run again, by what it has noted; another one needs the file.
    again = finetuned(Source(path, tmp_path / "parts"))
    assert again.hash == run.spec.hash
    for other in ({"init_task": "2"}, {"task": SWINGUP}):
        lacking = finetuned(Source(path, tmp_path / "parts"), **other).init
        assert lacking is not None
        assert lacking.sha256 == ""


@pytest.mark.whole
def test_without_the_checkpoint_nothing_starts(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt")
    run = RunDir.create(tmp_path / "runs", finetuned(Source(path, tmp_path)))
    path.unlink()
    assert train(run) == EXIT_FAILED
    assert f"no checkpoint {path}" in (run.read_json("failed.json") or {})["message"]
    for arguments, words in (
        (["sac", "cup-catch", "--init", str(path)], "sac cannot start from a checkpoint"),
        (["tdmpc2", "cup-catch", "--init", str(path)], f"no checkpoint {path}"),
        (["tdmpc2", "cup-catch", "--init-task", "cup-spin"], "--init-task cup-spin needs a checkpoint"),
    ):
        with pytest.raises(UserError, match=words):
            CliRunner().invoke(app, ["train", *arguments, "--results", str(tmp_path / "new")], catch_exceptions=False)
    assert not (tmp_path / "new").exists()
