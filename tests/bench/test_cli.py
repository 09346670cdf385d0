"""The command line as a person meets it: quick, one line for a mistake, JSON for programs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.__main__ import main
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


class Said(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command in this process: its exit code, and what it wrote."""

    def call(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return Said(int(end.value.code or 0), *capfd.readouterr())

    return call


def test_read_commands_load_no_torch() -> None:
    """All in one process, as most of the time goes into starting it."""
    code = (
        "import sys\n"
        "from bench.__main__ import main\n"
        f"for arguments in {READ_COMMANDS!r}:\n"
        "    sys.argv = ['bench', *arguments]\n"
        "    try:\n        main()\n"
        "    except SystemExit as end:\n        assert not end.code, arguments\n"
        "    loaded = {'torch', 'mujoco', 'dm_control', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "    assert not loaded, (arguments, loaded)\n"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 60, "a second on a quiet machine"


def test_tasks_as_json(here: Callable[..., Said]) -> None:
    rows = json.loads(here("tasks", "--set", "visual", "--json").stdout)
    assert len(rows) == 10
    assert {"name", "obs_size", "action_size", "budget_env_steps", "metric", "tags"} <= rows[0].keys()
    table = here("tasks", "--set", "mt30").stdout
    assert "30 tasks of mt30" in table


def test_agents_as_json() -> None:
    rows = {row["name"]: row for row in json.loads(bench("agents", "--json").stdout)}
    assert {"tdmpc2", "sac"} <= rows.keys()
    horizon = rows["tdmpc2"]["hyperparameters"]["horizon"]
    assert horizon["default"] == 3
    assert all(field["help"] for row in rows.values() for field in row["hyperparameters"].values())


MISTAKES = (
    (["train", "sacc", "cup-catch"], "error: unknown agent 'sacc': did you mean sac?"),
    (["train", "sac", "cup-cach"], "error: unknown task 'cup-cach': did you mean cup-catch"),
    (["train", "sac", "cup-catch", "tua=1"], "error: unknown hyperparameter of sac 'tua': did you mean "),
    (["train", "sac", "cup-catch", "batch_size=many"], "error: sac: batch_size = 'many': "),
    (["train", "sac", "cup-catch", "batch_size"], "error: 'batch_size' is no override: write key=value"),
    (["tasks", "--set", "mt3"], "error: unknown task set 'mt3': did you mean mt30"),
)
LATE_MISTAKES = (
    (["train", "sac", "cup-catch", "--device", "tpu"], "error: unknown device 'tpu': valid are cpu, cuda"),
    (["train", "sac", "cup-catch", "--sink", "tensorbord"], "error: unknown tracker 'tensorbord'"),
    (["worker", "nowhere"], "error: nowhere is no run directory: it has no run.json"),
    (["speed", "sac", "--fleet", "1,x"], "error: --fleet '1,x': give fleet sizes separated by commas"),
)
"""Found only by a program that has loaded torch, which takes seconds."""


def words(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else ""


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=words)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    here: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    check_mistake(here(*arguments), message, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [MISTAKES[0], *(pytest.param(*mistake, marks=pytest.mark.whole) for mistake in LATE_MISTAKES)],
    ids=words,
)
def test_a_mistake_is_one_line_of_the_program(arguments: list[str], message: str, tmp_path: Path) -> None:
    check_mistake(bench(*arguments, cwd=tmp_path), message, tmp_path)


def check_mistake(done: Said | subprocess.CompletedProcess[str], message: str, folder: Path) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith(message), done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(folder.rglob("checkpoints")), "nothing has started"


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
