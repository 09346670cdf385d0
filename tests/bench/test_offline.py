"""Training offline: an interrupted run equals one that never was, fleets equal single runs, each task is evaluated."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from offline_cases import BRIEF, NAMES, TINY, clear, install, make_dataset, spec
from test_training import after, assert_equal, evaluations, never, options, train
from typer.testing import CliRunner

from agents.multitask import OneTask, SomeTasks, multitask_spec
from agents.registry import get as get_agent
from agents.registry import resolve_hyperparameters
from agents.tdmpc2.agent import TDMPC2
from bench import agent_spec, checkpoint, offline
from bench.cli import app
from bench.envs import make
from bench.errors import UserError
from bench.failures import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED
from bench.models_cli import app as models_app
from bench.offline_training import MOST_ENVIRONMENTS, evaluation_groups
from bench.rundir import RunDir
from bench.seeding import episode_seed
from bench.tasks import get, task_set
from bench.worker import train_runs

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch)
    yield
    monkeypatch.undo()
    clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        yield make_dataset(tmp_path_factory.mktemp("dataset"))
    clear()


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    """A run that was never interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        (run,) = train(tmp_path_factory.mktemp("whole"), [spec(data)])
        yield run
    clear()


def state(run: RunDir) -> dict[str, Any]:
    found = checkpoint.load(run, checkpoint.saved(run)[-1])
    assert found is not None
    return found


@pytest.mark.whole
def test_an_interrupted_run_equals_one_that_never_was(data: Path, whole: RunDir, tmp_path: Path) -> None:
    rows = evaluations(whole)
    assert [(row["updates"], row["task"]) for row in rows[::2]] == [
        (updates, name) for updates in ("0", "5", "10", "12") for name in NAMES
    ]
    assert [row["length"] for row in rows[:6]] == ["8", "8", "12", "12", "8", "8"]
    assert not whole.replay.exists()

    run = RunDir.create(tmp_path / "parts", spec(data))
    for calls in (0, 1, 3, 4, 2):  # before anything, amid the first evaluation, between updates, amid the second, ...
        assert train_runs([run], options(checkpoint_every_s=0), None, after(calls)) == EXIT_INTERRUPTED
        assert run.progress().state == "pending"
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert evaluations(run) == rows
    for part in ("agent", "sampler", "rows", "evaluated_at"):
        assert_equal(state(whole)[part], state(run)[part], part)
    assert [row["from_updates"] for row in run.info()["attempts"]] == [0, 0, 0, 2, 5, 6]
    done = run.read_json("done.json")
    assert done is not None
    assert done["updates"] == 12
    assert "env_steps" not in done


@pytest.mark.whole
def test_killed_after_an_evaluation_and_before_the_checkpoint(data: Path, whole: RunDir, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "parts", spec(data))
    assert train_runs([run], options(), None, after(3)) == EXIT_INTERRUPTED
    before = {path: path.read_bytes() for path in run.checkpoints.iterdir()}
    assert train_runs([run], options(), None, after(9)) == EXIT_INTERRUPTED
    for path in run.checkpoints.iterdir():
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)
    with run.eval_csv.open("a") as file:
        file.write("5,1.0,brief-bal")  # torn
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert evaluations(run) == evaluations(whole)


@pytest.mark.whole
def test_a_fleet_gives_what_single_runs_give(data: Path, tmp_path: Path) -> None:
    # A low learning rate and no planning, for both amplify differences in the last digit.
    calm = {"hyperparameters": {"lr": 1e-6, "mpc": False}, "updates": 5}
    specs = [spec(data, seed, **calm) for seed in (1, 2)]
    fleet = train(tmp_path / "fleet", specs)
    for one, together in zip(specs, fleet, strict=True):
        (alone,) = train(tmp_path / "single", [one])
        for left, right in zip(evaluations(alone), evaluations(together), strict=True):
            assert float(left["return"]) == pytest.approx(float(right["return"]), rel=0.02, abs=1e-3)
    assert evaluations(fleet[0]) != evaluations(fleet[1])


def test_evaluation_is_a_plain_loop_over_each_task(data: Path, tmp_path: Path) -> None:
    """With the policy acting there is no noise, so a loop that shares nothing with the trainer gives the same."""
    one = spec(data, hyperparameters={"mpc": False}, updates=7, eval_every_updates=7)
    (run,) = train(tmp_path, [one])
    entry = get_agent("tdmpc2")
    told = agent_spec.of_run(one)
    agent = entry.load()(told, entry.hyperparameters_model()(**one.hyperparameters), [9], CPU)
    agent.load_state_dict([state(run)["agent"]])
    last = {(row["task"], row["episode"]): row for row in evaluations(run) if row["updates"] == "7"}
    for number, task in enumerate(BRIEF):
        for episode in range(2):
            env = make(task.name)
            obs, _ = env.reset(seed=episode_seed(1, "evaluate/7", 0, episode))
            total, over, view = 0.0, False, OneTask(agent, told, number)
            while not over:
                shown = torch.from_numpy(obs)[None, None]
                action = view.act(shown, torch.zeros(1, 1, dtype=torch.bool), explore=False)
                obs, reward, terminated, truncated, _ = env.step(action[0, 0].numpy())
                total, over = total + float(reward), terminated or truncated
            env.close()
            assert float(last[task.name, str(episode)]["return"]) == pytest.approx(total, rel=1e-4), task.name


