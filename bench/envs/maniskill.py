"""ManiSkill2: five tasks of a Panda arm in SAPIEN, from state observations."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.envs import sapien_placeholders, unrendered, vulkan
from bench.envs.base import TaskEnv
from bench.envs.missing import MANISKILL_ASSETS
from bench.envs.quiet import hushed
from bench.errors import UserError
from bench.installed import is_maniskill3
from bench.tasks import Task
from bench.tasks.rows import MANISKILL3

CONTROL_MODES: Mapping[str, str] = MappingProxyType(
    {
        "LiftCube-v0": "pd_ee_delta_pos",
        "PickCube-v0": "pd_ee_delta_pos",
        "StackCube-v0": "pd_ee_delta_pos",
        "PickSingleYCB-v0": "pd_ee_delta_pose",
        "TurnFaucet-v0": "pd_ee_delta_pose",
    }
)
"""The paper's: end-effector displacement, with rotation for the last two."""

_MANISKILL3_IDS = frozenset(simulator_id for simulator_id, _ in MANISKILL3.values())


def make(task: Task, obs: str, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None) -> TaskEnv:
    """A ManiSkill2 environment, or ManiSkill3's where that is installed instead; see `bench.envs.make`, which has
    checked that `obs` is supported.

    Raises:
        ImportError: the package, SAPIEN or a library of the system is missing or broken.
        UserError: the task's models are not downloaded, pictures are asked for on a machine that cannot draw, or the
            task is ManiSkill2's alone and ManiSkill3 is installed.
    """
    if task.simulator_id in _MANISKILL3_IDS:
        from bench.envs.maniskill3 import ManiSkill3

        return ManiSkill3(task, seed, action_repeat, render_mode)
    if is_maniskill3():
        raise UserError(
            f"{task.name} is a task of ManiSkill2, and ManiSkill3 is installed, of which {', '.join(MANISKILL3)} are "
            "known here: for the others install ManiSkill2 in an environment of its own ('make setup' in a fresh clone)"
        )
    return ManiSkill(task, seed, action_repeat, render_mode)


class ManiSkill(TaskEnv):
    """One ManiSkill2 task. `simulation` is the package's own environment, without gymnasium's wrappers.

    The reward is the paper's `dense` (the package's default divides it by its maximum). Success ends nothing, as in
    the version of the authors' code that made the published curves: it is read at the last agent step.

    Where Vulkan finds no GPU the simulation is built without its renderer (`bench.envs.unrendered`).
    """

    def __init__(
        self, task: Task, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None = None
    ) -> None:
        super().__init__(task, seed, action_repeat, render_mode)
        gpu = vulkan.device()  # before a placeholder takes Vulkan's place
        with hushed():
            sapien_placeholders.import_sapien()
            import_module("mani_skill2.envs")  # registers its environments
            registered = import_module("mani_skill2.utils.registration").REGISTERED_ENVS
        known = task.simulator_id in registered and task.simulator_id in CONTROL_MODES
        if not known:
            raise UserError(
                f"no ManiSkill2 environment '{task.simulator_id}' is known here: valid are {', '.join(CONTROL_MODES)}"
            )
        if render_mode is not None and gpu is None:
            raise UserError(vulkan.needed_for(task.name))
        options = {
            "obs_mode": "state",
            "reward_mode": "dense",
            "control_mode": CONTROL_MODES[task.simulator_id],
            "render_mode": render_mode,
        }
        environment = registered[task.simulator_id].cls
        try:
            with hushed():
                self.simulation: Any = (
                    environment(**options) if gpu is not None else unrendered.build(environment, **options)
                )
        except FileNotFoundError as error:
            raise _without_assets(task, error) from error

    def _reset_simulator(self, seed: int) -> NDArray[Any]:
        # A new scene: the old one remembers its last contacts, and a grasp would not repeat itself bit for bit. It
        # takes 30 ms, and about 12 KB that SAPIEN does not give back.
        obs, _ = self.simulation.reset(seed=seed, options={"reconfigure": True})
        return np.asarray(obs)

    def _step_simulator(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, bool, float]:
        obs, reward, _, _, info = self.simulation.step(action)
        return obs, float(reward), False, float(info["success"])

    def _draw(self, height: int, width: int) -> NDArray[np.uint8]:
        from PIL import Image

        image = Image.fromarray(self.simulation.render())  # of the size that its camera was made with
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    def close(self) -> None:
        """Free the scene and its renderer."""
        self.simulation.close()


def _without_assets(task: Task, error: FileNotFoundError) -> UserError:
    folder = Path(os.environ.get("MS2_ASSET_DIR", "data")).absolute()
    cause = str(error).splitlines()[0].partition("Please")[0].strip(" .")
    return UserError(
        f"{task.name} needs models that are not in {folder} ({cause}): set MS2_ASSET_DIR to a folder with room and "
        f"download them there (internet) with '{sys.executable} -m mani_skill2.utils.download_asset -y "
        f"{MANISKILL_ASSETS[task.simulator_id]}'; MS2_ASSET_DIR must be set for training too"
    )
