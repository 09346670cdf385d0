"""The rows of the 104 tasks of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from bench.installed import is_maniskill3, maniskill3_version
from bench.tasks.sets import BY_TAG, LOCOMOTION, METAWORLD, NEW
from bench.tasks.task import Task

MANISKILL3: Mapping[str, tuple[str, int]] = MappingProxyType(
    {"pick-cube": ("PickCube-v1", 42), "stack-cube": ("StackCube-v1", 48)}
)
"""Tasks that ManiSkill3 has too, where it is installed instead of ManiSkill2: its own name and observation size."""


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


def benchmark_rows() -> list[Task]:
    """The rows of the 104 tasks: DMControl (28 standard, 11 new), Meta-World, ManiSkill2 and MyoSuite."""
    return [*_dmcontrol(), *_metaworld(), *_maniskill(), *_myosuite()]
