"""`bench eval`: a run, a checkpoint of one, or a file of TD-MPC2's authors as an agent, and the episodes it plays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from agents.multitask import OneTask
from agents.protocol import AgentSpec
from agents.registry import get as get_agent
from agents.registry import resolve_hyperparameters
from agents.tdmpc2.checkpoints import AuthorsFile, load_tensors
from bench import agent_spec, checkpoint
from bench.errors import UserError, unknown
from bench.evaluation import Evaluator
from bench.rundir import RunDir
from bench.runspec import RunSpec
from bench.tasks import Task, expand, task_set
from bench.tasks import get as get_task
from bench.tasks.sets import MULTITASK_SETS
from bench.video import VIDEO_FPS, write_mp4


@dataclass
class Source:
    """An agent that can be evaluated.

    Attributes:
        path: where it comes from.
        what: in words: the kind of file, its size, how far it was trained.
        agent: on the protocol, of one run.
        device: where it acts.
        agent_name: in the registry.
        hyperparameters: of the agent, as a run records them.
        tasks: those that it was trained on.
        spec: what the agent was told of its environments.
        action_repeat: another than the task table's, of a run that was trained so.
    """

    path: Path
    what: str
    agent: Any
    device: torch.device
    agent_name: str
    hyperparameters: dict[str, Any]
    tasks: tuple[Task, ...]
    spec: AgentSpec
    action_repeat: int | None = None

    def player(self, task: Task) -> Any:
        """What plays one task.

        Raises:
            UserError: the agent does not fit the task.
        """
        if not self.spec.tasks:
            own = self.tasks[0]
            if (own.obs_size, own.action_size) != (task.obs_size, task.action_size):
                raise UserError(
                    f"{self.path} was trained on {own.name} (observations of {own.obs_size} numbers, actions of "
                    f"{own.action_size}), which does not fit {task.name} ({task.obs_size} and {task.action_size})"
                )
            return self.agent
        names = [one.name for one in self.spec.tasks]
        if task.name not in names:
            raise UserError(f"{self.path} is a model of {len(names)} tasks, and {task.name} is none of them")
        return OneTask(self.agent, self.spec, names.index(task.name))


def open_source(
    path: Path,
    chosen: Sequence[str],
    model_tasks: Sequence[str],
    overrides: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> Source:
    """Load a run directory (its newest intact checkpoint), one of its checkpoints, or a file of the authors.

    Args:
        path: file or directory.
        chosen: tasks that will be played; they tell the task of a file that does not name it.
        model_tasks: all tasks of a multi-task model in order, as names and sets, where the number does not tell.
        overrides: hyperparameters to change for playing, such as `mpc`.
        seed: of the agent's noise (a run goes on with its own).
        device: where the agent acts.

    Raises:
        UserError: nothing to load there, or it does not fit.
    """
    if (run := RunDir.holding(path)) is not None:
        return _open_run(run, path, overrides, seed, device)
    return _open_file(path, chosen, model_tasks, overrides, seed, device)


def _open_run(run: RunDir, path: Path, overrides: Mapping[str, Any], seed: int, device: torch.device) -> Source:
    spec = run.spec
    saved = checkpoint.saved(run)
    if path.is_file():
        saved = [int(path.stem)] if path.stem.isdigit() else []
    loaded = ((at, checkpoint.load(run, at)) for at in reversed(saved))
    reached, state = next(((at, one) for at, one in loaded if one is not None), (0, None))
    if state is None:
        raise UserError(f"{path} has no intact checkpoint yet: train it first, or let it go on")
    hyperparameters = resolve_hyperparameters(spec.agent, spec.hyperparameters | dict(overrides))
    entry = get_agent(spec.agent)
    told = agent_spec.of_run(spec)
    agent = entry.load()(told, entry.hyperparameters_model()(**hyperparameters), [seed], device)
    try:
        agent.load_state_dict([state["agent"]])
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path} does not fit with {_pairs(overrides) or 'this version'}: {reason}") from error
    axis = f"{reached * spec.action_repeat:,} {spec.axis.replace('_', ' ')}"
    what = f"{spec.agent} on {spec.task}, seed {spec.seed}, at {axis}"
    tasks = tuple(get_task(name) for name in spec.tasks)
    repeat = spec.action_repeat if spec.offline is None else None  # each task's own
    return Source(path, what, agent, device, spec.agent, hyperparameters, tasks, told, repeat)


def _open_file(
    path: Path,
    chosen: Sequence[str],
    model_tasks: Sequence[str],
    overrides: Mapping[str, Any],
    seed: int,
    device: torch.device,
) -> Source:
    entries = load_tensors(path)
    if "format_version" in entries:
        raise UserError(
            f"{path} is a checkpoint of a run: leave it in its run directory, whose run.json says what it is"
        )
    file = AuthorsFile.of(entries, str(path))
    own = _tasks_of(file, path, chosen, model_tasks)
    known = get_agent("tdmpc2").hyperparameters_model().model_fields
    for key in overrides:
        if key not in known:
            raise unknown("hyperparameter of tdmpc2", key, known)
    agent, spec = file.agent(own, overrides, seed, device)
    size = f"{agent.model.num_parameters / 1e6:.3f} million parameters"
    about = f"{file.num_tasks} tasks" if file.num_tasks else own[0].name
    what = f"TD-MPC2 of the authors (layout of {file.layout}), {size}, {about}"
    return Source(path, what, agent, device, "tdmpc2", agent.hp.model_dump(mode="json"), tuple(own), spec)


def _tasks_of(file: AuthorsFile, path: Path, chosen: Sequence[str], model_tasks: Sequence[str]) -> Sequence[Task]:
    """The tasks of a file, in the order of its embeddings."""
    if file.num_tasks:
        if model_tasks:
            return expand(model_tasks)
        if file.num_tasks not in MULTITASK_SETS:
            raise UserError(
                f"{path} is a model of {file.num_tasks} tasks, which is no published set (mt30, mt80): name them in "
                "order with --model-tasks"
            )
        return task_set(MULTITASK_SETS[file.num_tasks])
    if chosen:
        return expand(chosen)[:1]
    named = re.fullmatch(r"(.+?)(-\d+)?", path.stem)
    assert named is not None
    try:
        return [get_task(named[1])]
    except UserError as error:
        raise UserError(f"{path} does not say its task: give --task") from error


@dataclass(frozen=True)
class Played:
    """What one task's episodes came to."""

    task: str
    seed: int
    returns: list[float]
    successes: list[float]
    lengths: list[int]
    score: float
    """0-100, of the mean return or the success rate."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "task": self.task,
            "seed": self.seed,
            "episodes": len(self.returns),
            "return": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "success": float(np.mean(self.successes)),
            "score": self.score,
            "returns": self.returns,
            "successes": self.successes,
            "lengths": self.lengths,
        }


def play(
    source: Source, tasks: Sequence[Task], episodes: int, seeds: Sequence[int], workers: int, video: Path | None
) -> Iterator[Played]:
    """Play every task with every seed, `episodes` episodes each, all of a task at once.

    Args:
        video: folder for an mp4 of the first episode of each.
    """
    players = [source.player(task) for task in tasks]
    for task, player in zip(tasks, players, strict=True):
        for seed in seeds:
            spec = _evaluation_spec(source, task, seed, episodes)
            evaluator = Evaluator([spec], max(1, workers) if video else workers, video is not None)
            try:
                (rows,) = evaluator.evaluate(player, source.device, 0)
                if video is not None:
                    video.mkdir(parents=True, exist_ok=True)
                    write_mp4(video / f"{task.name}-seed{seed}.mp4", np.stack(evaluator.frames[0]), VIDEO_FPS)
            finally:
                evaluator.close()
            returns, successes = ([row[key] for row in rows] for key in ("return", "success"))
            score = task.score(float(np.mean(returns)), float(np.mean(successes)))
            yield Played(task.name, seed, returns, successes, [row["length"] for row in rows], score)


def _evaluation_spec(source: Source, task: Task, seed: int, episodes: int) -> RunSpec:
    obs: Literal["state", "rgb"] = source.spec.obs_kind
    return RunSpec(
        agent=source.agent_name,
        hyperparameters=source.hyperparameters,
        task=task.name,
        domain=task.domain,
        domain_version=task.domain_version,
        obs=obs,
        seed=seed,
        action_repeat=source.action_repeat or task.action_repeat,
        budget_env_steps=1,
        eval_every_env_steps=1,
        eval_episodes=episodes,
    )


def _pairs(overrides: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items())
