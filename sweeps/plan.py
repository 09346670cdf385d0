"""Which runs are to be trained, and which of them train together as a fleet."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import registry
from bench import offline
from bench.envs import agents_pixels
from bench.errors import UserError
from bench.runspec import RunSpec
from sweeps import devices, padding, sizing, state
from sweeps.expand import Sweep
from sweeps.measured import Measurement
from sweeps.state import RunState

CAPACITY = ("buffer_size", "replay_capacity")
"""What agents call the most agent steps that a run's replay holds."""

STARTABLE = ("pending", "stale")
"""States that a launch starts; a failed run waits for `retry`."""


@dataclass(frozen=True)
class Fleet:
    """Runs that train in lockstep in one process: equal but for seed and task, tasks of one domain, and of one shape
    unless they are padded."""

    runs: tuple[RunState, ...]
    pack: int = 1
    """Fleets that a slot trains side by side with this one, itself included."""
    why: str = ""
    """What decided the size of the fleet and of the pack."""
    cuda_graphs: bool = False
    """Whether its acting and updating are recorded as CUDA graphs."""

    @property
    def spec(self) -> RunSpec:
        """The specification of the first run: all share its agent, hyperparameters, budget and schedule."""
        return self.runs[0].spec

    @property
    def run_ids(self) -> list[str]:
        """Paths of its runs below the sweep's folder."""
        return [run.spec.run_id for run in self.runs]

    @property
    def left(self) -> int:
        """What is to go in lockstep, on the clock of its runs: that of the run that is furthest back."""
        return max(run.left for run in self.runs)

    def title(self) -> str:
        """`tdmpc2 cartpole-balance seeds 1,2`."""
        return fleet_title([run.spec for run in self.runs])


def fleet_title(specs: Sequence[RunSpec]) -> str:
    """Agent, task and seeds of runs that train together, for people."""
    tasks = list(dict.fromkeys(spec.task for spec in specs))
    seeds = ",".join(str(seed) for seed in dict.fromkeys(spec.seed for spec in specs))
    task = tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks ({tasks[0]} …)"
    return f"{agent_title(specs[0])} {task} seed{'s' if ',' in seeds else ''} {seeds}"


def agent_title(spec: RunSpec) -> str:
    """`tdmpc2`, or `tdmpc2 [horizon=5]` for a variant, with the observation kind where it is not the state."""
    parts = [
        part for part in (spec.variant if spec.variant != "default" else "", spec.obs) if part not in ("", "state")
    ]
    return f"{spec.agent} [{', '.join(parts)}]" if parts else spec.agent


def kind(spec: RunSpec) -> tuple[str, str]:
    """Runs of one kind go at comparable speeds: of one agent variant, on one clock."""
    return agent_title(spec), spec.clock


@dataclass(frozen=True)
class Plan:
    """A sweep, the state of its runs, and the fleets that a launch would start."""

    sweep: Sweep
    folder: Path
    runs: tuple[RunState, ...]
    fleets: tuple[Fleet, ...]


def sweep_folder(name: str, results: Path) -> Path:
    """Where the runs of the sweep with this name lie."""
    return results / name


def is_startable(run: RunState) -> bool:
    """What a launch starts: runs that nothing has begun, or whose process is gone. Failed ones wait for `retry`."""
    return run.state in STARTABLE and run.extendable


def make(sweep: Sweep, results: Path, measured: Sequence[Measurement] = ()) -> Plan:
    """Read what is already there and group what is to do. Writes nothing.

    Args:
        sweep: the checked sweep.
        results: the results folder; runs lie in `results/<sweep name>/`.
        measured: what is known of the agents' GPU memory.
    """
    folder = sweep_folder(sweep.name, results)
    runs = state.read_all(folder, sweep.runs)
    return Plan(sweep, folder, tuple(runs), tuple(group(sweep, filter(is_startable, runs), measured)))


def lacking(runs: Iterable[RunState]) -> list[str]:
    """What is missing for runs that would start now: checkpoints and data sets that are not here, each once."""
    found: dict[str, None] = {}
    for run in runs:
        if run.spec.init is not None and not run.directory.newest_checkpoint():
            from bench import pretrained

            if (line := pretrained.lack(run.spec.init)) is not None:
                found[line] = None
        if run.spec.offline is not None and (line := offline.lack(run.spec.offline)) is not None:
            found[line] = None
    return list(found)


