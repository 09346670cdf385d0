"""ManiSkill3's versions of the tasks that it shares with ManiSkill2, where it is installed instead of that.

They are other tasks under the same names (robot, observation, reward and scene were changed), so their rows carry
another `domain_version`. One environment at a time, simulated on the CPU, as for ManiSkill2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.envs import vulkan
from bench.envs.base import TaskEnv
from bench.envs.quiet import hushed
from bench.errors import UserError
from bench.tasks import Task

CONTROL_MODE = "pd_ee_delta_pos"
"""The paper's for the tasks that are known here: displacement of the end effector."""


class _Nothing:
    """Stands for a material: takes every call and every value, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


@contextlib.contextmanager
def _without_appearance() -> Iterator[None]:
    """Build scenes from collision shapes alone.

    `render_backend="none"` leaves out renderer, cameras and lights, but materials are still made for every body, which
    fails without a Vulkan device.
    """
    import sapien
    from sapien.wrapper import actor_builder, urdf_loader

    builder, nothing = actor_builder.ActorBuilder, _Nothing()
    adders = [name for name in vars(builder) if name.startswith("add_") and "visual" in name]
    replaced: list[tuple[Any, str, Any]] = [(builder, name, _add_nothing) for name in adders]
    replaced += [(module, "RenderMaterial", nothing) for module in (sapien.render, urdf_loader)]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


def _add_nothing(builder: Any, *args: Any, **kwargs: Any) -> Any:
    return builder


class ManiSkill3(TaskEnv):
    """One ManiSkill3 task. `simulation` is the package's own environment, without gymnasium's wrappers.

    The reward is `dense`, success ends nothing and is read at the last agent step, as for ManiSkill2.

    Raises:
        ImportError: mani_skill, SAPIEN or a library of the system is missing or broken.
        UserError: no such environment, or pictures are asked for on a machine that cannot draw.
    """

    def __init__(
        self, task: Task, seed: int, action_repeat: int, render_mode: Literal["rgb_array"] | None = None
    ) -> None:
        super().__init__(task, seed, action_repeat, render_mode)
        with hushed():
            import_module("mani_skill.envs")  # registers its environments
            registered = import_module("mani_skill.utils.registration").REGISTERED_ENVS
        if task.simulator_id not in registered:
            raise UserError(f"ManiSkill3 has no environment '{task.simulator_id}'")
        gpu = vulkan.device()
        if render_mode is not None and gpu is None:
            raise UserError(vulkan.needed_for(task.name))
        self._building = contextlib.nullcontext if gpu is not None else _without_appearance
        with hushed(), self._building():
            self.simulation: Any = registered[task.simulator_id].cls(
                num_envs=1,
                obs_mode="state",
                reward_mode="dense",
                control_mode=CONTROL_MODE,
                render_mode=render_mode,
                sim_backend="physx_cpu",
                render_backend="none" if gpu is None else "gpu",
            )

    def _reset_simulator(self, seed: int) -> NDArray[Any]:
        # A new scene, as for ManiSkill2: the old one remembers its last contacts.
        with self._building():
            obs, _ = self.simulation.reset(seed=seed, options={"reconfigure": True})
        return np.asarray(obs[0])

    def _step_simulator(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, bool, float]:
        obs, reward, _, _, info = self.simulation.step(action)
        return np.asarray(obs[0]), float(reward[0]), False, float(info["success"][0])

    def _draw(self, height: int, width: int) -> NDArray[np.uint8]:
        from PIL import Image

        image = Image.fromarray(np.asarray(self.simulation.render()[0]))  # of the size that its camera was made with
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    def close(self) -> None:
        """Free the scene and its renderer."""
        self.simulation.close()
