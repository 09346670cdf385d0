"""Environments: `make` builds any task of the table as a `gymnasium.Env`; `bench.envs.pool` runs many in processes.

Light on purpose: simulators are loaded when the first environment of their domain is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from bench import tasks
from bench.envs.missing import import_failure
from bench.errors import UserError
from bench.tasks import Task

if TYPE_CHECKING:
    import gymnasium

ObsKind = Literal["state", "rgb"]

SUPPORTED_DOMAINS: dict[str, tuple[str, ...]] = {
    "dmcontrol": ("state", "rgb"),
    "metaworld": ("state",),
    "maniskill": ("state",),
    "myosuite": ("state",),
}
"""Observation kinds that each domain has environments for."""


@dataclass(frozen=True)
class Pixels:
    """What an agent wants to see with obs="rgb". The paper's pictures are the default."""

    size: int = 64
    """Height and width in pixels."""
    stack: int = 3
    """The last pictures that make up one observation."""
    shadows: bool = True
    """Whether they show shadows and reflections: three quarters of the cost of drawing one without a GPU."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.stack < 1:
            raise UserError(f"pictures of size {self.size}, {self.stack} stacked: both must be at least 1")

    @property
    def obs_shape(self) -> tuple[int, int, int]:
        """(3 x stack, size, size)."""
        return 3 * self.stack, self.size, self.size


PAPER_PIXELS = Pixels()


def agents_pixels(hyperparameters: Mapping[str, Any]) -> Pixels:
    """The pictures that an agent wants: its hyperparameters `image_size`, `frame_stack`, `shadows`; else the paper's.

    Raises:
        UserError: no pictures can be so.
    """
    return Pixels(
        size=int(hyperparameters.get("image_size", PAPER_PIXELS.size)),
        stack=int(hyperparameters.get("frame_stack", PAPER_PIXELS.stack)),
        shadows=bool(hyperparameters.get("shadows", PAPER_PIXELS.shadows)),
    )


def make(
    task: str | Task,
    obs: ObsKind = "state",
    seed: int = 0,
    action_repeat: int | None = None,
    render_mode: Literal["rgb_array"] | None = None,
    pixels: Pixels = PAPER_PIXELS,
) -> gymnasium.Env[Any, Any]:
    """One environment of a task.

    Observations are float32 vectors (O,), or uint8 images (3 x stack, size, size) with obs="rgb"; actions float32 (A,)
    in [-1, 1] for the simulator's whole range. An agent step repeats its action and sums the rewards. `terminated` says
    that the simulator ended the episode, `truncated` that its time is up; `info["success"]` is 0.0 or 1.0 at this agent
    step (0.0 where the domain has no success).

    `reset(seed=s)` decides the whole episode: the same seed and actions give the same numbers bit for bit, whatever the
    environment did before. `reset()` goes on with seeds that follow from the last one given, at first `seed`.

    Args:
        task: a name of the table, or a row. A row whose simulator_id is `gymnasium:<id>` is that environment of
            Gymnasium's registry. One whose simulator_id is `module:function` is built by that function, called as
            `function(task, obs=, seed=, action_repeat=, render_mode=)`; what it returns keeps the contract above
            (`bench.envs.base.TaskEnv` and `bench.envs.gymnasium_env.GymnasiumEnv` help).
        action_repeat: env steps in an agent step, the table's by default; it must divide the episode.
        render_mode: "rgb_array" for `render(height=, width=)`, which gives (height, width, 3) uint8.
        pixels: the pictures that obs="rgb" gives.

    Raises:
        UserError: an unknown task, a kind of observation or a domain without environments, a missing package.
    """
    row = tasks.get(task) if isinstance(task, str) else task
    repeat = row.action_repeat if action_repeat is None else action_repeat
    if repeat < 1 or row.episode_env_steps % repeat:
        raise UserError(
            f"action_repeat = {repeat} of {row.name} does not divide its episode of {row.episode_env_steps} env steps: "
            f"choose a divisor (the benchmark's is {row.action_repeat})"
        )
    options = {"obs": obs, "seed": seed, "action_repeat": repeat, "render_mode": render_mode}
    if obs == "rgb" and ":" not in row.simulator_id:
        check_supported(row, obs)
        from bench.envs.pixels import PixelEnv

        return PixelEnv(make(row, "state", seed, repeat, "rgb_array"), pixels)  # type: ignore[arg-type]
    if ":" in row.simulator_id:
        return _users_own(row, options)
    check_supported(row, obs)
    if render_mode is not None and row.domain != "maniskill":  # which brings a renderer of its own
        from bench.envs import rendering

        rendering.prepare_process()
    try:
        env: gymnasium.Env[Any, Any] = import_module(f"bench.envs.{row.domain}").make(row, **options)
    except ImportError as error:
        raise import_failure(row.name, row.domain, error) from error
    return env


def _users_own(row: Task, options: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    module, _, function = row.simulator_id.partition(":")
    if module == "gymnasium":
        from bench.envs.gymnasium_env import make as factory
    else:
        try:
            factory = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"task '{row.name}': simulator_id '{row.simulator_id}' names no function that can be loaded ({error})"
            ) from error
    env: gymnasium.Env[Any, Any] = factory(row, **options)
    return env


def check_supported(task: Task, obs: str) -> None:
    """Whether `make` has an environment for this task and kind of observation, without loading a simulator.

    Raises:
        UserError: it has none; says what there is.
    """
    if ":" in task.simulator_id or obs in SUPPORTED_DOMAINS.get(task.domain, ()):
        return
    if task.domain not in SUPPORTED_DOMAINS:
        raise UserError(
            f"{task.name} is of domain '{task.domain}', which has no environments: use one of "
            f"{', '.join(SUPPORTED_DOMAINS)}, or name the function that makes it (simulator_id = 'module:function')"
        )
    having = [domain for domain, kinds in SUPPORTED_DOMAINS.items() if obs in kinds]
    raise UserError(
        f"obs={obs} is not to be had for {task.name}: domain {task.domain} gives "
        f"{', '.join(SUPPORTED_DOMAINS[task.domain])}" + (f", obs={obs} is for {', '.join(having)}" if having else "")
    )


def obs_spec(task: Task, obs: ObsKind, pixels: Pixels = PAPER_PIXELS) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of a task's observations, from the table alone.

    Raises:
        UserError: no environment gives this kind of observation.
    """
    check_supported(task, obs)
    return (pixels.obs_shape, "uint8") if obs == "rgb" else ((task.obs_size,), "float32")