def test_the_heartbeat_says_the_normalised_score(whole: RunDir) -> None:
    last = [row for row in evaluations(whole) if row["updates"] == "12"]
    scores = [
        task.score(np.mean([float(row["return"]) for row in last if row["task"] == task.name]), 0.0) for task in BRIEF
    ]
    found = whole.progress(12)
    assert (found.state, found.reached, found.last_return) == ("done", 12, pytest.approx(np.mean(scores)))
    beat = json.loads((whole.path / "heartbeat").read_text())
    assert (beat["updates"], beat["score"]) == (12, found.last_return)
    assert "env_steps" not in beat


@pytest.mark.whole
def test_a_finished_run_goes_on_to_more_updates(data: Path, whole: RunDir, tmp_path: Path) -> None:
    (run,) = train(tmp_path / "longer", [spec(data, updates=10)])
    run.update_spec(spec(data))
    assert train_runs([run], options(), None, never) == EXIT_DONE
    assert evaluations(run) == evaluations(whole)
    assert_equal(state(whole)["agent"], state(run)["agent"])


@pytest.mark.whole
def test_a_run_that_turns_nan_leaves_the_others_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [spec(data, seed, eval_every_updates=4, updates=4, eval_episodes=1) for seed in (1, 2, 3)]
    update = TDMPC2.update

    def poisoned(self: Any, batch: Any) -> Any:
        metrics = update(self, batch)
        if self.runs == 3:
            metrics["total_loss"][1] = float("nan")
        return metrics

    monkeypatch.setattr(TDMPC2, "update", poisoned)
    runs = [RunDir.create(tmp_path, one) for one in specs]
    assert train_runs(runs, options(), None, never) == EXIT_FAILED
    assert [run.progress(4).state for run in runs] == ["done", "failed", "done"]
    failed = runs[1].read_json("failed.json")
    assert failed is not None
    assert failed["class"] == "NaNError"
    assert "a loss is not a number at update 4" in failed["message"]


def test_training_says_what_it_does(whole: RunDir) -> None:
    with whole.train_csv.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["updates"] for row in rows] == ["5", "10"]
    assert list(rows[0])[:3] == ["updates", "wall_s", "updates_per_s"]
    assert float(rows[0]["total_loss"]) > 0


@pytest.mark.whole
def test_some_of_the_tasks_in_another_order(data: Path, tmp_path: Path) -> None:
    names = ["brief-swingup", "brief-balance"]
    (run,) = train(tmp_path, [spec(data, names=names, updates=5)])
    assert [row["task"] for row in evaluations(run)[:4:2]] == names
    assert run.spec.task == "brief-swingup+brief-balance"
    assert run.spec.hash != spec(data, names=names[::-1]).hash


def test_a_view_of_several_tasks_is_the_agent_with_their_numbers(data: Path) -> None:
    one = spec(data)
    told, entry = agent_spec.of_run(one), get_agent("tdmpc2")
    hyperparameters = entry.hyperparameters_model()(**one.hyperparameters)
    viewed, agent = (entry.load()(told, hyperparameters, [1, 2], CPU) for _ in range(2))
    obs = torch.randn(4, 3, 5)  # two runs of two tasks, three environments
    first = torch.ones(4, 3, dtype=torch.bool)
    action = SomeTasks(viewed, told, [0, 2]).act(obs, first, False)
    padded = torch.cat([obs, torch.zeros(4, 3, 3)], -1).reshape(2, 6, 8)
    task = torch.tensor([[0, 0, 0, 2, 2, 2]] * 2)
    expected = agent.act(padded, first.reshape(2, 6), False, task)
    assert torch.equal(action, expected.reshape(4, 3, 2)[..., :1])


def test_tasks_of_one_shape_are_evaluated_together_within_bounds() -> None:
    groups = evaluation_groups(task_set("mt80"), 10)
    assert sorted(number for group in groups for number in group) == list(range(80))
    rows = task_set("mt80")
    for group in groups:
        assert len({(rows[n].obs_size, rows[n].action_size, rows[n].episode_agent_steps) for n in group}) == 1
        assert 10 * len(group) <= MOST_ENVIRONMENTS
    assert len(groups) == 22
    assert evaluation_groups(BRIEF, 1000) == [[0], [2], [1]]


