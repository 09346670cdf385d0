"""Sweeps of runs that learn offline: one run for all tasks, planned without the data set, launched with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import offline
from bench.errors import UserError
from bench.runspec import RunSpec
from bench.tasks import get
from sweeps import cost, expand, measured, plan
from sweeps.cli import app

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from dataset_files import NAMES, folder_of, mixed

from bench.datasets.convert import convert

TEXT = """\
name: x
data: DATA
agents: [tdmpc2]
grid: {tdmpc2.model_size: [1, 5]}
tasks: [pendulum-swingup, cup-catch]
seeds: 2
updates: 3
eval_every_updates: 3
eval_episodes: 1
resources: {device: cpu, threads: 1, env_workers: 0, fleet: 2}
"""
SMALL = (
    "{enc_dim: 8, mlp_dim: 8, latent_dim: 8, num_q: 2, num_samples: 4, num_elites: 2, num_pi_trajs: 1, iterations: 1}"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    convert(folder_of(tmp_path / "chunks", [mixed([3, 3, 3], 9)]), tmp_path / "set", NAMES)
    return tmp_path / "set"


def test_a_run_for_each_variant_and_seed(write: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    sweep = expand.load(write(TEXT.replace("DATA", str(data))))
    assert [(run.variant, run.seed, run.task, run.budget) for run in sweep.runs] == [
        (f"model_size={size}", seed, "pendulum-swingup+cup-catch", 3) for size in (1, 5) for seed in (1, 2)
    ]
    first = sweep.runs[0]
    assert first.offline is not None
    assert first.offline.tasks == ("pendulum-swingup", "cup-catch")
    assert first.offline.dataset == offline.fingerprint(data, [])
    assert first.hyperparameters["batch_size"] == 1024
    made = plan.make(sweep, tmp_path)
    assert [len(fleet.runs) for fleet in made.fleets] == [2, 2]
    costs = cost.cost(made.fleets, "cpu", [])
    value = cost.plan_json(made, costs, cost.total(made, costs, "cpu", []))
    assert (value["updates"], value["agent_steps"], value["env_steps"], value["lacking"]) == (12, 0, 0, [])
    assert (value["runs"][0]["budget_updates"], value["runs"][0]["env_steps"]) == (3, 0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("env_steps: 5", "env_steps: belongs to learning online: leave it out with data"),
        ("num_envs: 2", "num_envs: belongs to learning online"),
        ("exclude: [{task: cup-catch}]", r"exclude\[0\].task: every run learns all the tasks"),
        ("agents: [sac]", "sac cannot learn several tasks offline: valid are tdmpc2"),
        ("tasks: [walker-walk]", "has no rows of walker-walk"),
        ("grid: {tdmpc2.model_size: [2]}", "model_size"),
        ("agents: [{agent: tdmpc2, obs: rgb}]", "data sets hold states"),
    ],
)
def test_mistakes(write: Callable[[str], Path], data: Path, line: str, message: str) -> None:
    key = line.partition(":")[0]
    kept = [old for old in TEXT.splitlines() if not old.startswith(f"{key}:")]
    if line == "agents: [sac]":
        kept = [old for old in kept if not old.startswith("grid")]
    with pytest.raises(UserError, match=message) as caught:
        expand.load(write("\n".join([*kept, line, ""]).replace("DATA", str(data))))
    assert "\n" not in str(caught.value)


def test_updates_need_data(write: Callable[[str], Path]) -> None:
    text = "name: x\nagents: [sac]\ntasks: [cup-catch]\nseeds: 1\nupdates: 5\n"
    with pytest.raises(UserError, match="updates: belongs to learning offline: give data"):
        expand.load(write(text))


def test_without_the_data_set_it_is_planned_and_not_launched(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(write(TEXT.replace("DATA", "nowhere")))
    shown = CliRunner().invoke(app, ["plan", file])
    assert shown.exit_code == 0
    line = f"the data set {tmp_path / 'nowhere'} is not here: `bench data convert CHUNK_FOLDER"
    assert f"Before a launch: {line}" in shown.output
    for command in (["launch", file], ["launch", file, "--dry-run"], ["status", file]):
        with pytest.raises(UserError, match=line):
            CliRunner().invoke(app, command, catch_exceptions=False)


@pytest.mark.whole
def test_launched_watched_and_measured(write: Callable[[str], Path], data: Path, results: Path) -> None:
    text = TEXT.replace("DATA", str(data)).replace("grid: {tdmpc2.model_size: [1, 5]}\n", "")
    text = text.replace("agents: [tdmpc2]", f"agents: {{tdmpc2: {SMALL}}}") + "overrides: {agent.batch_size: 4}\n"
    file = write(text)
    arguments = [str(file), "--results", str(results)]
    done = CliRunner().invoke(app, ["launch", *arguments, "--wait"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "done at 3 updates, score " in done.output
    status = json.loads(CliRunner().invoke(app, ["status", *arguments, "--json"]).stdout)
    (row,) = status["rows"]
    assert (row["task"], row["updates"], row["budget_updates"]) == ("pendulum-swingup+cup-catch", 6, 6)
    assert status["counts"]["done"] == 2
    table = CliRunner().invoke(app, ["status", str(results / "x")])
    assert "updates" in table.output
    assert "6/6" in table.output
    known = measured.read(results)
    assert len(known) == 2
    assert known[0].is_of(expand.load(file).runs[0])
    one = RunSpec(
        agent="tdmpc2", hyperparameters=expand.load(file).runs[0].hyperparameters, task="cup-catch", seed=1,
        domain="dmcontrol", domain_version=get("cup-catch").domain_version, action_repeat=2, budget_env_steps=10,
        eval_every_env_steps=10,
    )  # fmt: skip
    assert not known[0].is_of(one), "updates a second say nothing of agent steps a second"
