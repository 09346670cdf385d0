"""The sweeps that come with the suite: each is planned without a mistake, with its cost, and quickly."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from bench.tasks import built_in, task_set
from sweeps import cost, expand, plan

FOLDER = Path(__file__).parents[2] / "sweeps"
SHIPPED = sorted(FOLDER.glob("*.yaml"))
MOST_S = 5.0


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_sweep_is_planned_quickly_with_its_cost(file: Path, tmp_path: Path) -> None:
    began = time.process_time()  # not the wall's: tests run side by side
    sweep = expand.load(file)
    made = plan.make(sweep, tmp_path)
    costs = cost.cost(made.fleets, "cpu", [])
    total = cost.total(made, costs, "cpu", [])
    value = cost.plan_json(made, costs, total)
    assert time.process_time() - began < MOST_S
    assert sweep.name == file.stem
    assert value["agent_steps"] == sum(run.budget_agent_steps for run in sweep.runs)
    assert value["fleets_of_unknown_cost"] == len(made.fleets)  # nothing was measured below this folder
    offline = all(run.offline is not None for run in sweep.runs)
    assert value["updates"] == sum(run.budget for run in sweep.runs if offline)
    assert (value["replay_bytes"] > 0) == (not offline)


def test_paper_state_is_the_papers_protocol() -> None:
    sweep = expand.load(FOLDER / "paper-state.yaml")
    assert len(sweep.runs) == 4 * 104 * 3
    assert {run.agent for run in sweep.runs} == {"tdmpc2", "tdmpc", "sac", "dreamerv3"}
    assert {run.obs for run in sweep.runs} == {"state"}
    assert {run.task for run in sweep.runs} == {task.name for task in built_in()}
    budgets = {run.task: run.budget_env_steps for run in sweep.runs}
    some = ("walker-run", "dog-run", "humanoid-walk", "mw-reach", "lift-cube", "pick-ycb", "myo-pose")
    assert [budgets[name] for name in some] == [4e6, 14e6, 14e6, 2e6, 4e6, 14e6, 2e6]
    assert {run.eval_every_env_steps // run.action_repeat for run in sweep.runs} == {50_000}
    assert {run.eval_episodes for run in sweep.runs} == {10}


def test_paper_visual_is_the_papers_protocol() -> None:
    sweep = expand.load(FOLDER / "paper-visual.yaml")
    assert len(sweep.runs) == 5 * 10 * 3
    assert {run.agent for run in sweep.runs} == {"tdmpc2", "dreamerv3", "drqv2", "curl", "tdmpc"}
    assert {(run.obs, run.budget_env_steps) for run in sweep.runs} == {("rgb", 2_000_000)}


@pytest.mark.parametrize(("name", "tasks"), [("mt30", 30), ("mt80", 80)])
def test_multitask_is_the_papers_protocol(
    name: str, tasks: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Five sizes, batches of 1024, 10 million updates; planned without the data set."""
    monkeypatch.chdir(tmp_path)
    sweep = expand.load(FOLDER / f"{name}.yaml")
    assert [run.hyperparameters["model_size"] for run in sweep.runs] == [1, 5, 19, 48, 317]
    for run in sweep.runs:
        assert run.offline is not None
        assert run.offline.tasks == tuple(task.name for task in task_set(name))
        assert (run.task, len(run.tasks), run.eval_episodes) == (name, tasks, 10)
        assert (run.offline.updates, run.offline.eval_every_updates) == (10_000_000, 50_000)
        assert run.hyperparameters["batch_size"] == 1024
    widths = [(run.hyperparameters["task_dim"], run.hyperparameters["latent_dim"]) for run in sweep.runs]
    mt30 = [(96, 128), (64, 512), (64, 512), (64, 768), (96, 1376)]
    assert widths == (mt30 if name == "mt30" else [(96, 128), (96, 512), (96, 768), (96, 768), (96, 1376)])
    (line,) = plan.lacking(plan.make(sweep, tmp_path).runs)
    assert "results/data/" in line


def test_finetune_is_the_papers_protocol(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few-shot learning of ten held-out tasks, finetuned beside from scratch; planned without the checkpoint."""
    monkeypatch.chdir(tmp_path)
    sweep = expand.load(FOLDER / "finetune.yaml")
    assert len(sweep.runs) == 2 * 10 * 3
    assert Counter(run.domain for run in sweep.runs) == {"dmcontrol": 30, "metaworld": 30}
    assert {run.task for run in sweep.runs} <= {task.name for task in task_set("mt80")}
    assert {(run.budget_env_steps, run.hyperparameters["model_size"]) for run in sweep.runs} == {(20_000, 19)}
    assert {run.variant: run.init is not None for run in sweep.runs} == {"finetuned": True, "scratch": False}
    (line,) = plan.lacking(plan.make(sweep, tmp_path).runs)
    assert line.endswith("`bench models download mt70-19M` gets it")
