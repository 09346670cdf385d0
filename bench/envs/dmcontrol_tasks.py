"""The 11 DMControl tasks of the TD-MPC2 paper, built on dm_control's suite.

Physics, observations and resets are those of the suite's bodies unless stated. Rewards are for one env step, between 0
and 1. Models are dm_control's own, edited here: longer ground for running backwards, a third link for the reacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from dm_control.rl import control
from dm_control.suite import ball_in_cup, cheetah, common, hopper, pendulum, reacher, walker
from dm_control.utils import rewards
from lxml import etree

Random = np.random.RandomState
Builder = Callable[[Random], control.Environment]

_INF = float("inf")


def _at_least(value: float, bound: float, margin: float, value_at_margin: float) -> float:
    """1 from `bound` up, falling linearly to `value_at_margin` at `margin` below it, and on to 0."""
    return float(rewards.tolerance(value, (bound, _INF), margin, "linear", value_at_margin))


def _tall(height: float, bound: float) -> float:
    """1 from height `bound` up, a Gaussian flank below (0.1 at half the height)."""
    return float(rewards.tolerance(height, (bound, _INF), margin=bound / 2))


def _model(name: str, half_length: float | None = None, ground: str = "") -> etree._Element:
    """A suite model as XML; with `half_length`, its ground plane is made that long [m]."""
    root = etree.fromstring(common.read_model(f"{name}.xml"))
    if half_length is not None:
        plane = root.find(f".//geom[@name='{ground}']")
        _, width, spacing = plane.get("size").split()
        plane.set("size", f"{half_length:g} {width} {spacing}")
    return root


def _environment(physics: Any, model: etree._Element, task: Any, **options: Any) -> control.Environment:
    return control.Environment(physics.from_xml_string(etree.tostring(model), common.ASSETS), task, **options)


# Walker.

_WALKER_CONTROL_S = 0.025
_WALKER_STAND_M = 1.2


class WalkerBackwards(walker.PlanarWalker):
    """Stand upright and move backwards at `speed` [m/s] or faster."""

    def __init__(self, speed: float, random: Random) -> None:
        super().__init__(move_speed=speed, random=random)
        self._speed = speed

    def get_reward(self, physics: walker.Physics) -> float:
        upright = (1 + physics.torso_upright()) / 2
        stand = (3 * _tall(physics.torso_height(), _WALKER_STAND_M) + upright) / 4
        move = _at_least(-physics.horizontal_velocity(), self._speed, self._speed / 2, 0.5)
        return float(stand * (5 * move + 1) / 6)


def _walker_backwards(speed: float) -> Builder:
    def build(random: Random) -> control.Environment:
        model = _model("walker", half_length=500, ground="floor")
        task = WalkerBackwards(speed, random)
        return _environment(walker.Physics, model, task, control_timestep=_WALKER_CONTROL_S)

    return build


# Cheetah.

_CHEETAH_BACKWARDS = 8.0  # m/s, 0.8 of the suite's speed forwards
_CHEETAH_ONE_FOOT = 6.0  # m/s, 0.6 of it
_CHEETAH_UP_M = 1.2


def _height(physics: cheetah.Physics, body: str) -> float:
    return float(physics.named.data.xpos[body, "z"])


class CheetahBackwards(cheetah.Cheetah):
    """Run backwards."""

    def get_reward(self, physics: cheetah.Physics) -> float:
        return _at_least(-physics.speed(), _CHEETAH_BACKWARDS, _CHEETAH_BACKWARDS, 0.0)


class CheetahOneFoot(cheetah.Cheetah):
    """Run forwards with the torso and one foot in the air.

    Args:
        lifted: the foot to lift: "bfoot" runs on the front foot, "ffoot" on the back foot.
    """

    def __init__(self, lifted: str, random: Random) -> None:
        super().__init__(random=random)
        self._lifted = lifted

    def get_reward(self, physics: cheetah.Physics) -> float:
        torso_up = _tall(_height(physics, "torso"), _CHEETAH_UP_M)
        foot_up = _tall(_height(physics, self._lifted), _CHEETAH_UP_M)
        run = _at_least(physics.speed(), _CHEETAH_ONE_FOOT, _CHEETAH_ONE_FOOT, 0.0)
        return (3 * foot_up + 2 * torso_up) / 5 * (5 * run + 1) / 6


class CheetahJump(cheetah.Cheetah):
    """Jump on the spot, both feet high."""

    def get_reward(self, physics: cheetah.Physics) -> float:
        still = float(rewards.tolerance(physics.speed(), (-0.5, 0.5), 0.5, "linear", 0.0))
        torso = _height(physics, "torso")
        feet = [_tall((torso + _height(physics, foot)) / 2, _CHEETAH_UP_M) for foot in ("bfoot", "ffoot")]
        return (5 * (feet[0] + feet[1]) / 2 + still) / 6


def _cheetah(task: Callable[[Random], cheetah.Cheetah]) -> Builder:
    def build(random: Random) -> control.Environment:
        return _environment(cheetah.Physics, _model("cheetah", half_length=200, ground="ground"), task(random))

    return build


# Hopper.

_HOPPER_CONTROL_S = 0.02
_HOPPER_STAND_M = (0.6, 2.0)
_HOPPER_BACKWARDS = 1.0  # m/s, half of the suite's speed forwards


class HopperBackwards(hopper.Hopper):
    """Hop backwards."""

    def __init__(self, random: Random) -> None:
        super().__init__(hopping=True, random=random)

    def get_reward(self, physics: hopper.Physics) -> float:
        standing = float(rewards.tolerance(physics.height(), _HOPPER_STAND_M))
        return standing * _at_least(-physics.speed(), _HOPPER_BACKWARDS, _HOPPER_BACKWARDS / 2, 0.5)


def _hopper_backwards(random: Random) -> control.Environment:
    return _environment(hopper.Physics, _model("hopper"), HopperBackwards(random), control_timestep=_HOPPER_CONTROL_S)


# Reacher with three links.

_LINK_M = 0.09
_HAND_M = 0.10
_BEND_DEGREES = 80


def three_link_reacher() -> etree._Element:
    """The suite's reacher with its arm in two parts: links of 0.09 m, elbow and wrist bending 80 degrees each way."""
    root = _model("reacher")
    root.set("model", "three-link planar reacher")
    arm0 = root.find(".//body[@name='arm']")
    hand = arm0.find("body[@name='hand']")
    bend = {"limited": "true", "range": f"-{_BEND_DEGREES} {_BEND_DEGREES}"}

    arm0.set("name", "arm0")
    geom = arm0.find("geom")
    geom.set("name", "arm0")
    geom.set("fromto", f"0 0 0 {_LINK_M} 0 0")
    arm0.find("joint").set("name", "shoulder0")

    arm1 = etree.SubElement(arm0, "body", {"name": "arm1", "pos": f"{_LINK_M} 0 0"})
    etree.SubElement(arm1, "geom", {**geom.attrib, "name": "arm1"})
    etree.SubElement(arm1, "joint", {"name": "shoulder1", **bend})
    arm1.append(hand)  # lxml moves it out of arm0

    hand.set("pos", f"{_LINK_M} 0 0")
    hand.find("geom").set("fromto", f"0 0 0 {_HAND_M} 0 0")
    hand.find("joint").attrib.update(bend)
    hand.find("body[@name='finger']").set("pos", f"{_LINK_M} 0 0")

    actuators = root.find("actuator")
    shoulder = actuators.find("motor[@name='shoulder']")
    shoulder.attrib.update({"name": "shoulder0", "joint": "shoulder0"})
    shoulder.addnext(etree.Element("motor", {"name": "shoulder1", "joint": "shoulder1"}))
    return root


