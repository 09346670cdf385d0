"""Rewards of the 11 added DMControl tasks at states where their value is known by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from dm_control import suite

from bench.envs import dmcontrol


def start(simulator_id: str) -> Any:
    simulation = dmcontrol.load(simulator_id, np.random.RandomState(0))
    simulation.reset()
    return simulation


def reward(simulation: Any, qpos: Mapping[str, float] = {}, qvel: Mapping[str, float] = {}) -> float:
    """The reward with the model at its initial pose, at rest, but for these joints."""
    physics = simulation.physics
    physics.data.qpos[:] = physics.model.qpos0
    physics.data.qvel[:] = 0
    for joint, value in qpos.items():
        physics.named.data.qpos[joint] = value
    for joint, value in qvel.items():
        physics.named.data.qvel[joint] = value
    physics.forward()
    return float(simulation.task.get_reward(physics))


def gaussian(distance: float) -> float:
    """The flank of a default tolerance: a tenth at one margin."""
    return math.exp(math.log(0.1) * distance**2)


@pytest.mark.parametrize(("task", "speed"), [("walk", 1.0), ("run", 8.0)])
def test_walker_backwards(task: str, speed: float) -> None:
    sim = start(f"walker/{task}_backwards")
    # Upright at 1.3 m: standing pays 1, the move part is all that varies.
    assert reward(sim, qvel={"rootx": -speed}) == pytest.approx(1)
    assert reward(sim, qvel={"rootx": -1.5 * speed}) == pytest.approx(1)
    assert reward(sim, qvel={"rootx": -0.75 * speed}) == pytest.approx((5 * 0.75 + 1) / 6)
    assert reward(sim, qvel={"rootx": -0.5 * speed}) == pytest.approx((5 * 0.5 + 1) / 6)
    assert reward(sim) == pytest.approx(1 / 6)
    assert reward(sim, qvel={"rootx": speed}) == pytest.approx(1 / 6)
    # 0.9 m is half a margin below 1.2 m; upside down the torso's frame keeps its height.
    assert reward(sim, {"rootz": -0.4}, {"rootx": -speed}) == pytest.approx((3 * gaussian(0.5) + 1) / 4)
    assert reward(sim, {"rooty": math.pi}, {"rootx": -speed}) == pytest.approx(3 / 4, abs=1e-6)


def test_cheetah_run_backwards() -> None:
    sim = start("cheetah/run_backwards")
    assert reward(sim, qvel={"rootx": -8}) == pytest.approx(1)
    assert reward(sim, qvel={"rootx": -2}) == pytest.approx(0.25)
    assert reward(sim) == 0
    assert reward(sim, qvel={"rootx": 8}) == 0


@pytest.mark.parametrize(("task", "foot_drop"), [("front", 0.39), ("back", 0.42)])
def test_cheetah_on_one_foot(task: str, foot_drop: float) -> None:
    """The torso starts at 0.7 m; the back foot hangs 0.25 + 0.14 m below it, the front foot 0.24 + 0.18 m."""
    sim = start(f"cheetah/run_{task}")
    assert reward(sim, {"rootz": 1.0}, {"rootx": 6}) == pytest.approx(1)
    assert reward(sim, {"rootz": 1.0}, {"rootx": 3}) == pytest.approx((5 * 0.5 + 1) / 6)
    assert reward(sim, {"rootz": 1.0}, {"rootx": -3}) == pytest.approx(1 / 6)
    # Torso just high enough, the foot that hangs below it not.
    foot_up = gaussian(foot_drop / 0.6)
    assert reward(sim, {"rootz": 0.5001}, {"rootx": 6}) == pytest.approx((3 * foot_up + 2) / 5, abs=1e-3)
    # On the ground: torso 0.5 m short, foot 0.5 m more than it hangs.
    both = (3 * gaussian((0.5 + foot_drop) / 0.6) + 2 * gaussian(0.5 / 0.6)) / 5
    assert reward(sim, {}, {"rootx": 6}) == pytest.approx(both)


def test_cheetah_jump() -> None:
    sim = start("cheetah/jump")
    assert reward(sim, {"rootz": 1.0}) == pytest.approx(1)
    assert reward(sim, {"rootz": 1.0}, {"rootx": 0.5}) == pytest.approx(1)
    assert reward(sim, {"rootz": 1.0}, {"rootx": -0.75}) == pytest.approx(5.5 / 6)
    assert reward(sim, {"rootz": 1.0}, {"rootx": 2}) == pytest.approx(5 / 6)
    means = [0.7 - 0.39 / 2, 0.7 - 0.42 / 2]  # of the torso and each foot
    up = sum(gaussian((1.2 - mean) / 0.6) for mean in means) / 2
    assert reward(sim) == pytest.approx((5 * up + 1) / 6)


def test_hopper_hop_backwards() -> None:
    sim = start("hopper/hop_backwards")
    assert reward(sim, qvel={"rootx": -1}) == pytest.approx(1)
    assert reward(sim, qvel={"rootx": -0.75}) == pytest.approx(0.75)
    assert reward(sim, qvel={"rootx": -0.5}) == pytest.approx(0.5)
    assert reward(sim) == 0
    assert reward(sim, qvel={"rootx": 1}) == 0
    assert reward(sim, {"rooty": math.pi}, {"rootx": -1}) == 0  # head below foot: not standing


@pytest.mark.parametrize(("task", "reach"), [("easy", 0.06), ("hard", 0.025)])
def test_reacher_three(task: str, reach: float) -> None:
    sim = start(f"reacher/three_{task}")
    physics = sim.physics
    joints = {"shoulder0": 0.3, "shoulder1": math.radians(80), "wrist": math.radians(-40)}
    angles = np.cumsum(list(joints.values()))
    finger = 0.09 * np.array([np.cos(angles).sum(), np.sin(angles).sum()])  # the three links one after the other
    for distance, expected in ((reach - 1e-3, 1.0), (reach + 1e-3, 0.0)):
        physics.named.model.geom_pos["target", :2] = finger + distance * np.array([0.6, 0.8])
        assert reward(sim, joints) == expected
    # Observation order: joint positions, finger to target, joint velocities.
    obs = dmcontrol.flatten(sim.task.get_observation(physics))
    assert obs == pytest.approx([*joints.values(), *((reach + 1e-3) * np.array([0.6, 0.8])), 0, 0, 0])
    assert np.degrees(physics.named.model.jnt_range[["shoulder1", "wrist"]]) == pytest.approx(
        np.array([[-80, 80], [-80, 80]])
    )
    assert physics.named.model.jnt_limited["shoulder0"] == 0
    suites = suite.load("reacher", "easy").physics.model
    assert (physics.model.actuator_gear == suites.actuator_gear[0]).all()
    assert physics.model.nu == 3
    lengths = 2 * physics.named.model.geom_size[["arm0", "arm1", "hand"], 1]
    assert lengths == pytest.approx([0.09, 0.09, 0.10])


def test_cup_spin_rewards() -> None:
    sim = start("ball_in_cup/spin")  # the target is at 0.55 m, the ball hangs at 0.2 m
    assert reward(sim, {"ball_x": 0.3, "ball_z": -0.06}, {"ball_x": -3.61, "ball_z": 4.8}) == pytest.approx(1)
    # 0.35 m away is 0.6 margins short, 5 m/s a third of one.
    far, fast = 1 - 0.5 * 0.6, 1 - 0.5 / 3
    assert reward(sim, {}, {"ball_x": 3, "ball_z": 4}) == pytest.approx((far + 2 * fast) / 3)
    assert reward(sim) == pytest.approx(far / 3)
    assert reward(sim, {"ball_z": 0.35}, {"ball_x": 6}) == 0  # in the cup
    assert reward(sim, {"ball_z": 0.35, "ball_x": 0.026}, {"ball_x": 6}) > 0.6  # 1 mm out of it


def test_cup_spin_starts_caught_in_nine_of_ten_episodes() -> None:
    simulation = dmcontrol.load("ball_in_cup/spin", random := np.random.RandomState())
    physics, caught = simulation.physics, []
    for seed in range(300):
        random.seed(seed)
        simulation.reset()
        assert physics.data.ncon == 0
        ball_x, ball_z = physics.named.data.qpos[["ball_x", "ball_z"]]
        assert abs(ball_x) <= 0.2
        assert 0.2 <= ball_z <= 0.5
        caught.append(physics.in_target())
        # The rule is on the first draw of the episode, known from the seed alone.
        free = np.random.RandomState(seed).uniform() < 0.1
        assert free or caught[-1] == 1
    assert 0.86 <= np.mean(caught) <= 0.94  # 0.9, standard error 0.017


def test_pendulum_spin() -> None:
    sim = start("pendulum/spin")
    for sign in (-1, 1):
        assert reward(sim, qvel={"hinge": sign * 9}) == pytest.approx(1)
        assert reward(sim, qvel={"hinge": sign * 6.75}) == pytest.approx(0.75)
    assert reward(sim) == 0


@pytest.mark.parametrize(
    ("ours", "theirs", "ground", "half_length"),
    [("walker/run_backwards", "walker/run", "floor", 500), ("cheetah/jump", "cheetah/run", "ground", 200)],
)
def test_longer_ground_is_the_only_change(ours: str, theirs: str, ground: str, half_length: float) -> None:
    domain, _, name = theirs.partition("/")
    model, original = start(ours).physics.model, suite.load(domain, name).physics.model
    plane = model.name2id(ground, "geom")
    assert model.geom_size[plane, 0] == half_length == 2 * original.geom_size[plane, 0]
    expected = original.geom_size.copy()
    expected[plane, 0] = half_length
    assert (model.geom_size == expected).all()
    for field in (
        "body_mass",
        "body_inertia",
        "jnt_range",
        "actuator_gear",
        "geom_friction",
        "geom_pos",
        "dof_damping",
    ):
        assert (getattr(model, field) == getattr(original, field)).all(), field
    assert model.opt.timestep == original.opt.timestep