def group(sweep: Sweep, runs: Iterable[RunState], measured: Sequence[Measurement] = ()) -> list[Fleet]:
    """Put runs together that may train as one fleet, in equal shares of the size that `sizing` gives.

    Fleets that train alone come first, then those that are packed: the order in which a slot takes them.

    Raises:
        UserError: CUDA graphs are asked for without a GPU.
    """
    device = devices.resolve(sweep.resources.device)
    if sweep.resources.cuda_graphs and device == "cpu":
        raise UserError("resources.cuda_graphs needs a GPU, and device is cpu here: leave it out, or give --cluster")
    card = sizing.gpu(sweep.resources) if device == "cuda" else None
    groups: dict[str, list[RunState]] = {}
    for run in runs:
        groups.setdefault(_lockstep_key(sweep, run.spec), []).append(run)
    fleets = []
    for members in [part for alike in groups.values() for part in _by_padding(sweep, alike)]:
        spec = members[0].spec
        agent = registry.get(spec.agent)
        size = sizing.size(spec, len(members), agent.max_fleet, sweep.resources, device, card, measured)
        count = -(-len(members) // size.fleet)
        ends = [len(members) * part // count for part in range(count + 1)]
        parts = [members[a:b] for a, b in itertools.pairwise(ends)]
        graphs = sweep.resources.cuda_graphs and agent.capturable
        fleets += [Fleet(tuple(part), size.pack, size.why + _padded(sweep, part), graphs) for part in parts]
    return sorted(fleets, key=lambda fleet: fleet.pack)


def slots(most: int, fleets: Iterable[Fleet]) -> int:
    """How many slots have something to do: `most` of them, or one for each fleet or pack of fleets."""
    return min(most, units([fleet.pack for fleet in fleets]))


def units(packs: Iterable[int]) -> int:
    """How many fleets and packs of fleets there are, by the pack that each fleet belongs to."""
    return sum(-(-count // pack) for pack, count in Counter(packs).items())


def _lockstep_key(sweep: Sweep, spec: RunSpec) -> str:
    """Equal for runs that one process can train in lockstep."""
    tasks = [sweep.tasks[name] for name in spec.tasks]
    if padding.is_asked(sweep.resources, spec):
        told = [[padding.padding_class(spec, task), task.episode_agent_steps] for task in tasks]
    else:
        told = [[task.obs_size, task.action_size, task.episode_agent_steps] for task in tasks]
    return json.dumps([spec.model_dump(exclude={"task", "seed"}), told], sort_keys=True)


def _by_padding(sweep: Sweep, members: list[RunState]) -> list[list[RunState]]:
    """Runs with one lockstep key: those that may be padded in the groups that `padding` makes, by size."""
    if not padding.is_asked(sweep.resources, members[0].spec):
        return [members]
    groups = padding.split([sweep.tasks[run.spec.task] for run in members])
    return [[run for task in group for run in members if run.spec.task == task.name] for group in groups]


def _padded(sweep: Sweep, runs: Sequence[RunState]) -> str:
    """What is said of a fleet of different shapes."""
    tasks = list({run.spec.task: sweep.tasks[run.spec.task] for run in runs if run.spec.offline is None}.values())
    if len({(task.obs_size, task.action_size) for task in tasks}) < 2:
        return ""
    obs_size, action_size = padding.shape(tasks)
    return f"; padded to observations of {obs_size} and actions of {action_size} numbers"


def replay_bytes(sweep: Sweep, spec: RunSpec) -> int:
    """Bytes of a run's replay log when its budget is reached: of every agent step that replay still holds the
    observation (float32; one picture of bytes, whatever the agent stacks), action, reward and end. None offline."""
    if spec.offline is not None:
        return 0
    task = sweep.tasks[spec.task]
    obs_bytes = 3 * agents_pixels(spec.hyperparameters).size ** 2 if spec.obs == "rgb" else 4 * task.obs_size
    capacities = [spec.hyperparameters[key] for key in CAPACITY if key in spec.hyperparameters]
    return min([spec.budget_agent_steps, *capacities]) * (obs_bytes + 4 * (task.action_size + 2))


def counts(runs: Iterable[RunState]) -> dict[str, int]:
    """How many runs are in each state, all states named."""
    found = dict.fromkeys(state.STATES, 0)
    for run in runs:
        found[run.state] += 1
    return found


def matrix(runs: Sequence[RunState]) -> tuple[list[str], dict[str, dict[str, list[RunState]]]]:
    """Runs by task and agent variant: (agent titles in order, task -> agent title -> its seeds)."""
    agents = list(dict.fromkeys(agent_title(run.spec) for run in runs))
    cells: dict[str, dict[str, list[RunState]]] = {}
    for run in runs:
        cells.setdefault(run.spec.task, {}).setdefault(agent_title(run.spec), []).append(run)
    return agents, cells


def run_json(run: RunState) -> dict[str, Any]:
    """A run's state as plain values, for `--json`."""
    spec, progress = run.spec, run.progress
    learns_offline = spec.offline is not None
    return {
        "run_id": spec.run_id,
        "agent": spec.agent,
        "variant": spec.variant,
        "task": spec.task,
        "domain": spec.domain,
        "obs": spec.obs,
        "seed": spec.seed,
        "state": run.state,
        "env_steps": 0 if learns_offline else progress.reached,
        "budget_env_steps": spec.budget_env_steps,
        "updates": progress.reached if learns_offline else None,
        "budget_updates": spec.budget if learns_offline else None,
        "score" if learns_offline else "return": progress.last_return,
        f"{spec.clock}_per_s": progress.speed if run.state == "running" else None,
        "eta_s": run.eta_s,
        "env_wait_share": progress.env_wait_share,
        "wall_s": progress.wall_s,
        "error": run.error,
        "path": str(run.directory.path),
    }