def _reacher_three(target_radius: float) -> Builder:
    def build(random: Random) -> control.Environment:
        return _environment(reacher.Physics, three_link_reacher(), reacher.Reacher(target_radius, random))

    return build


# Ball in cup.

_CUP_CONTROL_S = 0.02
_FREE_START = 0.1
"""Share of episodes in which the ball may start anywhere; in the others it starts in the cup."""


class CupSpin(ball_in_cup.BallInCup):
    """Swing the ball around fast, at the end of its string, outside of the cup."""

    def initialize_episode(self, physics: ball_in_cup.Physics) -> None:
        free = self.random.uniform() < _FREE_START
        placed = False
        while not placed:
            physics.named.data.qpos["ball_x"] = self.random.uniform(-0.2, 0.2)
            physics.named.data.qpos["ball_z"] = self.random.uniform(0.2, 0.5)
            physics.after_reset()  # brings positions and contacts up to date
            placed = physics.data.ncon == 0 and (free or physics.in_target() > 0)

    def get_reward(self, physics: ball_in_cup.Physics) -> float:
        speed = float(np.linalg.norm(physics.named.data.qvel[["ball_x", "ball_z"]]))
        far = _at_least(float(np.linalg.norm(physics.ball_to_target())), 0.5, 0.25, 0.5)
        fast = _at_least(speed, 6.0, 3.0, 0.5)
        return float((1 - physics.in_target()) * (far + 2 * fast) / 3)


def _cup_spin(random: Random) -> control.Environment:
    return _environment(
        ball_in_cup.Physics, _model("ball_in_cup"), CupSpin(random=random), control_timestep=_CUP_CONTROL_S
    )


# Pendulum.

_PENDULUM_SPIN = 9.0  # rad/s


class PendulumSpin(pendulum.SwingUp):
    """Spin, either way round."""

    def get_reward(self, physics: pendulum.Physics) -> float:
        return _at_least(abs(float(physics.angular_velocity()[0])), _PENDULUM_SPIN, _PENDULUM_SPIN / 2, 0.5)


def _pendulum_spin(random: Random) -> control.Environment:
    return _environment(pendulum.Physics, _model("pendulum"), PendulumSpin(random=random))


BUILDERS: Mapping[str, Builder] = MappingProxyType(
    {
        "walker/walk_backwards": _walker_backwards(1.0),
        "walker/run_backwards": _walker_backwards(8.0),
        "cheetah/run_backwards": _cheetah(CheetahBackwards),
        "cheetah/run_front": _cheetah(lambda random: CheetahOneFoot("bfoot", random)),
        "cheetah/run_back": _cheetah(lambda random: CheetahOneFoot("ffoot", random)),
        "cheetah/jump": _cheetah(CheetahJump),
        "hopper/hop_backwards": _hopper_backwards,
        "reacher/three_easy": _reacher_three(0.05),
        "reacher/three_hard": _reacher_three(0.015),
        "ball_in_cup/spin": _cup_spin,
        "pendulum/spin": _pendulum_spin,
    }
)
"""Each task by its simulator_id in the task table."""
