"""ManiSkill2: a scripted grasp lifts the cube, also without a renderer, which changes nothing in the dynamics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import envs, tasks
from bench.envs import vulkan
from bench.envs.maniskill import ManiSkill
from bench.envs.missing import import_failure
from bench.errors import UserError


def make(name: str, **options: Any) -> ManiSkill:
    env = envs.make(name, **options)
    assert isinstance(env, ManiSkill)
    return env


def grasp(simulation: Any, obj: Any, agent_steps: int) -> np.ndarray:
    """To the object with open fingers, close them, then up; displacements are in the gripper's own frame."""
    axes = simulation.tcp.pose.to_transformation_matrix()[:3, :3]
    if agent_steps < 30:
        return np.append(axes.T @ (obj.pose.p - simulation.tcp.pose.p) * 10, 1.0).clip(-1, 1)
    return np.append(axes.T @ [0, 0, 0.0 if agent_steps < 40 else 0.5], -1.0)


def episode(env: ManiSkill, seed: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Observations (101, O), rewards and successes of one episode of the scripted grasp."""
    observations, rewards, successes = [env.reset(seed=seed)[0]], [], []
    obj = env.simulation.cubeA if env.task.name == "stack-cube" else env.simulation.obj
    truncated = False
    while not truncated:
        obs, reward, terminated, truncated, info = env.step(grasp(env.simulation, obj, len(rewards)))
        assert not terminated  # success ends nothing
        observations.append(obs)
        rewards.append(reward)
        successes.append(info["success"])
    return np.stack(observations), np.array(rewards), successes


@pytest.mark.whole
def test_a_scripted_grasp_lifts_the_cube_again_and_again() -> None:
    """Contacts included, an episode repeats itself bit for bit, whatever the environment did before."""
    env = make("lift-cube")
    observations, rewards, successes = episode(env, seed=7)
    assert len(rewards) == 100
    assert successes[-1] == 1.0
    assert 1.0 in successes[:60]
    assert rewards[-1] == 2 * 2.25  # the dense reward, undivided, in both env steps
    other, _, _ = episode(env, seed=8)
    assert (other[0] != observations[0]).any()
    for again in (env, make("lift-cube", seed=3)):
        repeated, repeated_rewards, _ = episode(again, seed=7)
        assert (repeated == observations).all()
        assert (repeated_rewards == rewards).all()


SHIPPED = """
import os
import sys
import numpy as np
import test_envs_maniskill as t
from bench.envs import unrendered, vulkan

NAMES = ("lift-cube", "pick-cube", "stack-cube")
OPTIONS = {"obs_mode": "state", "reward_mode": "dense", "control_mode": "pd_ee_delta_pos"}
envs = {name: t.make(name) for name in NAMES}
from mani_skill2.utils.registration import REGISTERED_ENVS

ours, kept = {}, []
for name, env in envs.items():
    as_shipped = REGISTERED_ENVS[env.task.simulator_id].cls
    env.simulation = unrendered.build(as_shipped, **OPTIONS)
    assert not env.simulation.agent.robot.get_links()[1].get_visual_bodies()
    ours[name] = t.episode(env, seed=7)
for name, env in envs.items():  # from here on the engine has a renderer
    as_shipped = REGISTERED_ENVS[env.task.simulator_id].cls
    if vulkan.device() is None:
        # The package's own renderer still builds every visual shape; cameras, lights and freeing need a device.
        class Blind(as_shipped):
            def _setup_cameras(self):
                self._cameras = self._render_cameras = {}
            def _setup_lighting(self):
                pass
            def _setup_scene(self, *arguments):
                super()._setup_scene(*arguments)
                kept.append(self._scene)
        as_shipped = Blind
    kept.append(env.simulation)
    try:
        env.simulation = as_shipped(**OPTIONS)
    except RuntimeError as error:
        sys.exit(f"no renderer: {error}")
    assert env.simulation.agent.robot.get_links()[1].get_visual_bodies()
    theirs = t.episode(env, seed=7)
    assert all(np.array_equal(a, b) for a, b in zip(ours[name], theirs)), np.abs(ours[name][0] - theirs[0]).max()
print("equal", flush=True)
os._exit(0)
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.whole
def test_the_dynamics_are_those_with_the_renderer() -> None:
    """In a process of its own, since an engine keeps the renderer that it was given."""
    done = run(SHIPPED)
    if "no renderer: " in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


WITHOUT_LIBRARIES = """
import os
import sys
from pathlib import Path
import test_envs_maniskill as t
from bench.envs import sapien_placeholders, vulkan

if sys.argv[1] == "hidden":
    vulkan.device = lambda: None
    sapien_placeholders._is_installed = lambda name: False
observations, rewards, _ = t.episode(t.make("lift-cube"), seed=7)
loaded = Path("/proc/self/maps").read_text()
print(any(f"/{name}." in loaded and "(deleted)" in loaded for name in sapien_placeholders.LIBRARIES))
print(observations.tobytes().hex()[-64:], rewards.tobytes().hex())
"""


@pytest.mark.whole
def test_the_dynamics_are_the_same_without_the_systems_graphics_libraries() -> None:
    """As on a machine with nothing but Python: placeholders take the place of every library that draws."""
    whole, hidden = run(WITHOUT_LIBRARIES, "whole"), run(WITHOUT_LIBRARIES, "hidden")
    assert (whole.returncode, hidden.returncode) == (0, 0), hidden.stderr
    assert hidden.stdout.splitlines()[0] == "True"
    assert whole.stdout.splitlines()[1] == hidden.stdout.splitlines()[1]


def test_pictures() -> None:
    if vulkan.device() is None:
        with pytest.raises(UserError, match=r"pictures of lift-cube need a GPU that Vulkan finds.*leave out videos"):
            envs.make("lift-cube", render_mode="rgb_array")
        pytest.skip("no GPU that Vulkan finds: only the refusal was tested")
    env = make("lift-cube", render_mode="rgb_array")
    env.reset(seed=1)
    image = env.render(height=48, width=64)
    assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)
    assert image.std() > 5


