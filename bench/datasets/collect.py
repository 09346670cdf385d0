"""`bench data collect`: episodes of agents, of the replay of runs and of random actions, as chunk files.

Every (source, task) is one chunk file. What it holds follows from the seed and the source alone, so an interrupted
collection goes on with the files that are not there yet.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from agents.registry import get as get_agent
from bench import contract
from bench.datasets.chunks import write_chunk
from bench.datasets.description import ChunkFolder, Part
from bench.datasets.layout import spread
from bench.envs.pool import EnvPool
from bench.errors import UserError
from bench.evaluate import Source, open_source
from bench.replay_log import ReplayLog
from bench.rundir import RunDir
from bench.seeding import derive_seed, episode_seed
from bench.tasks import Task, expand

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """What to collect.

    Attributes:
        sources: run directories, checkpoints of runs, files of the authors.
        tasks: names and sets in the order of the task ids; none: those of the sources.
        model_tasks: of a file of many tasks whose number does not tell.
        episodes: that each source plays of each of its tasks.
        replay_episodes: taken of the replay of each source that is a run, evenly spaced over its training.
        random_episodes: with uniformly random actions, of each task.
        explore: whether agents add their exploration noise, as in training.
        policy: whether the policy acts where an agent would plan.
        seed: of episodes, random actions and agents' noise.
        device: where agents act.
        envs: episodes that are played at once.
        workers: processes that step the environments; 0 steps them in this one.
    """

    sources: Sequence[Path] = ()
    tasks: Sequence[str] = ()
    model_tasks: Sequence[str] = ()
    episodes: int = 0
    replay_episodes: int = 0
    random_episodes: int = 0
    explore: bool = False
    policy: bool = False
    seed: int = 1
    device: str = "cpu"
    envs: int = 10
    workers: int = 1


@dataclass(frozen=True)
class Episodes:
    """E episodes of one task, all T agent steps long."""

    obs: Floats  # (E, T + 1, O)
    action: Floats  # (E, T, A)
    reward: Floats  # (E, T)
    success: Floats | None = None  # (E,) at the last agent step; None: not known


@dataclass(frozen=True)
class _Item:
    """One chunk file to make."""

    task: Task
    kind: Literal["agent", "replay", "random"]
    source: Path
    number: int
    """Of the source, in the order given."""
    episodes: int
    what: str


def collect(request: Request, target: Path, say: Callable[[str, int, int], None]) -> ChunkFolder:
    """Write chunk files and `chunks.json`; goes on where an earlier call was interrupted.

    Args:
        target: folder to make.
        say: called with what is being done, how much of it is done and how much there is.

    Raises:
        UserError: nothing to collect for a task, a source that does not fit, or a folder that holds something else.
    """
    tasks, items = _items(request)
    lengths = [task.episode_agent_steps for task in tasks]
    row_entries = math.gcd(*lengths) + 1
    parts = [Part(item.task.name, item.what, item.episodes, request.seed, item.task.domain_version) for item in items]
    folder = _begun(target, ChunkFolder([task.name for task in tasks], row_entries, parts))
    sizes = max(task.obs_size for task in tasks), max(task.action_size for task in tasks)
    for number, item in enumerate(items):
        path = target / f"chunk_{number}.pt"
        if not path.exists() or folder.parts[number].mean_return is None:
            played = _play(request, item, say)
            write_chunk(path, _rows(played, tasks.index(item.task), row_entries, sizes))
            success = None if played.success is None else float(played.success.mean())
            done = replace(folder.parts[number], mean_return=float(played.reward.sum(1).mean()), mean_success=success)
            folder = replace(folder, parts=[*folder.parts[:number], done, *folder.parts[number + 1 :]])
            folder.write(target)
        say("chunk files", number + 1, len(items))
    return folder


# What to make


def _items(request: Request) -> tuple[list[Task], list[_Item]]:
    """The tasks in the order of their ids, and the chunk files in order."""
    wanted = expand(request.tasks)
    opened = [_open(request, path) for path in request.sources]
    for source in opened:
        _check_source(source)
    tasks = wanted or list({task.name: task for source in opened for task in source.tasks}.values())
    if not tasks:
        raise UserError("nothing to collect: give a run or a file, or --task with --random-episodes")
    items: list[_Item] = []
    for number, source in enumerate(opened):
        own = [task for task in tasks if task in source.tasks]
        if not own:
            names = ", ".join(task.name for task in source.tasks)
            raise UserError(f"{source.path} plays {names}, none of which is asked for with --task")
        is_run = not source.spec.tasks and source.path.is_dir()
        name = source.path.resolve().name
        for task in own:
            noise = ", exploring" if request.explore else ""
            policy = ", policy" if _overrides(request, source.path) else ""
            items += [
                _Item(task, "agent", source.path, number, request.episodes, f"{name}: {source.what}{policy}{noise}")
            ]
            if is_run:
                items += [
                    _Item(
                        task, "replay", source.path, number, request.replay_episodes, f"replay of {name}: {source.what}"
                    )
                ]
    items += [_Item(task, "random", Path(), 0, request.random_episodes, "random actions") for task in tasks]
    items = [item for item in items if item.episodes > 0]
    for task in tasks:
        if task.terminates:
            raise UserError(f"{task.name} may end early, which chunk files cannot hold: their rows are equally long")
        if not any(item.task == task for item in items):
            raise UserError(
                f"nothing to collect for {task.name}: give a source of it with --episodes or --replay-episodes, or "
                "--random-episodes"
            )
    return tasks, items


def _open(request: Request, path: Path) -> Source:
    chosen = request.tasks if len(request.tasks) == 1 else ()
    device = torch.device(request.device)
    return open_source(path, chosen, request.model_tasks, _overrides(request, path), request.seed, device)


def _overrides(request: Request, path: Path) -> dict[str, Any]:
    """For the policy to act, where there is a planner."""
    run = RunDir.holding(path)
    agent = run.spec.agent if run is not None and run.run_json.exists() else "tdmpc2"
    plans = "mpc" in get_agent(agent).hyperparameters_model().model_fields
    return {"mpc": False} if request.policy and plans else {}


def _check_source(source: Source) -> None:
    if source.spec.obs_kind != "state":
        raise UserError(f"{source.path} sees pictures: chunk files hold states")
    for task in source.tasks:
        if source.action_repeat not in (None, task.action_repeat):
            raise UserError(
                f"{source.path} was trained with action repeat {source.action_repeat}, {task.name} has "
                f"{task.action_repeat}: its actions mean something else"
            )


def _begun(target: Path, folder: ChunkFolder) -> ChunkFolder:
    """What an earlier call of the same kind has done, or the beginning."""
    before = ChunkFolder.read(target)
    if before is None:
        if list(target.glob("*.pt")):
            raise UserError(f"{target} holds chunk files of something else: choose another folder")
        try:
            target.mkdir(parents=True, exist_ok=True)
            folder.write(target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error
        return folder
    bare = replace(before, parts=[replace(part, mean_return=None, mean_success=None) for part in before.parts])
    if bare != folder:
        raise UserError(f"{target} holds, or was begun with, other episodes: choose another folder, or remove it")
    return before


# Playing


def _play(request: Request, item: _Item, say: Callable[[str, int, int], None]) -> Episodes:
    if item.kind == "replay":
        return _replayed(item)
    act: Act
    if item.kind == "random":
        act = _random(item.task, derive_seed(request.seed, "collect", "random", item.task.name))
    else:
        # Opened anew, so that its noise does not depend on what it played before.
        player = _open(request, item.source).player(item.task)
        act = _actor(player, torch.device(request.device), request.explore)
    done: list[Episodes] = []
    envs = min(request.envs, item.episodes)
    with EnvPool([item.task] * envs, workers=min(request.workers, envs)) as pool:
        for begin in range(0, item.episodes, request.envs):
            numbers = range(begin, min(begin + request.envs, item.episodes))
            purpose = f"collect/{item.kind}/{item.number}/{item.task.name}"
            seeds = [episode_seed(request.seed, purpose, 0, number) for number in numbers]
            done.append(_episodes(pool, item.task, seeds, act))
            say(f"episodes of {item.task.name}", numbers.stop, item.episodes)
    return Episodes(*(np.concatenate([getattr(one, name) for one in done]) for name in Episodes.__dataclass_fields__))


Act = Callable[[Floats, bool], Any]
"""(observations (n, O), whether episodes begin) -> actions (n, A)."""


def _random(task: Task, seed: int) -> Act:
    generator = np.random.default_rng(seed)
    return lambda obs, first: generator.uniform(-1, 1, (len(obs), task.action_size)).astype(np.float32)


def _actor(player: Any, device: torch.device, explore: bool) -> Act:
    def act(obs: Floats, first: bool) -> Floats:
        shown = torch.from_numpy(obs)[None].to(device)
        action = player.act(shown, torch.full(shown.shape[:2], first, device=device), explore)
        chosen = action[0].cpu().numpy()
        if not np.isfinite(chosen).all():
            raise UserError("the agent gives NaN actions: its training has diverged")
        contract.check_range(player, float(np.abs(chosen).max()))
        return np.asarray(chosen, np.float32)

    return act


def _episodes(pool: EnvPool, task: Task, seeds: Sequence[int], act: Act) -> Episodes:
    """An episode for each seed, all at once."""
    count, steps = len(seeds), task.episode_agent_steps
    obs = np.empty((count, steps + 1, task.obs_size), np.float32)
    action = np.empty((count, steps, task.action_size), np.float32)
    reward, success = np.empty((count, steps), np.float32), np.empty(count, np.float32)
    obs[:, 0] = pool.reset(range(count), seeds)
    for step in range(steps):
        action[:, step] = act(obs[:, step], step == 0)
        result = pool.step(action[:, step], range(count))
        obs[:, step + 1], reward[:, step], success = result.obs, result.reward, result.success
    return Episodes(obs, action, reward, success)


def _replayed(item: _Item) -> Episodes:
    """Episodes of a run's replay, evenly spaced."""
    log = ReplayLog(RunDir(item.source).replay)
    held = log.position()
    if held < item.episodes:
        raise UserError(
            f"the replay of {item.source} holds {held} episodes, {item.episodes} were asked for: ask for fewer, or "
            "train with --keep-replay"
        )
    wanted = set(spread(held, item.episodes))
    chosen = [episode for number, episode in enumerate(log.read(held, sys.maxsize)) if number in wanted]
    lengths = {episode.transitions for episode in chosen}
    if lengths != {item.task.episode_agent_steps}:
        raise UserError(f"the replay of {item.source} has episodes of {sorted(lengths)} agent steps")
    return Episodes(*(np.stack([getattr(one, name) for one in chosen]) for name in ("obs", "action", "reward")))


def _rows(played: Episodes, task: int, row_entries: int, sizes: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Episodes as rows of a chunk: cut into equal pieces, padded, with filler in entry 0 of each."""
    (episodes, steps), row_steps = played.reward.shape, row_entries - 1
    rows = episodes * (steps // row_steps)
    obs = np.zeros((rows, row_entries, sizes[0]), np.float32)
    action = np.zeros((rows, row_entries, sizes[1]), np.float32)
    reward = np.zeros((rows, row_entries), np.float32)
    action[:, 0] = reward[:, 0] = np.nan
    action[:, 1:, : played.action.shape[2]] = played.action.reshape(rows, row_steps, -1)
    reward[:, 1:] = played.reward.reshape(rows, row_steps)
    # What the last entry of a piece shows is shown again by entry 0 of the next.
    obs[:, 1:, : played.obs.shape[2]] = played.obs[:, 1:].reshape(rows, row_steps, -1)
    obs[:, 0, : played.obs.shape[2]] = played.obs[:, :-1:row_steps].reshape(rows, -1)
    return {"obs": obs, "action": action, "reward": reward, "task": np.full((rows, row_entries), task, np.int32)}