def test_labels() -> None:
    assert offline.label(task_set("mt30")) == "mt30"
    assert offline.label(task_set("mt30")[::-1]) != "mt30"
    assert offline.label([get("mw-reach")]) == "mw-reach"
    assert offline.label([get("walker-walk"), get("mw-reach")]) == "walker-walk+mw-reach"
    five = task_set("mt80")[:5]
    assert offline.label(five).startswith("walker-stand+4-")
    assert len({offline.label(five), offline.label(five[::-1]), offline.label(task_set("mt80")[1:6])}) == 3


def test_defaults_for_several_tasks() -> None:
    mt30 = resolve_hyperparameters("tdmpc2", {"model_size": 19}, tasks=task_set("mt30"))
    assert (mt30["batch_size"], mt30["task_dim"], mt30["latent_dim"]) == (1024, 64, 512)
    assert resolve_hyperparameters("tdmpc2", {}, tasks=task_set("mt30"))["task_dim"] == 64
    assert resolve_hyperparameters("tdmpc2", {"model_size": 1}, tasks=task_set("mt30"))["task_dim"] == 96
    mt80 = resolve_hyperparameters("tdmpc2", {"model_size": 19, "batch_size": 8}, tasks=task_set("mt80"))
    assert (mt80["batch_size"], mt80["task_dim"], mt80["latent_dim"]) == (8, 96, 768)
    assert multitask_spec(task_set("mt80")).obs_shape == (39,)
    with pytest.raises(UserError, match="sac cannot learn several tasks offline: valid are tdmpc2"):
        resolve_hyperparameters("sac", {}, tasks=task_set("mt30"))


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_the_commands(data: Path, tmp_path: Path) -> None:
    small = [f"{key}={value}" for key, value in TINY.items()]
    arguments = [
        "train", "tdmpc2", "brief-catch,brief-balance", *small, "--data", str(data), "--updates", "3",
        "--eval-every-updates", "3", "--eval-episodes", "2", "--results", str(tmp_path), "--env-workers", "0",
        "--threads", "1",
    ]  # fmt: skip
    done = run_command(*arguments)
    assert done.exit_code == 0, done.output
    (run,) = (RunDir(path.parent) for path in tmp_path.rglob("run.json"))
    names = ["brief-catch", "brief-balance"]
    assert (run.spec.tasks, run.spec.budget, run.spec.hyperparameters["batch_size"]) == (tuple(names), 3, 8)
    assert "done already" in run_command(*arguments).output
    played = CliRunner().invoke(
        models_app, ["eval", str(run.path), "--episodes", "2", "--env-workers", "0", "--threads", "1", "--json"]
    )
    found = json.loads(played.stdout)
    assert found["what"] == "tdmpc2 on brief-catch+brief-balance, seed 1, at 3 updates"
    assert [row["task"] for row in found["tasks"]] == names
    assert [row["lengths"] for row in found["tasks"]] == [[12, 12], [8, 8]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tdmpc2", "brief-catch,brief-balance"], "is several tasks, which are learned offline .*: give --data"),
        (["tdmpc2", "mt30"], "'mt30' is several tasks"),
        (["tdmpc2", "brief-catch", "--updates", "5"], "--updates belongs to learning offline, with --data"),
        (["tdmpc2", "brief-catch", "--data", "DATA", "--env-steps", "5"], "--env-steps belongs to learning online"),
        (["tdmpc2", "brief-catch", "--data", "DATA", "--num-envs", "2"], "--num-envs belongs to learning online"),
        (["tdmpc2", "brief-catch", "--data", "DATA", "--obs", "rgb"], "data sets hold states"),
        (["tdmpc2", "brief-catch,walker-walk", "--data", "DATA"], "has no rows of walker-walk: it has brief-balance"),
        (["tdmpc2", "brief-catch", "--data", "nowhere"], "nowhere is no converted data set"),
        (["sac", "brief-catch", "--data", "DATA"], "sac cannot learn several tasks offline: valid are tdmpc2"),
        (["tdmpc2", "brief-catsh", "--data", "DATA"], "unknown task or set 'brief-catsh': did you mean brief-catch"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(data) if argument == "DATA" else argument for argument in arguments]
    with pytest.raises(UserError, match=message) as caught:
        run_command("train", *given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "results").exists()


@pytest.mark.whole
def test_another_data_set_in_its_place_fails_the_run(data: Path, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", seed=1)
    one = spec(data)
    assert one.offline is not None
    moved = one.model_copy(update={"offline": one.offline.model_copy(update={"data": str(other)})})
    run = RunDir.create(tmp_path, moved)
    assert train_runs([run], options(), None, never) == EXIT_FAILED
    failed = run.read_json("failed.json")
    assert failed is not None
    assert "holds another data set than the run began with" in failed["message"]
