"""The command line as a person meets it: quick, one line for a mistake, JSON for programs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.errors import UserError
from bench.overrides import parse_overrides

READ_COMMANDS = (
    ["--help"],
    ["tasks"],
    ["tasks", "--json"],
    ["agents"],
    ["agents", "--json"],
    ["agents", "show", "sac"],
)


def bench(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("arguments", READ_COMMANDS, ids=" ".join)
def test_read_commands_load_no_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['bench', *{arguments!r}]\n"
        "from bench.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    assert not {'torch', 'mujoco', 'dm_control', 'pandas', 'matplotlib'} & set(sys.modules)\n"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 10, "half a second on a quiet machine"


def test_tasks_as_json() -> None:
    rows = json.loads(bench("tasks", "--set", "visual", "--json").stdout)
    assert len(rows) == 10
    assert {"name", "obs_size", "action_size", "budget_env_steps", "metric", "tags"} <= rows[0].keys()
    table = bench("tasks", "--set", "mt30").stdout
    assert "30 tasks of mt30" in table


def test_agents_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(bench("agents", "--json").stdout)}
    assert {"tdmpc2", "sac"} <= rows.keys()
    horizon = rows["tdmpc2"]["hyperparameters"]["horizon"]
    assert horizon["default"] == 3
    assert all(field["help"] for row in rows.values() for field in row["hyperparameters"].values())


def loads_torch(arguments: list[str], message: str) -> Any:
    """A mistake that is found only by a program that has loaded torch, which takes seconds."""
    return pytest.param(arguments, message, marks=pytest.mark.whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "sacc", "cup-catch"], "error: unknown agent 'sacc': did you mean sac?"),
        (["train", "sac", "cup-cach"], "error: unknown task 'cup-cach': did you mean cup-catch"),
        (["train", "sac", "cup-catch", "tua=1"], "error: unknown hyperparameter of sac 'tua': did you mean "),
        (["train", "sac", "cup-catch", "batch_size=many"], "error: sac: batch_size = 'many': "),
        (["train", "sac", "cup-catch", "batch_size"], "error: 'batch_size' is no override: write key=value"),
        loads_torch(
            ["train", "sac", "cup-catch", "--device", "tpu"], "error: unknown device 'tpu': valid are cpu, cuda"
        ),
        loads_torch(["train", "sac", "cup-catch", "--sink", "tensorbord"], "error: unknown tracker 'tensorbord'"),
        loads_torch(["worker", "nowhere"], "error: nowhere is no run directory: it has no run.json"),
        (["tasks", "--set", "mt3"], "error: unknown task set 'mt3': did you mean mt30"),
        loads_torch(["speed", "sac", "--fleet", "1,x"], "error: --fleet '1,x': give fleet sizes separated by commas"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = bench(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message), done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("checkpoints")), "nothing has started"


def test_overrides_are_yaml() -> None:
    assert parse_overrides(["a=1", "b=1e-3", "c=[1, 2]", "d=true", "e=text"]) == {
        "a": 1,
        "b": "1e-3",
        "c": [1, 2],
        "d": True,
        "e": "text",
    }
    with pytest.raises(UserError, match="no YAML"):
        parse_overrides(["a=[1"])


@pytest.mark.whole
def test_train_with_video_and_tensorboard(tmp_path: Path) -> None:
    from bench.envs.rendering import choose_backend

    try:
        choose_backend()
    except UserError as error:
        pytest.skip(str(error))
    arguments = ["train", "sac", "cartpole-balance", "hidden_dim=16", "batch_size=8", "--env-steps", "1200"]
    arguments += ["--eval-every-env-steps", "1200", "--eval-episodes", "1", "--video", "--sink", "tensorboard"]
    arguments += ["--env-workers", "0"]
    done = bench(*arguments, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (run,) = (path.parent for path in tmp_path.rglob("run.json"))
    assert sorted(path.name for path in (run / "videos").iterdir()) == ["0000000000.mp4", "0000001200.mp4"]
    assert list((run / "tensorboard").glob("events.*"))
    again = bench(*arguments, "--results", str(tmp_path))
    assert again.returncode == 0
    assert again.stdout.startswith("done already")
