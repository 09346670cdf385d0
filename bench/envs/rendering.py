"""Which OpenGL backend MuJoCo renders with. It is settled when MuJoCo is loaded, once for a process."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError

DISABLED = ("disabled", "disable", "off", "false", "0")
"""Values of MUJOCO_GL that load MuJoCo without rendering."""

_HEADLESS = ("egl", "osmesa")  # a GPU where there is one, then plain software
_PROBE = "import mujoco; context = mujoco.GLContext(32, 32); context.make_current(); context.free()"
_PROBE_TIMEOUT_S = 120.0


def choose_backend() -> str:
    """The value of MUJOCO_GL to render with: the user's if set, else the first of EGL and OSMesa that works here.

    Raises:
        UserError: MUJOCO_GL forbids rendering or does not work, or neither backend works; says what to install.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen in DISABLED:
        raise UserError(f"rendering is asked for, but MUJOCO_GL={chosen} switches it off: unset MUJOCO_GL")
    if chosen:
        reason = failure(chosen)
        if reason is None:
            return chosen
        raise UserError(f"rendering with MUJOCO_GL={chosen} fails here ({reason}): unset MUJOCO_GL to let it be chosen")
    reasons = []
    for backend in _HEADLESS:
        reason = failure(backend)
        if reason is None:
            return backend
        reasons.append(f"{backend}: {reason}")
    raise UserError(
        f"no rendering works here ({'; '.join(reasons)}): install EGL with 'apt-get install libegl1 libgl1 "
        "libgl1-mesa-dri', or OSMesa with 'apt-get install libosmesa6'"
    )


@cache
def failure(backend: str) -> str | None:
    """Why MuJoCo cannot render with a backend; None where it can. Tried in a process of its own, once."""
    environment = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=environment | {"MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_PROBE_TIMEOUT_S:.0f} s"
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines()
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    return (errors or lines or [f"exit code {probe.returncode}"])[0]


def prepare_process() -> None:
    """Settle the backend of this process, before MuJoCo is loaded.

    Raises:
        UserError: MuJoCo is loaded already, without a backend; or none works.
    """
    settled = os.environ.get("MUJOCO_GL", "").strip().lower()
    if "mujoco" in sys.modules:
        if not settled or settled in DISABLED:
            raise UserError(
                "rendering must be settled before MuJoCo is loaded in a process: set MUJOCO_GL=egl (or osmesa) first, "
                "or render in worker processes (EnvPool with workers >= 1 and render=True)"
            )
        return
    os.environ["MUJOCO_GL"] = choose_backend()


class MujocoCamera:
    """Pictures of a MuJoCo simulation from one of its cameras, for simulators that bring no renderer of their own.

    Args:
        model: `mujoco.MjModel`.
        data: `mujoco.MjData` of it, whose present state is drawn.
        camera: its name in the model.
    """

    def __init__(self, model: Any, data: Any, camera: str) -> None:
        self._model, self._data = model, data
        self.id: int = model.camera(camera).id
        self._renderer: Any = None
        self._size = (0, 0)

    def image(self, height: int, width: int) -> NDArray[np.uint8]:
        """The present state, (height, width, 3)."""
        import mujoco

        if self._size != (height, width):
            self.close()
            screen = self._model.vis.global_
            screen.offheight, screen.offwidth = max(screen.offheight, height), max(screen.offwidth, width)
            self._renderer, self._size = mujoco.Renderer(self._model, height, width), (height, width)
        self._renderer.update_scene(self._data, camera=self.id)
        return np.array(self._renderer.render())

    def close(self) -> None:
        """Free the rendering context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer, self._size = None, (0, 0)
