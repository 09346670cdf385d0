"""ManiSkill2 without its renderer, for machines without a Vulkan device.

As it ships, ManiSkill2 attaches a renderer to its engine and gives every body a visual shape, every robot its cameras
and every scene its lights, also where only state is observed. Here the engine never gets a renderer, and what is there
only to be seen is left out. Physics is untouched: collision shapes, masses, joints and contacts are built by the
package's own code.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any


class _Nothing:
    """Stands for a renderer, or a material of one: takes every call and every value, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


class _Behind:
    """Passes on whatever it has no answer of its own for."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Builder(_Behind):
    """An actor builder that adds collision shapes and no visual ones."""

    def __getattr__(self, name: str) -> Any:
        return _Nothing() if name.startswith("add_") and "visual" in name else super().__getattr__(name)


class _Scene(_Behind):
    def create_actor_builder(self) -> Any:
        return _Builder(self._real.create_actor_builder())

    def add_ground(self, altitude: float, **appearance: Any) -> Any:
        return self._real.add_ground(altitude=altitude, render=False)


class _Engine(_Behind):
    def set_renderer(self, renderer: Any) -> None:
        """Stays without."""


class _Sapien(_Behind):
    """The module `sapien.core` as ManiSkill2's base environment shall see it while it is being built."""

    render_config = _Nothing()

    def Engine(self) -> Any:
        return _Engine(self._real.Engine())

    def SapienRenderer(self, **options: Any) -> Any:
        return _Nothing()


class _Unrendered:
    """What overrides ManiSkill2's base environment."""

    _scene: Any

    def _setup_scene(self, scene_config: Any = None) -> None:
        super()._setup_scene(scene_config)  # type: ignore[misc]
        self._scene = _Scene(self._scene)

    def _setup_cameras(self) -> None:
        self._cameras: OrderedDict[str, Any] = OrderedDict()
        self._render_cameras: OrderedDict[str, Any] = OrderedDict()

    def _setup_lighting(self) -> None:
        """No lights."""


def build(environment: type[Any], **options: Any) -> Any:
    """An environment of a ManiSkill2 class that never has a renderer.

    Args:
        environment: subclass of `mani_skill2.envs.sapien_env.BaseEnv`.
        options: of its constructor; no kind of observation or rendering that needs pictures.
    """
    unrendered = type(environment.__name__, (_Unrendered, environment), {})
    with _module_replaced():
        return unrendered(**options)


@contextlib.contextmanager
def _module_replaced() -> Iterator[None]:
    from mani_skill2.envs import sapien_env

    real = sapien_env.sapien
    sapien_env.sapien = _Sapien(real)
    try:
        yield
    finally:
        sapien_env.sapien = real
