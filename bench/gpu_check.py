"""The whole GPU measurement in one call of a few minutes, on a machine that needs no simulator and no network:

    python -m bench.gpu_check                       # into results/speed/, or below $OUT where that is set
    python -m bench.gpu_check --device cpu --fleet 1,2 --calls 4 --agent sac hidden_dim=32
    python -m bench.gpu_check --fleet 1,2,4 --agent drqv2 --obs rgb

It needs torch (with CUDA for a GPU), numpy, pydantic, typer and rich; PyYAML for key=value, pytest for `-m gpu` tests.
It measures update, act and loop by fleet size on made-up environments until memory or time is out, and a single run in
float32, TF32 and bfloat16 side by side; checks that neither act nor update waits for the GPU, that a fleet gives what
its runs give alone; runs the tests that need a GPU, prints a short table and writes JSON that `bench sweep plan` reads.
Exit code 1 where a check fails, 2 where something is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import UserError

if TYPE_CHECKING:
    from bench.envs import ObsKind
    from bench.speed_file import Measurement
    from bench.speed_worlds import World

NEEDED = ("torch", "numpy", "pydantic", "typer", "rich")
FLEETS = "1,2,4,8,16,32,64,128"
TESTS_S = 120.0
"""Time for the tests that need a GPU."""


def check_packages() -> None:
    """Whether what is needed is installed.

    Raises:
        UserError: something is not; how to install it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"missing here: {', '.join(missing)}; install with `pip install {' '.join(missing)}`")


def measure(
    agent: str,
    hyperparameters: Mapping[str, Any],
    world: World,
    sizes: Sequence[int],
    device: str,
    calls: int,
    until: float,
    obs: ObsKind = "state",
) -> tuple[list[Measurement], str]:
    """Fleet sizes from the smallest on, until memory or time is out. Returns them, and why it stopped.

    Args:
        agent: its name.
        hyperparameters: all of them.
        world: the environments.
        sizes: fleet sizes, rising.
        device: as torch names it.
        calls: timed calls of each kind.
        until: on the clock of `time.monotonic`; a size is begun only if twice the time of the last one is left.
        obs: kind of observation.
    """
    import torch

    from bench import speed, speed_text

    print(speed_text.HEADER, flush=True)  # noqa: T201
    found: list[Measurement] = []
    took_s = 0.0
    for size in sizes:
        if time.monotonic() + 2 * took_s > until:
            return found, f"no time was left for a fleet of {size}"
        begin = time.monotonic()
        try:
            one = speed.measure(agent, hyperparameters, world, size, torch.device(device), calls, obs)
        except torch.OutOfMemoryError:
            return found, f"no memory for a fleet of {size}"
        took_s = time.monotonic() - begin
        found.append(one)
        print(speed_text.line(one), flush=True)  # noqa: T201
    return found, "all sizes were measured"


