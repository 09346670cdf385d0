"""`bench doctor`: what works on this machine and, for what does not, the command that mends it.

Simulators, renderers and torch are tried in child processes, several at a time: one that crashes or hangs says so and
hides no other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from json import dumps
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import checks as one
from bench.checks import Check
from bench.children import Outcome, run_child
from bench.provenance import nvidia_driver

PROBE_TIMEOUT_S = 120.0
"""A probe takes seconds; this leaves room for a machine that is busy with training."""


def run_checks(results: Path) -> list[Check]:
    """Try everything: seconds on a quiet machine.

    Args:
        results: the folder that runs are to be written to; it need not exist yet.
    """
    # Importing simulators is mostly disk and one core each; more at a time than cores only makes each slower.
    with ThreadPoolExecutor(max_workers=max(2, min(6, os.cpu_count() or 2))) as pool:
        jobs = {name: pool.submit(probe, name.partition("-")[0], environment) for name, environment in _probes()}
        found = [one.check_python(), one.check_packages(), one.check_results(results)]
        outcomes = {name: job.result() for name, job in jobs.items()}
    return [
        *found,
        one.judge("torch", outcomes["torch"], core=True),
        one.judge_gpu(outcomes["gpu"], nvidia_driver()),
        one.judge("dmcontrol", outcomes["dmcontrol"], core=True),
        one.judge("metaworld", outcomes["metaworld"]),
        one.judge("myosuite", outcomes["myosuite"]),
        one.judge("maniskill", outcomes["maniskill"]),
        one.check_maniskill_assets(Path(os.environ.get("MS2_ASSET_DIR", "data"))),
        *one.judge_rendering(outcomes["render-egl"], outcomes["render-osmesa"]),
        one.judge("video", outcomes["video"]),
        one.judge("analysis", outcomes["analysis"], core=True),
        one.check_slurm(),
    ]


def command(json: bool, results: Path) -> int:
    """Print the checks, as a table or as JSON on stdout.

    Returns:
        The exit code: 0 where the core works (Python, torch, DMControl, analysis, a results folder to write
        to), else 1.
    """
    if json:
        checks = run_checks(results)
    else:
        with Console(stderr=True).status("trying every domain, renderer and tool (up to a minute) …"):
            checks = run_checks(results)
    works = not any(check.core and check.status == "fail" for check in checks)
    console = Console()
    if json:
        answer = {"core_works": works, "checks": [asdict(check) for check in checks]}
        console.out(dumps(answer, indent=2), highlight=False)
    else:
        _print_table(console, checks, works)
    return 0 if works else 1


def _print_table(console: Console, checks: list[Check], works: bool) -> None:
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("check", "", "found", box=None, pad_edge=False)
    for check in checks:
        table.add_row(check.name, f"[{colours[check.status]}]{check.status}[/]", escape(check.found))
    console.print(table)
    mends = [check for check in checks if check.status != "ok" and check.mend]
    if mends:
        console.print("\nTo mend:")
    for check in mends:  # outside the table, so that a command is never broken over columns
        console.print(f"  {check.name}: {escape(check.mend or '')}", soft_wrap=True, highlight=False)
    verdict = "the core works" if works else "the core does not work: mend what has failed above"
    console.print(f"\n{verdict}", style="green" if works else "red")


# Child processes


def _probes() -> list[tuple[str, dict[str, str]]]:
    """Every probe with what it adds to the environment; the slow ones first."""
    simulator = {} if "MUJOCO_GL" in os.environ else {"MUJOCO_GL": "disabled"}
    return [
        ("maniskill", {}),
        ("myosuite", simulator),
        ("metaworld", simulator),
        ("dmcontrol", simulator),
        ("render-egl", {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}),
        ("render-osmesa", {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}),
        ("analysis", {}),
        ("torch", {}),
        ("gpu", {}),
        ("video", {}),
    ]


def probe(name: str, environment: Mapping[str, str]) -> Outcome:
    """Run one probe of `bench.probes` in a child process.

    Args:
        environment: added to this process's own.
    """
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return run_child(
        # -P keeps the working directory, where anything may lie, out of the child's imports.
        [sys.executable, "-P", "-m", "bench.probes", name],
        {**threads, **os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        PROBE_TIMEOUT_S,
    )