# The two tasks that need models from the internet.

MAKE = """
from bench import envs
from bench.errors import UserError
for name in ("pick-ycb", "turn-faucet"):
    try:
        envs.make(name)
    except UserError as error:
        print(error)
"""


@pytest.mark.whole
def test_missing_models_are_one_line_with_the_download(tmp_path: Path) -> None:
    done = run(MAKE, MS2_ASSET_DIR=str(tmp_path / "models"))
    lines = dict(zip(("pick-ycb", "turn-faucet"), done.stdout.splitlines(), strict=True))
    for name, asset in (("pick-ycb", "ycb"), ("turn-faucet", "partnet_mobility_faucet")):
        assert f"{name} needs models that are not in {tmp_path / 'models'}" in lines[name]
        assert f"-m mani_skill2.utils.download_asset -y {asset}'" in lines[name]
        assert "set MS2_ASSET_DIR" in lines[name]
    assert done.stderr == ""


BOX = """<collision><geometry><box size="{size} {size} {size}"/></geometry></collision>
<inertial><mass value="0.1"/><inertia ixx="1e-4" iyy="1e-4" izz="1e-4" ixy="0" ixz="0" iyz="0"/></inertial>"""


def faucet(semantics: list[list[str]]) -> str:
    """A URDF of a box for a base and a box on a hinge for each switch."""
    text = f'<robot name="faucet"><link name="base">{BOX.format(size=0.5)}</link>'
    for number, (link, _, kind) in enumerate(semantics):
        hinge = kind == "switch"
        text += f'<link name="{link}">{BOX.format(size=0.2)}</link>'
        text += f'<joint name="joint_{number}" type="{"revolute" if hinge else "fixed"}">'
        text += f'<parent link="base"/><child link="{link}"/><origin xyz="0 {number} 1"/>'
        text += '<axis xyz="0 0 1"/><limit lower="0" upper="1.5" effort="1" velocity="1"/>' if hinge else ""
        text += "</joint>"
    return text + "</robot>"


def stand_ins(folder: Path) -> None:
    """Boxes with the names and in the places of the real models."""
    corners = [f"v {x} {y} {z}" for x in (-0.02, 0.02) for y in (-0.02, 0.02) for z in (-0.02, 0.02)]
    faces = ["1 2 4", "1 4 3", "5 7 8", "5 8 6", "1 5 6", "1 6 2", "3 4 8", "3 8 7", "1 3 7", "1 7 5", "2 6 8", "2 8 4"]
    ycb = folder / "mani_skill2_ycb"
    box = {"bbox": {"min": [-0.02] * 3, "max": [0.02] * 3}, "scales": [1.0], "density": 1000}
    for name in ("004_sugar_box", "011_banana"):
        (ycb / "models" / name).mkdir(parents=True)
        mesh = "\n".join([*corners, *(f"f {face}" for face in faces)])
        for file in ("collision.obj", "textured.obj"):
            (ycb / "models" / name / file).write_text(mesh)
    (ycb / "info_pick_v0.json").write_text(json.dumps({"004_sugar_box": box, "011_banana": box}))
    spec = util.find_spec("mani_skill2")
    assert spec is not None
    assert spec.origin is not None
    known = json.loads((Path(spec.origin).parent / "assets/partnet_mobility/meta/info_faucet_train.json").read_text())
    for name, about in known.items():
        model = folder / "partnet_mobility" / "dataset" / name
        model.mkdir(parents=True)
        (model / "mobility_cvx.urdf").write_text(faucet(about["semantics"]))


@pytest.mark.whole
@pytest.mark.parametrize("name", ["pick-ycb", "turn-faucet"])
def test_with_models_they_are_what_the_table_says(name: str, tmp_path: Path) -> None:
    """Stand-ins for the real models: the loading, the sizes, the seeds and the episode are the real ones."""
    stand_ins(tmp_path)
    code = "import sys, test_envs_domains as t; t.check_row(t.tasks.get(sys.argv[1])); print('as it should be')"
    done = run(code, name, MS2_ASSET_DIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "as it should be\n"), done.stderr


def test_a_missing_library_of_the_system_is_named() -> None:
    cause = ImportError("libvulkan.so.1: cannot open shared object file: No such file or directory")
    line = str(import_failure("lift-cube", "maniskill", cause))
    assert "lift-cube needs mani_skill2, whose import failed (libvulkan.so.1: cannot open" in line
    assert "apt-get install libvulkan1" in line


def test_a_task_that_does_not_exist_is_said() -> None:
    with pytest.raises(UserError, match="no ManiSkill2 environment 'FlyCube-v0' is known here: valid are LiftCube-v0"):
        envs.make(replace(tasks.get("lift-cube"), simulator_id="FlyCube-v0"))
