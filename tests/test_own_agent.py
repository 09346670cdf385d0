"""The example agent, installed as a package of its own: checked, trained by a sweep beside SAC, reported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "own-agent"

pytestmark = pytest.mark.whole

Bench = Callable[..., subprocess.CompletedProcess[str]]


def run(folder: Path, path: list[Path], *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the example, built from a copy of it."""
    folder = tmp_path_factory.mktemp("own-agent")
    shutil.copytree(EXAMPLE, folder / "source")
    arguments = ("install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder / "site"))
    done = run(folder, [], "-m", "pip", *arguments, str(folder / "source"))
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def bench(tmp_path: Path, site: Path) -> Bench:
    return lambda *arguments: run(tmp_path, [site, ROOT], "-m", "bench", *arguments)


def test_from_a_package_to_a_report(bench: Bench, tmp_path: Path) -> None:
    names = [row["name"] for row in json.loads(bench("agents", "--json").stdout)]
    assert names[-1] == "td3"
    checked = bench("agents", "check", "td3", "hidden_dim=16", "batch_size=8")
    assert checked.returncode == 0, checked.stdout
    assert "td3 (state): no failed of 14" in checked.stdout

    small = ["--set", "env_steps=2400", "--set", "eval_every_env_steps=1200", "--set", "resources.env_workers=0"]
    launched = bench("sweep", "launch", str(EXAMPLE / "sweep.yaml"), "--wait", *small)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "ended: 4 done" in launched.stdout
    assert bench("collect", "results/own-agent", "-o", "tables").returncode == 0
    evals = pd.read_parquet(tmp_path / "tables" / "evals.parquet")
    assert set(evals["agent"]) == {"td3", "sac"}
    assert evals.groupby("agent")["env_steps"].max().to_dict() == {"td3": 2400, "sac": 2400}
    reported = bench("report", "results/own-agent", "-o", "report.html")
    assert reported.returncode == 0, reported.stderr
    assert "td3" in (tmp_path / "report.html").read_text()


def test_by_its_path(bench: Bench, tmp_path: Path) -> None:
    """`module:Class` on the command line and in a sweep file, also in an override."""
    steps = ["--env-steps", "60", "--eval-every-env-steps", "60", "--eval-episodes", "1", "--env-workers", "0"]
    trained = bench("train", "own_td3:TD3", "cartpole-balance", "hidden_dim=16", "seed_agent_steps=10", *steps)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "results" / "train" / "own_td3.TD3" / "cartpole-balance").is_dir()
    (tmp_path / "s.yaml").write_text(
        "name: s\nagents: [own_td3:TD3, sac]\ntasks: [cup-catch]\nseeds: 1\noverrides: {own_td3:TD3.lr: 1e-3}\n"
    )
    planned = json.loads(bench("sweep", "plan", "s.yaml", "--json").stdout)
    assert [(one["agent"], one["variant"]) for one in planned["runs"]] == [
        ("own_td3:TD3", "lr=0.001"),
        ("sac", "default"),
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["td3", "cup-catch", "--obs", "rgb"], "error: unknown observation kind of td3 'rgb': valid are state"),
        (["td3", "cup-catch", "lrr=1"], "error: unknown hyperparameter of td3 'lrr': did you mean lr"),
        (["td3", "cup-catch", "lr=-1"], "error: td3: lr = -1: Input should be greater than 0"),
        (["own_td3:TD4", "cup-catch"], "error: unknown class of own_td3 'TD4': did you mean TD3"),
        (["own_td4:TD3", "cup-catch"], "error: agent 'own_td4:TD3': there is no module own_td4: run in its folder"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, bench: Bench) -> None:
    done = bench("train", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_its_target_is_the_plain_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))
    from own_td3 import TD3, Hyperparameters

    from agents.noise import Noise
    from agents.protocol import AgentSpec

    cpu = torch.device("cpu")
    spec = AgentSpec((3,), "state", 2, 100, 1000)
    agent = TD3(spec, Hyperparameters(hidden_dim=8), [4], cpu)
    obs, reward, terminated = torch.randn(1, 5, 3), torch.randn(1, 5), torch.tensor([[0.0, 1, 0, 1, 0]])
    target = agent.td_target(obs, reward, terminated)
    noise = 0.2 * Noise([4], "learn", cpu).normal(5, 2)[0]
    for i in range(5):
        action = [
            min(max(float(a) + min(max(float(n), -0.5), 0.5), -1), 1)
            for a, n in zip(agent.target_actor(obs[:, i : i + 1]).tanh()[0, 0], noise[i], strict=True)
        ]
        x = torch.cat([obs[0, i], torch.tensor(action)]).expand(2, 1, -1)
        value = 0.0 if terminated[0, i] else 0.99 * float(agent.target_critics(x).min())
        assert float(target[0, i]) == pytest.approx(float(reward[0, i]) + value, abs=1e-5)
