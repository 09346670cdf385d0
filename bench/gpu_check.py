"""The whole GPU measurement in one call of a few minutes, on a machine that needs no simulator and no network:

    python -m bench.gpu_check                       # into results/speed/, or below $OUT where that is set
    python -m bench.gpu_check --device cpu --fleet 1,2 --calls 4 --agent sac hidden_dim=32
    python -m bench.gpu_check --fleet 1,2,4 --agent drqv2 --obs rgb

It needs torch (with CUDA for a GPU), numpy, pydantic, typer and rich; PyYAML for key=value, pytest for `-m gpu` tests.
It measures update, act and loop by fleet size on made-up environments until memory or time is out, with --cuda-graphs
recorded; a single run in float32, TF32 and bfloat16, each plain and with CUDA graphs, side by side. It checks that
neither act nor update waits for the GPU, that a fleet gives what its runs give alone and CUDA graphs what plain calls
give, runs the tests that need a GPU, prints a short table and writes JSON that `bench sweep plan` reads.
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
    graphs: bool = False,
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
        graphs: whether they are recorded as CUDA graphs.
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
            one = speed.measure(agent, hyperparameters, world, size, torch.device(device), calls, obs, graphs=graphs)
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
    parser.add_argument("--cuda-graphs", action="store_true", help="record the fleets that are measured by size")
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=4.0, help="for the measurement; the checks come on top")
    parser.add_argument("--results", type=Path, default=Path(os.environ.get("OUT", "results")))
    asked = parser.parse_args(arguments)
    check_packages()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or torch's profiler writes between the lines of the table
    import torch

    from agents.registry import choose_obs_kind, resolve_hyperparameters
    from bench import devices, equality, speed_file, speed_text, speed_variants
    from bench.overrides import parse_overrides

    until = time.monotonic() + 60 * asked.minutes
    sizes = sorted(speed_text.fleet_sizes(asked.fleet))
    obs: Any = choose_obs_kind(asked.agent, asked.obs)
    hyperparameters = resolve_hyperparameters(asked.agent, parse_overrides(asked.overrides), None, obs)
    devices.prepare(asked.device, asked.threads)
    world = speed_text.world("", tuple(asked.synthetic), asked.env_ms, 0)
    print(f"{asked.agent} on {world}, {asked.device}", flush=True)  # noqa: T201
    what = asked.agent, hyperparameters, world
    found, why = measure(*what, sizes, asked.device, asked.calls, until, obs, asked.cuda_graphs)
    device = torch.device(asked.device)
    ways = speed_variants.compare(*what, device, asked.calls, obs)
    fleet_difference = equality.fleet_difference(*what, device, obs)
    graphs_difference, noise = equality.graphs_difference(*what, device, obs)
    checks: dict[str, Any] = {
        "stopped": why,
        "waits_for_device": waits_for_device(*what, asked.device, obs),
        "fleet_difference": fleet_difference,
        "cuda_graphs_difference": graphs_difference,
        "difference_of_equal_plain_agents": noise,
        "gpu_tests": run_tests() if asked.device.startswith("cuda") else "not run: no GPU was asked for",
        **summary(found),
    }
    facts = {"checks": checks, "ways": ways}
    for text in [
        *(speed_text.details(found[-1]) if found else []),
        *speed_variants.lines(ways),
        *(f"{key}: {value}" for key, value in checks.items()),
    ]:
        print(text, flush=True)  # noqa: T201
    print(f"written to {speed_file.write(found, asked.device, asked.results, facts)}")  # noqa: T201
    failed = not checks["waits_for_device"].startswith(("none", "not")) or checks["gpu_tests"].startswith("failed")
    failed = failed or (fleet_difference or 0.0) > TOLERANCE
    return int(failed or (graphs_difference or 0.0) > max(TOLERANCE, 10 * (noise or 0.0)))


TOLERANCE = 2e-3
"""Of a fleet to its runs alone, and of CUDA graphs to plain calls. Adam's first step moves a parameter by the learning
rate whatever its gradient's size, so the last digit of a gradient near 0 shows; a real mistake is a hundred times
larger."""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
