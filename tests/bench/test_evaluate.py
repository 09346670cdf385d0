"""`bench eval`: what a run, a checkpoint or a file of the authors plays, against a plain loop over the environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offline_cases
import pytest
import torch
from pixel_agent import installed
from typer.testing import CliRunner

from agents.registry import resolve_hyperparameters
from bench import checkpoint
from bench.envs import make
from bench.errors import UserError
from bench.failures import EXIT_DONE
from bench.fleet import TrainOptions
from bench.models_cli import app
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.seeding import episode_seed
from bench.tasks import get
from bench.worker import train_runs

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from authors_files import Plain, build
from small_settings import SMALL

TINY = (16, 24, 16, 2, 3, 12)
"""Widths of a file of the authors: encoder, hidden, latent, layers, Q-functions, task embedding."""


def run(*arguments: str) -> Any:
    """The output of a command as JSON; a user's mistake is raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def evaluate(*arguments: str) -> Any:
    return run("eval", *arguments, "--env-workers", "0", "--threads", "1", "--json")


def save(folder: Path, name: str = "cartpole-balance-1.pt", **settings: Any) -> Path:
    torch.save(build(dims=TINY, **({"obs": 5, "action": 1} | settings)), folder / name)
    return folder / name


def rollout(task: str, episode: int, act: Any) -> float:
    """The return of one evaluation episode of `bench eval` with seed 1, by a loop that shares nothing with it."""
    env = make(task)
    obs, _ = env.reset(seed=episode_seed(1, "evaluate/0", 0, episode))
    total, over = 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(act(torch.from_numpy(obs)).numpy())
        total, over = total + float(reward), terminated or truncated
    env.close()
    return total


