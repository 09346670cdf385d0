"""The task table: one typed row for each task, and the named sets of them.

Everything that needs to know something about a task reads it here. Light on purpose: no simulator, no torch. Users add
rows by the entry-point group `tdmpc2_bench.tasks`: an entry point names a `Task`, or a list of them, in their package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Literal

from bench.errors import UserError, unknown
from bench.installed import is_maniskill3, maniskill3_version
from bench.task_sets import BY_TAG, LOCOMOTION, METAWORLD, NEW

ENTRY_POINT_GROUP = "tdmpc2_bench.tasks"

EVAL_EVERY_AGENT_STEPS = 50_000
"""The paper's interval between evaluations, in every domain."""

DOMAIN_VERSIONS: Mapping[str, str] = MappingProxyType(
    {
        "dmcontrol": "dm_control-1.0.28+mujoco-3.3.0",
        "metaworld": "metaworld-3.1.1+mujoco-3.3.0 (v3 simulation, v2 reward)",
        "maniskill": "mani_skill2-0.5.3+sapien-2.2.2 (dense reward)",
        "myosuite": "myosuite-2.11.6+mujoco-3.3.0",
    }
)
"""What a domain's results were made with. Results of different versions are never mixed without saying so."""

MANISKILL3: Mapping[str, tuple[str, int]] = MappingProxyType(
    {"pick-cube": ("PickCube-v1", 42), "stack-cube": ("StackCube-v1", 48)}
)
"""Tasks that ManiSkill3 has too, where it is installed instead of ManiSkill2: its own name and observation size."""


BUILT_IN_SETS = ("all", *DOMAIN_VERSIONS, "original", *BY_TAG)
"""The sets that ship with the suite; users' tags and domains make more."""


@dataclass(frozen=True)
class Task:
    """One task. The numbers are those of the TD-MPC2 paper (arXiv 2310.16828) and of its published curves.

    Raises:
        UserError: a value that no task can have (only rows that users add can meet it).
    """

    name: str
    domain: str
    """dmcontrol, metaworld, maniskill, myosuite, or a user's own."""
    simulator_id: str
    """How the simulator calls it; for a task of the user's own `gymnasium:<environment id>`, or `module:function` that
    makes its environment (see `bench.envs.make`)."""
    obs_size: int
    """Length of the state observation."""
    action_size: int
    action_repeat: int
    """Env steps in one agent step."""
    episode_agent_steps: int
    """Agent steps in an episode that runs to its time limit."""
    budget_env_steps: int
    """Env steps of training in the published curves (state observations)."""
    metric: Literal["return", "success"]
    tags: frozenset[str] = field(default_factory=frozenset)
    """Sets that the task belongs to, besides its domain."""
    published_name: str = ""
    """The name in the authors' result files; the same as `name` where left empty."""
    domain_version: str = ""
    """The simulator's packages and versions; those of `DOMAIN_VERSIONS` where left empty."""
    terminates: bool = False
    """Whether the simulator may end an episode before its time limit. None of the 104 does."""
    return_range: tuple[float, float] = (0.0, 1000.0)
    """Returns that score 0 and 100 where the metric is return."""

    def __post_init__(self) -> None:
        sizes = (self.obs_size, self.action_size, self.action_repeat, self.episode_agent_steps, self.budget_env_steps)
        if min(sizes) < 1:
            raise UserError(f"task '{self.name}': sizes, repeat, episode length and budget must be at least 1")
        if self.metric not in ("return", "success"):
            raise UserError(f"task '{self.name}': metric is '{self.metric}', valid are return, success")
        low, high = self.return_range
        if not low < high:
            raise UserError(f"task '{self.name}': return_range is {low}, {high}, but the first must be the smaller")
        # A frozen dataclass sets what follows from other fields through object.__setattr__.
        object.__setattr__(self, "tags", frozenset(self.tags))
        object.__setattr__(self, "published_name", self.published_name or self.name)
        version = self.domain_version or DOMAIN_VERSIONS.get(self.domain, "unknown")
        object.__setattr__(self, "domain_version", version)

    @property
    def episode_env_steps(self) -> int:
        """Simulator control steps in an episode; stays the same under another action repeat."""
        return self.episode_agent_steps * self.action_repeat

    @property
    def budget_agent_steps(self) -> int:
        """The budget in actions chosen by the agent."""
        return self.budget_env_steps // self.action_repeat

    @property
    def eval_every_env_steps(self) -> int:
        """Env steps between evaluations: 50,000 agent steps."""
        return EVAL_EVERY_AGENT_STEPS * self.action_repeat

    def score(self, return_: float, success: float) -> float:
        """0-100: where the return lies in `return_range` (return / 10 on DMControl), or success rate x 100.

        Args:
            return_: episode return, or a mean of them.
            success: success rate between 0 and 1.
        """
        low, high = self.return_range
        return (return_ - low) / ((high - low) / 100) if self.metric == "return" else success * 100


