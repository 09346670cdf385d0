"""Sweeps whose runs start from a checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import UserError
from bench.rundir import RunDir
from sweeps import expand, launch, plan
from sweeps.local import LocalExecutor

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from authors_files import build

TEXT = """\
name: few
agents:
  - {agent: tdmpc2, variant: finetuned, init: INIT, init_task: {cup-catch: 2, '*': 0}}
  - {agent: tdmpc2, variant: scratch}
  - {agent: tdmpc2, init: INIT, hyperparameters: {lr: 1e-3}}
tasks: [cup-catch, cartpole-balance, cartpole-swingup]
seeds: [1, 2]
env_steps: 2000
overrides: {agent.mlp_dim: 24}
resources: {device: cpu, threads: 1}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "some.pt"
    path.parent.mkdir()
    torch.save(build(layout="2023", tasks=5, obs=9, action=4, dims=(16, 24, 16, 2, 3, 12)), path)
    return path


def by_variant(sweep: expand.Sweep, task: str) -> dict[str, Any]:
    return {run.variant: run for run in sweep.runs if (run.task, run.seed) == (task, 1)}


def test_the_checkpoint_settles_the_architecture_and_names_the_run(write: Callable[[str], Path], model: Path) -> None:
    sweep = expand.load(write(TEXT.replace("INIT", str(model))))
    runs = by_variant(sweep, "cup-catch")
    assert list(runs) == ["finetuned", "scratch", "init=some,lr=0.001"]
    widths = {name: (run.hyperparameters["latent_dim"], run.hyperparameters["mlp_dim"]) for name, run in runs.items()}
    assert widths == {"finetuned": (16, 24), "scratch": (512, 24), "init=some,lr=0.001": (16, 24)}
    finetuned = runs["finetuned"].init
    assert (finetuned.embedding, finetuned.task, finetuned.path) == (2, "2", str(model))
    assert by_variant(sweep, "cartpole-balance")["finetuned"].init.embedding == 0
    assert runs["scratch"].init is None
    assert runs["init=some,lr=0.001"].init.embedding == "mean"
    # Those that start alike may train in lockstep.
    sweep = expand.load(sweep.path, ["resources.fleet=8", "tasks=[cartpole-balance, cartpole-swingup]"])
    assert [len(fleet.runs) for fleet in plan.make(sweep, model.parent).fleets] == [4, 4, 4]


def test_planning_reads_no_parameters(write: Callable[[str], Path], model: Path) -> None:
    path = write(TEXT.replace("INIT", str(model)))
    code = (
        "import sys; from pathlib import Path; from sweeps import expand\n"
        f"assert expand.load(Path({str(path)!r})).runs[0].init.sha256\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_checkpoint_it_is_planned_and_not_launched(
    write: Callable[[str], Path], results: Path, model: Path
) -> None:
    model.unlink()
    sweep = expand.load(write(TEXT.replace("INIT", str(model))), (), results)
    made = plan.make(sweep, results)
    assert len(made.runs) == 18
    (line,) = plan.lacking(made.runs)
    assert line.startswith(f"no checkpoint {model}")
    with pytest.raises(UserError, match=r"no checkpoint .*; nothing was started"):
        launch.launch(sweep, results, LocalExecutor())
    with pytest.raises(UserError, match=r"nothing was started"):
        launch.rehearse(sweep, results, LocalExecutor())
    assert not results.exists()


def test_runs_that_have_begun_are_found_when_the_checkpoint_is_gone(
    write: Callable[[str], Path], results: Path, model: Path
) -> None:
    path = write(TEXT.replace("INIT", str(model)))
    before = expand.load(path, (), results)
    begun = [run for run in before.runs if run.task != "cartpole-swingup"]
    for run in begun:
        folder = RunDir.create(results / "few", run)
        folder.checkpoints.mkdir()
        (folder.checkpoints / "0000000100.pt").touch()
    model.rename(model.with_name("elsewhere.pt"))
    after = expand.load(path, (), results)
    known = {run.run_id for run in after.runs}
    assert {run.run_id for run in begun} <= known
    states = plan.make(after, results).runs
    assert plan.lacking(state for state in states if state.spec.task != "cartpole-swingup") == []
    assert len(plan.lacking(states)) == 1, "what has not begun needs it"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent: tdmpc2, variant: f": "agent: sac, variant: f"}, r":3: agents\[0\].init: sac cannot start from"),
        ({"cup-catch: 2": "cup-catch: 7"}, r"has no task number 7: valid are 0 to 4"),
        ({"cup-catch: 2": "cup-catch: cup-spin"}, r"does not name its 5 tasks: give the number of cup-spin"),
        ({"cup-catch: 2": "cup-cach: 2"}, r"agents\[0\].init_task.cup-cach: unknown task or set 'cup-cach'"),
        ({"scratch": "scratch, init_task: 3"}, r":4: agents\[1\].init_task: there is no checkpoint"),
        ({"mlp_dim: 24": "mlp_dim: 32"}, r":9: overrides.agent.mlp_dim: mlp_dim is 24 in the checkpoint"),
        ({"INIT": "sweep.yaml"}, r":3: agents\[0\].init: .* is no file of torch"),
        ({"init: INIT": "init: 3"}, r":3: agents\[0\].init: 3: must be a text"),
    ],
)
def test_a_mistake_is_named_at_its_place(
    changes: dict[str, str], message: str, write: Callable[[str], Path], model: Path
) -> None:
    text = TEXT
    for old, new in changes.items():
        text = text.replace(old, new)
    path = write(text)
    path.write_text(text.replace("sweep.yaml", str(path)).replace("INIT", str(model)))
    with pytest.raises(UserError, match=message):
        expand.load(path)
