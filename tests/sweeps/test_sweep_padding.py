"""Which tasks of different sizes a plan puts into one fleet, where that is asked for."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from bench import tasks
from sweeps import cost, expand, padding, plan, plan_text

TEXT = """\
name: x
agents: [tdmpc2]
tasks: [dmcontrol]
seeds: 3
resources: {fleet: 200, device: cpu, pad: true}
"""


def sizes(fleets: tuple[plan.Fleet, ...]) -> list[int]:
    return [len(fleet.runs) for fleet in fleets]


def test_dmcontrol_is_four_fleets(write: Callable[[str], Path], tmp_path: Path) -> None:
    made = plan.make(expand.load(write(TEXT)), tmp_path)
    assert sizes(made.fleets) == [90, 6, 9, 12]
    assert {run.spec.task.partition("-")[0] for fleet in made.fleets[1:] for run in fleet.runs} == {
        "quadruped", "humanoid", "dog",
    }  # fmt: skip
    plain = plan.make(expand.load(write(TEXT), ["resources.pad=false"]), tmp_path)
    assert len(plain.fleets) == 15
    assert sorted(run for fleet in made.fleets for run in fleet.run_ids) == sorted(
        run for fleet in plain.fleets for run in fleet.run_ids
    )
    out = io.StringIO()
    costs = cost.cost(made.fleets, "cpu", [])
    plan_text.show(Console(file=out, width=200), made, costs, cost.total(made, costs, "cpu", []))
    assert "1 fleet of 90 runs; as the sweep file asks; padded to observations of 24 and actions of 6" in out.getvalue()
    assert "3 fleets of 6 to 12 runs; as the sweep file asks\n" in out.getvalue()
    assert made.fleets[0].title() == "tdmpc2 30 tasks (pendulum-swingup …) seeds 1,2,3"


def test_fleets_are_cut_by_size_so_that_they_pad_little(write: Callable[[str], Path], tmp_path: Path) -> None:
    fleets = plan.make(expand.load(write(TEXT), ["resources.fleet=20"]), tmp_path).fleets
    assert sizes(fleets) == [18, 18, 18, 18, 18, 6, 9, 12]
    padded = [fleet.why.partition("padded to ")[2] for fleet in fleets]
    assert padded == [
        "observations of 5 and actions of 1 numbers",
        "observations of 8 and actions of 3 numbers",
        "observations of 15 and actions of 4 numbers",
        "observations of 17 and actions of 6 numbers",
        "observations of 24 and actions of 6 numbers",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize(
    "changes",
    [["agents=[sac]"], ["agents=[{agent: tdmpc2, obs: rgb}]", "tasks=[cup-catch, cup-spin, reacher-easy]"]],
)
def test_others_are_grouped_as_before(changes: list[str], write: Callable[[str], Path], tmp_path: Path) -> None:
    padded, plain = (
        plan.make(expand.load(write(TEXT), [*changes, f"resources.pad={value}"]), tmp_path).fleets
        for value in ("true", "false")
    )
    assert [fleet.run_ids for fleet in padded] == [fleet.run_ids for fleet in plain]
    assert [fleet.why for fleet in padded] == [fleet.why for fleet in plain]


def test_domains_budgets_and_plans_are_kept_apart(write: Callable[[str], Path], tmp_path: Path) -> None:
    """Humanoid has 21 action dimensions, and so more iterations of the planner than quadruped with 12."""
    text = ["tasks=[quadruped-run, humanoid-run, lift-cube, pick-ycb, stack-cube, turn-faucet, mw-push]", "seeds=1"]
    fleets = plan.make(expand.load(write(TEXT), [*text, "env_steps=1000"]), tmp_path).fleets
    found = [[run.spec.task for run in fleet.runs] for fleet in fleets]
    assert found == [
        ["quadruped-run"], ["humanoid-run"], ["lift-cube", "turn-faucet", "pick-ycb", "stack-cube"], ["mw-push"],
    ]  # fmt: skip
    longer = plan.make(expand.load(write(TEXT), text), tmp_path).fleets
    assert [run.spec.task for fleet in longer for run in fleet.runs if len(fleet.runs) == 1][-1] == "mw-push"
    assert ["pick-ycb"] in [[run.spec.task for run in fleet.runs] for fleet in longer]


def test_no_transition_grows_by_more_than_is_said() -> None:
    for domain in ("dmcontrol", "maniskill", "myosuite"):
        rows = tasks.task_set(domain)
        groups = padding.split([*rows, *rows])
        assert sorted(task.name for group in groups for task in group) == sorted(task.name for task in rows)
        for group in groups:
            assert all(sum(padding.shape(group)) - t.obs_size - t.action_size <= 32 for t in group)