# Rows.

_DMCONTROL_BODIES: Mapping[str, tuple[str, int, int, str]] = MappingProxyType(
    {  # name here: (name in the suite, observation size, action size, standard tasks)
        "acrobot": ("acrobot", 6, 1, "swingup"),
        "cartpole": ("cartpole", 5, 1, "balance balance-sparse swingup swingup-sparse"),
        "cheetah": ("cheetah", 17, 6, "run"),
        "cup": ("ball_in_cup", 8, 2, "catch"),
        "dog": ("dog", 223, 38, "stand walk trot run"),
        "finger": ("finger", 12, 2, "spin turn-easy turn-hard"),
        "fish": ("fish", 24, 5, "swim"),
        "hopper": ("hopper", 15, 4, "stand hop"),
        "humanoid": ("humanoid", 67, 21, "stand walk run"),
        "pendulum": ("pendulum", 3, 1, "swingup"),
        "quadruped": ("quadruped", 78, 12, "walk run"),
        "reacher": ("reacher", 6, 2, "easy hard"),
        "walker": ("walker", 24, 6, "stand walk run"),
    }
)
_OTHER_OBS_SIZE: Mapping[str, int] = MappingProxyType(
    {"finger-spin": 9, "reacher-three-easy": 8, "reacher-three-hard": 8}
)


def _tags(name: str) -> frozenset[str]:
    return frozenset(tag for tag, names in BY_TAG.items() if name in names)


def _dmcontrol_row(body: str, task: str) -> Task:
    domain, obs_size, action_size, standard = _DMCONTROL_BODIES[body]
    name = f"{body}-{task}"
    return Task(
        name=name,
        domain="dmcontrol",
        simulator_id=f"{domain}/{task.replace('-', '_')}",
        obs_size=_OTHER_OBS_SIZE.get(name, obs_size),
        action_size=3 if name.startswith("reacher-three") else action_size,
        action_repeat=2,
        episode_agent_steps=500,
        budget_env_steps=14_000_000 if name in LOCOMOTION else 4_000_000,
        metric="return",
        tags=_tags(name) | ({"original"} if task in standard.split() else set()),
    )


def _dmcontrol() -> list[Task]:
    standard = [_dmcontrol_row(body, task) for body, row in _DMCONTROL_BODIES.items() for task in row[3].split()]
    return standard + [_dmcontrol_row(*name.split("-", 1)) for name in NEW]


def _metaworld() -> list[Task]:
    return [
        Task(
            name=f"mw-{name}",
            domain="metaworld",
            simulator_id=f"{name}-v3-goal-observable",
            obs_size=39,
            action_size=4,
            action_repeat=2,
            episode_agent_steps=100,
            budget_env_steps=2_000_000,
            metric="success",
            tags=_tags(f"mw-{name}"),
        )
        for name in METAWORLD
    ]


def _maniskill() -> list[Task]:
    rows = (  # name, simulator id, observation size, action size
        ("lift-cube", "LiftCube-v0", 42, 4),
        ("pick-cube", "PickCube-v0", 51, 4),
        ("stack-cube", "StackCube-v0", 55, 4),
        ("pick-ycb", "PickSingleYCB-v0", 51, 7),
        ("turn-faucet", "TurnFaucet-v0", 40, 7),
    )
    made = [
        Task(
            name=name,
            domain="maniskill",
            simulator_id=simulator_id,
            obs_size=obs_size,
            action_size=action_size,
            action_repeat=2,
            episode_agent_steps=100,
            budget_env_steps=14_000_000 if name == "pick-ycb" else 4_000_000,
            metric="success",
            tags=_tags(name),
        )
        for name, simulator_id, obs_size, action_size in rows
    ]
    return [_of_maniskill3(task) for task in made] if is_maniskill3() else made


def _of_maniskill3(task: Task) -> Task:
    """The row where ManiSkill3 is installed instead: its own version of the task, if it has one."""
    if task.name not in MANISKILL3:
        return task
    simulator_id, obs_size = MANISKILL3[task.name]
    return replace(task, simulator_id=simulator_id, obs_size=obs_size, domain_version=maniskill3_version())