@pytest.fixture
def brief_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of tasks of 8 and 12 agent steps, two of one shape and one of another."""
    offline_cases.install(monkeypatch)
    yield offline_cases.NAMES
    monkeypatch.undo()
    offline_cases.clear()


def test_the_policy_of_a_file_plays_as_its_tensors_say(brief_tasks: list[str], tmp_path: Path) -> None:
    path = save(tmp_path, f"{brief_tasks[0]}-1.pt")
    result = evaluate(str(path), "mpc=false", "--episodes", "2")
    plain = Plain(torch.load(path, weights_only=True))

    def act(obs: torch.Tensor) -> torch.Tensor:
        return plain.stack("_pi", plain.stack("_encoder.state", obs, simplices=True))[:1].tanh()

    (row,) = result["tasks"]
    assert row["returns"] == pytest.approx([rollout(brief_tasks[0], episode, act) for episode in (0, 1)], rel=1e-3)
    assert row["score"] == pytest.approx(row["return"] / 10)
    assert row["lengths"] == [8, 8]
    assert "layout of 2023" in result["what"]


def test_a_model_of_several_tasks_pads_cuts_and_masks(brief_tasks: list[str], tmp_path: Path) -> None:
    path = save(tmp_path, "three.pt", layout="2023", tasks=3, obs=8, action=2)
    names = [option for task in brief_tasks for option in ("--model-tasks", task)]
    result = evaluate(str(path), "mpc=false", "--episodes", "1", *names)
    assert [row["task"] for row in result["tasks"]] == brief_tasks
    assert result["mean_score"] == pytest.approx(sum(row["score"] for row in result["tasks"]) / 3)
    plain = Plain(torch.load(path, weights_only=True))
    embedding = plain.embed(2)

    def act(obs: torch.Tensor) -> torch.Tensor:
        padded = torch.cat([obs, torch.zeros(3), embedding])
        z = plain.stack("_encoder.state", padded, simplices=True)
        return plain.stack("_pi", torch.cat([z, embedding]))[:1].tanh()

    assert result["tasks"][2]["returns"] == pytest.approx([rollout(brief_tasks[2], 0, act)], rel=1e-3)
    alone = evaluate(str(path), "mpc=false", "--episodes", "1", "--task", brief_tasks[2], *names)
    assert alone["tasks"][0]["returns"] == result["tasks"][2]["returns"]
    with pytest.raises(UserError, match="model of 3 tasks, and cup-spin is none of them"):
        evaluate(str(path), "--task", "cup-spin", *names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other.pt"], "other.pt does not say its task: give --task"),
        (["other.pt", "--task", "cup-catch"], "observations of 5 numbers and gives 1 actions, cup-catch need"),
        (["three.pt"], "model of 3 tasks, which is no published set"),
        (["cartpole-balance-1.pt", "mpcc=false"], "unknown hyperparameter of tdmpc2 'mpcc': did you mean mpc"),
        (["cartpole-balance-1.pt", "mlp_dim=8"], "mlp_dim is settled by the checkpoint"),
        (["cartpole-balance-1.pt", "--task", "cartpole-balance", "--task", "cup-catch"], "does not fit cup-catch"),
        (["nowhere.pt"], "no file nowhere.pt: give a checkpoint"),
        (["."], r"\. is no run directory"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path)
    save(tmp_path, "other.pt")
    save(tmp_path, "three.pt", tasks=3, obs=8, action=2)
    with pytest.raises(UserError, match=message) as caught:
        evaluate(*arguments)
    assert "\n" not in str(caught.value)


def trained(folder: Path, agent: str, **changes: Any) -> RunDir:
    row = get("cartpole-balance")
    spec = RunSpec(
        agent=agent,
        hyperparameters=resolve_hyperparameters(agent, SMALL[agent] | {"seed_agent_steps": 500} | changes),
        task=row.name,
        domain=row.domain,
        domain_version=row.domain_version,
        seed=3,
        action_repeat=row.action_repeat,
        budget_env_steps=1020,
        eval_every_env_steps=1020,
        eval_episodes=1,
    )
    one = RunDir.create(folder, spec)
    assert train_runs([one], TrainOptions(env_workers=0, threads=1), None, lambda: False) == EXIT_DONE
    return one


@pytest.mark.whole
@pytest.mark.parametrize("agent", ["sac", "tdmpc2"])
def test_a_run_and_its_checkpoints(agent: str, tmp_path: Path) -> None:
    one = trained(tmp_path / "runs", agent, **({"mpc": False} if agent == "tdmpc2" else {}))
    first = evaluate(str(one.path), "--episodes", "1", "--seed", "4", "--seed", "5")
    assert [row["seed"] for row in first["tasks"]] == [4, 5]
    assert first["what"] == f"{agent} on cartpole-balance, seed 3, at 1,020 env steps"
    newest = one.checkpoints / f"{checkpoint.saved(one)[-1]:010d}.pt"
    again = evaluate(str(newest), "--episodes", "1", "--seed", "4", "--task", "cartpole-swingup")
    assert [row["task"] for row in again["tasks"]] == ["cartpole-swingup"]
    again = evaluate(str(newest), "--episodes", "1", "--seed", "4", "--seed", "5")
    assert again["tasks"] == first["tasks"]
    with pytest.raises(UserError, match=r"trained on cartpole-balance .* does not fit cup-catch"):
        evaluate(str(one.path), "--task", "cup-catch")
    (tmp_path / "moved.pt").write_bytes(newest.read_bytes())
    with pytest.raises(UserError, match="leave it in its run directory"):
        evaluate(str(tmp_path / "moved.pt"))
    if agent == "sac":
        with pytest.raises(UserError, match="only tdmpc2 has a layout"):
            run("models", "export", str(one.path), "-o", str(tmp_path / "out.pt"))
        return
    policy = evaluate(str(one.path), "--episodes", "1")
    planned = evaluate(str(one.path), "mpc=true", "horizon=2", "--episodes", "1")
    assert planned["tasks"][0]["returns"] != policy["tasks"][0]["returns"]
    exported = tmp_path / "out" / "cartpole-balance-3.pt"
    assert CliRunner().invoke(app, ["models", "export", str(one.path), "-o", str(exported)]).exit_code == 0
    facts = run("models", "show", str(exported), "--json")
    assert (facts["layout"], facts["obs_size"], facts["mlp_dim"], facts["tasks"]) == ("2025", 5, 16, 1)
    assert evaluate(str(exported), "mpc=false", "--episodes", "1")["tasks"] == policy["tasks"]
    with pytest.raises(UserError, match=r"does not fit with mlp_dim=8: .*shape"):
        evaluate(str(one.path), "mlp_dim=8")
    for file in one.checkpoints.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no intact checkpoint yet"):
        evaluate(str(one.path))


@pytest.fixture
def brief_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The task brief-balance, of 20 agent steps, that another package brings."""
    with installed(tmp_path / "site", monkeypatch):
        yield


@pytest.mark.whole
@pytest.mark.usefixtures("brief_task")
@pytest.mark.parametrize("rgb", [False, True])
def test_a_table_and_a_video(rgb: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.envs.rendering import choose_backend

    try:
        choose_backend()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("bench.evaluation.VIDEO_PIXELS", 32)
    if rgb:
        torch.save(build(5, "2025", rgb=True, action=1), tmp_path / "brief-balance-1.pt")
    else:
        save(tmp_path, "brief-balance-1.pt")
    arguments = [str(tmp_path / "brief-balance-1.pt"), "mpc=false", "--episodes", "1", "--env-workers", "1"]
    result = CliRunner().invoke(app, ["eval", *arguments, "--video", str(tmp_path / "videos")], catch_exceptions=False)
    assert result.exit_code == 0
    task, seed, episodes, *_, length = result.stdout.splitlines()[2].split()
    assert (task, seed, episodes, length) == ("brief-balance", "1", "1", "20")
    assert (tmp_path / "videos" / "brief-balance-seed1.mp4").stat().st_size > 500
