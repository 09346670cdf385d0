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
    assert value["replay_bytes"] > 0


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