def _myosuite() -> list[Task]:
    rows = (  # name, simulator's name, observation size
        ("reach", "Reach", 115),
        ("pose", "Pose", 108),
        ("obj-hold", "ObjHold", 91),
        ("key-turn", "KeyTurn", 93),
        ("pen-twirl", "PenTwirl", 83),
    )
    return [
        Task(
            name=f"myo-{name}{ending}",
            domain="myosuite",
            simulator_id=f"myoHand{simulator_name}{variant}-v0",
            obs_size=obs_size,
            action_size=39,
            action_repeat=1,
            episode_agent_steps=100,
            budget_env_steps=2_000_000,
            metric="success",
            tags=_tags(f"myo-{name}{ending}"),
            published_name=f"myo-hand-{name}{ending}",
        )
        for name, simulator_name, obs_size in rows
        for ending, variant in (("", "Fixed"), ("-hard", "Random"))
    ]


# Look-up.


def _registered() -> Iterable[tuple[str, Task]]:
    """The rows that other packages add, each with the entry point that it comes from."""
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            value = point.load()
        except Exception as error:
            raise UserError(
                f"the tasks of entry point '{point.name}' cannot be loaded from {point.value}: {error!r}; "
                "mend or uninstall that package"
            ) from error
        for row in [value] if isinstance(value, Task) else value:
            if not isinstance(row, Task):
                raise UserError(
                    f"entry point '{point.name}' ({point.value}) holds {row!r}, which is no bench.tasks.Task"
                )
            yield point.name, row


@cache
def _built_in() -> Mapping[str, Task]:
    return MappingProxyType({task.name: task for task in (*_dmcontrol(), *_metaworld(), *_maniskill(), *_myosuite())})


@cache
def _table() -> Mapping[str, Task]:
    table = dict(_built_in())
    taken = {*table, *(task.published_name for task in table.values()), *BUILT_IN_SETS}
    for origin, task in _registered():
        if task.name in taken:
            raise UserError(f"task '{task.name}' of entry point '{origin}' takes a name that is in use: rename it")
        taken.add(task.name)
        table[task.name] = task
    return MappingProxyType(table)


@cache
def _sets() -> Mapping[str, tuple[Task, ...]]:
    table = _table()
    sets = {"all": tuple(table.values())}
    for task in table.values():
        for name in (task.domain, *sorted(task.tags)):
            sets[name] = (*sets.get(name, ()), task)
    for name, ordered in BY_TAG.items():  # their order is part of them; a user's rows with the tag come after
        added = [task.name for task in sets[name] if task.name not in ordered]
        sets[name] = tuple(table[task] for task in (*ordered, *added))
    return MappingProxyType(sets)


def tasks() -> tuple[Task, ...]:
    """Every task: DMControl (28 standard, 11 new), Meta-World, ManiSkill2, MyoSuite, then rows that users added."""
    return _sets()["all"]


def built_in() -> tuple[Task, ...]:
    """The 104 tasks of the benchmark, without rows that users added."""
    return tuple(_built_in().values())


def set_names() -> tuple[str, ...]:
    """The names that `task_set` and `expand` take."""
    return tuple(_sets())


def get(name: str) -> Task:
    """One task by its name, or by the name that the published files use (`myo-hand-reach`).

    Raises:
        UserError: no such task; names the nearest.
    """
    # The suite's own rows first, so that users can derive theirs from them while their package is being loaded.
    for table in (_built_in, _table):
        for task in table().values():
            if name in (task.name, task.published_name):
                return task
    raise unknown("task", name, _table())


def task_set(name: str) -> tuple[Task, ...]:
    """The tasks of a set. In `mt30` and `mt80` the index is the task id of the multi-task data.

    Raises:
        UserError: no such set; names the nearest.
    """
    sets = _sets()
    if name not in sets:
        raise unknown("task set", name, sets)
    return sets[name]


def expand(selectors: Sequence[str]) -> list[Task]:
    """Tasks for a mixture of task names and set names, in the order given, each once.

    Raises:
        UserError: a selector that is neither; names the nearest of both.
    """
    chosen: dict[str, Task] = {}
    for selector in selectors:
        if selector in _sets():
            found = task_set(selector)
        else:
            try:
                found = (get(selector),)
            except UserError as error:
                raise unknown("task or set", selector, (*_table(), *_sets())) from error
        chosen |= {task.name: task for task in found}
    return list(chosen.values())