def waits_for_device(
    agent: str, hyperparameters: Mapping[str, Any], world: World, device: str, obs: ObsKind = "state"
) -> str:
    """Whether act or update waits for the GPU: `none`, or the first place where it does; the action's copy is left out.

    CUDA's own check raises at the first operation that waits.
    """
    import torch

    from bench.speed import Fleet

    if not device.startswith("cuda"):
        return "not checked: there is no device to wait for"
    fleet = Fleet(agent, hyperparameters, world, 2, torch.device(device), obs)
    fleet.prepare()
    for _ in range(3):  # whatever is made or compiled at first may wait
        fleet.update()
        fleet.act()
    shown = torch.from_numpy(fleet.collector.obs).to(device)
    first = torch.from_numpy(fleet.collector.first).to(device)
    batch = fleet.replay.sample()
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fleet.agent.act(shown, first, explore=True)
        fleet.agent.update(batch)
        fleet.replay.sample()
    except RuntimeError as error:
        return f"{_innermost(error)}: {error}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def _innermost(error: BaseException) -> str:
    """`file:line` of the suite's innermost frame."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "site-packages" not in name:
            place = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def fleet_difference(
    agent: str, hyperparameters: Mapping[str, Any], world: World, device: str, obs: ObsKind = "state"
) -> float | None:
    """The largest difference of a parameter, or an action, between a fleet of 2 and its runs alone after an update,
    over the largest of its kind; None for an agent that is no fleet, or has no `noise` streams.

    On a GPU a fleet draws its noise at once. Here it gets a generator for each run, and a run alone the same one.
    """
    import torch

    from agents.registry import get as get_agent
    from bench.speed import Fleet

    if get_agent(agent).max_fleet == 1:
        return None
    on = torch.device(device)
    fleet = Fleet(agent, hyperparameters, world, 2, on, obs)
    fleet.prepare()
    batch = fleet.replay.sample()
    shown, first = torch.from_numpy(fleet.collector.obs).to(on), torch.from_numpy(fleet.collector.first).to(on)
    if not isinstance(getattr(fleet.agent, "noise", None), dict):
        return None
    states = [fleet.agent.state_dict(run) for run in range(2)]
    _own_noise(fleet.agent, [0, 1], on)
    together = [fleet.agent.act(shown, first, explore=True)]
    fleet.agent.update(batch)
    largest = 0.0
    for run in range(2):
        alone = Fleet(agent, hyperparameters, world, 1, on, obs).agent
        alone.load_state_dict([states[run]])
        _own_noise(alone, [run], on)
        own = {
            name: value[run : run + 1] if isinstance(value, torch.Tensor) else value
            for name, value in vars(batch).items()
        }
        action = alone.act(shown[run : run + 1], first[run : run + 1], explore=True)
        alone.update(type(batch)(**own))
        largest = max(largest, float((action[0] - together[0][run]).abs().max()))
        pairs = zip(_tensors(fleet.agent.state_dict(run)["model"]), _tensors(alone.state_dict(0)["model"]), strict=True)
        largest = max(largest, *(_relative(one, other) for one, other in pairs))
    return largest


def _own_noise(agent: Any, runs: Sequence[int], device: Any) -> None:
    import torch

    for stream in agent.noise.values():
        stream.generators = [torch.Generator(device=device).manual_seed(1000 + run) for run in runs]


def _tensors(state: Any) -> list[Any]:
    return [value for value in state.values() if value.is_floating_point()]


def _relative(one: Any, other: Any) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-3))


def run_tests() -> str:
    """The tests that need a GPU, in a process of their own; what pytest says at the end."""
    import subprocess

    tests = Path(__file__).parents[1] / "tests"
    if importlib.util.find_spec("pytest") is None or not tests.exists():
        return "not run: pytest is not installed, or the tests are not here"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(tests / "agents")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TESTS_S, cwd=tests.parent)
    except subprocess.TimeoutExpired:
        return f"failed: not done in {TESTS_S:g} s"
    last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
    return f"failed: {last}" if done.returncode not in (0, 5) else last  # 5: there were none


def summary(found: Sequence[Measurement]) -> dict[str, Any]:
    """Aggregate rates, the ratio of the largest fleet up to 16 to a single run, and what a further run takes."""
    rates = {one.fleet: one.fleet * one.loop_agent_steps_per_s for one in found}
    facts: dict[str, Any] = {"aggregate_agent_steps_per_s": {size: round(rate, 2) for size, rate in rates.items()}}
    upto = [size for size in rates if size <= 16]
    if 1 in rates and len(upto) > 1:
        facts["ratio"] = {"fleet": max(upto), "to_single": round(rates[max(upto)] / rates[1], 3)}
    peaks = {one.fleet: one.peak_gpu_gb for one in found if one.peak_gpu_gb is not None}
    if len(peaks) > 1:
        small, large = min(peaks), max(peaks)
        facts["gpu_gb_a_further_run"] = round((peaks[large] - peaks[small]) / (large - small), 3)
    return facts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, check, print and write. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("overrides", nargs="*", help="hyperparameters, key=value")
    parser.add_argument("--agent", default="tdmpc2")
    parser.add_argument("--obs", help="kind of observation; the agent's first unless given")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--fleet", default=FLEETS)
    parser.add_argument("--synthetic", nargs=2, type=int, default=(24, 6), metavar=("OBS", "ACTION"))
    parser.add_argument("--env-ms", type=float, default=1.0, help="what an agent step of the environments takes")
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=4.0, help="for the measurement; the checks come on top")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("OUT", "results")))
    asked = parser.parse_args(arguments)
    check_packages()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or torch's profiler writes between the lines of the table
    import torch

    from agents.registry import choose_obs_kind, resolve_hyperparameters
    from bench import devices, speed_file, speed_precision, speed_text
    from bench.overrides import parse_overrides

    until = time.monotonic() + 60 * asked.minutes
    sizes = sorted(speed_text.fleet_sizes(asked.fleet))
    obs: Any = choose_obs_kind(asked.agent, asked.obs)
    hyperparameters = resolve_hyperparameters(asked.agent, parse_overrides(asked.overrides), None, obs)
    devices.prepare(asked.device, asked.threads)
    world = speed_text.world("", tuple(asked.synthetic), asked.env_ms, 0)
    print(f"{asked.agent} on {world}, {asked.device}", flush=True)  # noqa: T201
    found, why = measure(asked.agent, hyperparameters, world, sizes, asked.device, asked.calls, until, obs)
    what = asked.agent, hyperparameters, world
    precisions = speed_precision.compare(*what, torch.device(asked.device), asked.calls, obs)
    checks: dict[str, Any] = {
        "stopped": why,
        "waits_for_device": waits_for_device(*what, asked.device, obs),
        "fleet_difference": fleet_difference(*what, asked.device, obs),
        "gpu_tests": run_tests() if asked.device.startswith("cuda") else "not run: no GPU was asked for",
        **summary(found),
    }
    facts = {"checks": checks, "precisions": precisions}
    for text in [
        *(speed_text.details(found[-1]) if found else []),
        *speed_precision.lines(precisions),
        *(f"{key}: {value}" for key, value in checks.items()),
    ]:
        print(text, flush=True)  # noqa: T201
    print(f"written to {speed_file.write(found, asked.device, asked.results, facts)}")  # noqa: T201
    failed = not checks["waits_for_device"].startswith(("none", "not")) or checks["gpu_tests"].startswith("failed")
    return int(failed or (checks["fleet_difference"] or 0.0) > FLEET_TOLERANCE)


FLEET_TOLERANCE = 2e-3
"""Of a fleet to its runs alone. Adam's first step moves a parameter by the learning rate whatever its gradient's size,
so the last digit of a gradient near 0 shows; a real mistake is a hundred times larger."""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
