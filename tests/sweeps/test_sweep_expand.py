"""What a sweep file stands for."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baselines.hyperparameters.sac import SAC
from bench.errors import UserError
from bench.tasks import Task
from sweeps import expand, plan

QUICKSTART = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"


def test_quickstart_is_valid() -> None:
    sweep = expand.load(QUICKSTART)
    assert {run.agent for run in sweep.runs} == {"tdmpc2", "sac"}
    assert len(sweep.tasks) >= 3
    assert len({run.seed for run in sweep.runs}) >= 2


def test_agent_forms(write: Callable[[str], Path]) -> None:
    tail = "\ntasks: cup-catch\nseeds: 1\nname: x\n"
    mapping = expand.load(write("agents: {sac: {hidden_dim: 64}, tdmpc2: }" + tail)).runs
    entries = expand.load(write("agents: [{agent: sac, hyperparameters: {hidden_dim: 64}}, tdmpc2]" + tail)).runs
    assert mapping == entries
    assert [(run.agent, run.variant) for run in mapping] == [("sac", "hidden_dim=64"), ("tdmpc2", "default")]
    assert mapping[0].hyperparameters["hidden_dim"] == 64
    assert mapping[0].hyperparameters["tau"] == 0.005  # defaults are written out


def test_overrides_reach_only_agents_that_have_them(write: Callable[[str], Path]) -> None:
    text = (
        "name: x\nagents: [sac, tdmpc2]\ntasks: [cup-catch]\nseeds: [1]\n"
        "overrides: {agent.horizon: 5, agent.batch_size: 32, sac.tau: 1e-2}\n"
    )
    sac, tdmpc2 = expand.load(write(text)).runs
    assert "horizon" not in sac.hyperparameters
    assert (sac.hyperparameters["batch_size"], sac.hyperparameters["tau"]) == (32, 0.01)
    assert (tdmpc2.hyperparameters["batch_size"], tdmpc2.hyperparameters["horizon"]) == (32, 5)
    assert tdmpc2.variant == "horizon=5,batch_size=32"


def test_grid(write: Callable[[str], Path]) -> None:
    text = (
        "name: x\nagents: [sac, {agent: tdmpc2, variant: small, hyperparameters: {model_size: 1}}]\n"
        "tasks: [cup-catch]\nseeds: [1]\ngrid: {tdmpc2.horizon: [3, 5], agent.batch_size: [32, 64]}\n"
    )
    runs = expand.load(write(text)).runs
    assert [run.variant for run in runs] == [
        "batch_size=32",
        "batch_size=64",
        *(f"small,horizon={h},batch_size={b}" for h in (3, 5) for b in (32, 64)),
    ]


def test_presets(write: Callable[[str], Path]) -> None:
    text = "name: x\nagents: [sac, tdmpc2]\ntasks: [cup-catch]\nseeds: 1\n"
    grid = expand.load(write(text + "grid: {sac.preset: [paper, authors]}\n")).runs
    assert [(run.agent, run.variant) for run in grid] == [
        ("sac", "preset=paper"),
        ("sac", "preset=authors"),
        ("tdmpc2", "default"),
    ]
    assert [run.hyperparameters["batch_size"] for run in grid[:2]] == [512, 1024]
    assert grid[0].hash == expand.load(write(text)).runs[0].hash  # a preset is what it stands for, and no more
    everywhere = expand.load(write(text), ["agent.preset=paper"]).runs
    assert [run.variant for run in everywhere] == ["default", "preset=paper"]
    with pytest.raises(UserError, match="unknown preset of sac 'autors': did you mean authors"):
        expand.load(write(text), ["sac.preset=autors"])


def test_budgets_and_exclusions(write: Callable[[str], Path]) -> None:
    text = (
        "name: x\nagents: [sac, tdmpc2]\ntasks: [cup-catch, mw-assembly, cup-catch, pendulum-swingup]\nseeds: 3\n"
        "env_steps: {metaworld: 400, mw-assembly: 501, '*': 2001}\n"
        "exclude: [{agent: sac, task: metaworld}, {seed: [2, 3], task: cup-catch}]\n"
    )
    runs = expand.load(write(text)).runs
    budgets = {run.task: run.budget_env_steps for run in runs}
    assert budgets == {"cup-catch": 2000, "mw-assembly": 500, "pendulum-swingup": 2000}  # whole agent steps
    assert {run.seed for run in runs if run.task == "cup-catch"} == {1}
    assert {run.agent for run in runs if run.task == "mw-assembly"} == {"tdmpc2"}
    assert len(runs) == 2 * 1 + 1 * 3 + 2 * 3


def test_defaults_come_from_the_task(write: Callable[[str], Path]) -> None:
    run = expand.load(write("name: x\nagents: [sac]\ntasks: [mw-assembly]\nseeds: 1\n")).runs[0]
    assert (run.budget_env_steps, run.eval_every_env_steps, run.action_repeat) == (2_000_000, 100_000, 2)


def test_assignments_go_over_the_file(write: Callable[[str], Path]) -> None:
    text = "name: x\nagents: [sac]\ntasks: [cup-catch]\nseeds: 1\noverrides: {agent.tau: 0.1}\n"
    sweep = expand.load(write(text), ["seeds=[4,5]", "resources.slots=3", "agent.tau=0.2", "sac.hidden_dim=8"])
    assert [run.seed for run in sweep.runs] == [4, 5]
    assert sweep.resources.slots == 3
    assert sweep.runs[0].hyperparameters["tau"] == 0.2
    assert sweep.runs[0].hyperparameters["hidden_dim"] == 8
    assert sweep.assignments[0] == "seeds=[4,5]"


def test_long_labels_are_cut_and_stay_apart(write: Callable[[str], Path]) -> None:
    names = ["actor_lr", "critic_lr", "alpha_lr", "init_temperature"]
    text = "name: x\nagents: [sac]\ntasks: [cup-catch]\nseeds: 1\n" + yaml.safe_dump(
        {"overrides": {f"agent.{name}": 0.001234 for name in names}, "grid": {"agent.tau": [0.1, 0.2]}}
    )
    first, second = (run.variant for run in expand.load(write(text)).runs)
    assert first != second
    assert max(len(first), len(second)) < 60


@pytest.mark.whole
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    agents=st.lists(st.sampled_from(["sac", "tdmpc2"]), min_size=1, unique=True),
    tasks=st.lists(st.sampled_from(["cup-catch", "cup-spin", "metaworld", "dmcontrol", "dog-run"]), min_size=1),
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True),
    fleet=st.integers(1, 7),
)
def test_expansion_and_grouping_laws(
    tmp_path: Path, agents: list[str], tasks: list[str], seeds: list[int], sizes: list[int], fleet: int
) -> None:
    """Expanding is deterministic, ids are unique, and fleets split the runs without mixing what cannot be mixed."""
    path = tmp_path / "law.yaml"
    content = {
        "name": "law",
        "agents": agents,
        "tasks": tasks,
        "seeds": seeds,
        "grid": {"agent.batch_size": sizes},
        "resources": {"fleet": fleet},
    }
    path.write_text(yaml.safe_dump(content))
    sweep = expand.load(path)
    assert expand.load(path).runs == sweep.runs
    ids = [run.run_id for run in sweep.runs]
    assert len(set(ids)) == len(ids) == len(agents) * len(sweep.tasks) * len(seeds) * len(sizes)
    fleets = plan.make(sweep, tmp_path / "results").fleets
    assert sorted(itertools.chain.from_iterable(f.run_ids for f in fleets)) == sorted(ids)
    for f in fleets:
        assert len(f.runs) <= fleet
        specs = [run.spec for run in f.runs]
        assert len({spec.model_dump_json(exclude={"task", "seed"}) for spec in specs}) == 1
        assert len({(sweep.tasks[s.task].obs_size, sweep.tasks[s.task].action_size) for s in specs}) == 1


@pytest.mark.parametrize(("text", "value"), [("3e-4", 3e-4), ("1e6", 1_000_000), ("1.5E+2", 150), ("5", 5)])
def test_numbers_are_numbers(text: str, value: float, write: Callable[[str], Path]) -> None:
    """YAML 1.1 takes 3e-4 for a string; a sweep file must not."""
    sweep = expand.load(
        write(f"name: x\nagents: {{tdmpc2: {{vmax: {text}}}}}\ntasks: [cup-catch]\nseeds: 1\nenv_steps: 1e6\n")
    )
    assert sweep.runs[0].hyperparameters["vmax"] == value
    assert sweep.runs[0].budget_env_steps == 1_000_000


def _by_domain(cls: type, task: Task, obs: str) -> dict[str, float]:
    return {"tau": 0.02} if task.domain == "metaworld" else {}


def test_defaults_by_the_task(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What an agent sets by the task is in the run and in its hash, not in its label, and the user's value wins."""
    tail = "tasks: [cup-catch, mw-assembly]\nseeds: 1\n"
    plain = expand.load(write("name: x\nagents: [sac]\n" + tail)).runs
    monkeypatch.setattr(SAC, "task_defaults", classmethod(_by_domain), raising=False)
    runs = expand.load(write("name: x\nagents: [sac]\n" + tail)).runs
    assert [(run.task, run.variant, run.hyperparameters["tau"]) for run in runs] == [
        ("cup-catch", "default", 0.005),
        ("mw-assembly", "default", 0.02),
    ]
    assert runs[0] == plain[0]
    assert runs[1].hash != plain[1].hash
    # 0.005 is the default on one of the tasks alone, so it is part of the label.
    own = expand.load(write("name: x\nagents: {sac: {tau: 0.005}}\n" + tail)).runs
    assert [(run.variant, run.hyperparameters["tau"]) for run in own] == [("tau=0.005", 0.005)] * 2
    assert [run.hash for run in own] == [run.hash for run in plain]


def test_variants_that_meet_on_one_task(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two variants may not be one run; on a task where they are, all but one have to be excluded."""
    monkeypatch.setattr(SAC, "task_defaults", classmethod(_by_domain), raising=False)
    text = "name: x\nagents: [sac, {agent: sac, variant: slow, hyperparameters: {tau: 0.005}}]\ntasks: [%s]\nseeds: 1\n"
    with pytest.raises(UserError, match=r"2 variants of sac have the same hyperparameters on cup-catch: keep or excl"):
        expand.load(write(text % "cup-catch, mw-assembly"))
    assert len(expand.load(write(text % "mw-assembly")).runs) == 2
    excluded = text % "cup-catch, mw-assembly" + "exclude: [{variant: slow, task: cup-catch}]\n"
    assert len(expand.load(write(excluded)).runs) == 3
