"""`bench speed` for people: what was asked, measured one fleet size after the other, a line for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from agents.registry import choose_obs_kind, resolve_hyperparameters
from bench import speed, speed_file, tasks
from bench.devices import prepare
from bench.errors import UserError
from bench.speed_file import Measurement
from bench.speed_worlds import World

SHOWN_SHARE = 0.02
"""Smaller shares of the time are not shown."""


@dataclass(frozen=True)
class Asked:
    """What is to be measured, besides the environments."""

    agent: str
    overrides: Mapping[str, Any]
    obs: str | None
    num_envs: int
    device: str
    threads: int
    calls: int
    profile: bool
    graphs: bool = False


def fleet_sizes(text: str) -> list[int]:
    """`1,2,4` as numbers.

    Raises:
        UserError: something else.
    """
    if not all(size.strip().isdigit() and int(size) > 0 for size in text.split(",")):
        raise UserError(f"--fleet '{text}': give fleet sizes separated by commas, for example 1,2,4")
    return [int(size) for size in text.split(",")]


def world(task: str, synthetic: tuple[int, int] | None, env_ms: float, env_workers: int) -> World:
    """The environments to measure on.

    Raises:
        UserError: an unknown task, or sizes that no environment has.
    """
    if synthetic is None:
        return World(tasks.get(task), env_workers=env_workers)
    if min(synthetic) < 1:
        raise UserError(f"--synthetic {synthetic[0]} {synthetic[1]}: sizes of observation and action are at least 1")
    return World(None, *synthetic, env_ms=env_ms)


def run(asked: Asked, where: World, sizes: Sequence[int], results: Path) -> Path:
    """Measure each fleet size, show and write it. Returns the file."""
    kind: Any = choose_obs_kind(asked.agent, asked.obs)
    hyperparameters = resolve_hyperparameters(asked.agent, asked.overrides, where.task, kind)
    prepare(asked.device, asked.threads)
    typer.echo(
        f"{asked.agent} on {where} from {kind}, {asked.device}, {asked.threads} threads; "
        "medians ± half the interquartile range"
    )
    typer.echo(HEADER)
    measured = []
    for size in sizes:
        one = speed.measure(
            asked.agent,
            hyperparameters,
            where,
            size,
            torch.device(asked.device),
            asked.calls,
            kind,
            asked.num_envs,
            asked.profile,
            asked.graphs,
        )
        measured.append(one)
        typer.echo(line(one))
    for text in details(measured[-1]):
        typer.echo(text)
    path = speed_file.write(measured, asked.device, results)
    typer.echo(f"written to {path}")
    return path


HEADER = (
    "fleet         update ms            act ms   env ms   agent steps/s a run    in all   waits   memory GB\n"
    "                                                     (loop, measured)                (process, replay)"
)


def line(one: Measurement) -> str:
    """One fleet size, in the columns of `HEADER`."""
    update, act = one.update, one.act
    memory = (
        f"{one.peak_rss_gb:.2f}, {one.replay_gb:.2f}" if one.peak_gpu_gb is None else f"{one.peak_gpu_gb:.2f} (GPU)"
    )
    return (
        f"{one.fleet:5}{update.ms:11.2f} ± {update.spread_ms:<6.2f}{act.ms:9.2f} ± {act.spread_ms:<6.2f}"
        f"{one.env.ms:7.2f}{one.loop_agent_steps_per_s:13.2f} ± {one.loop_spread:<6.2f}"
        f"{one.fleet * one.loop_agent_steps_per_s:10.2f}{100 * one.env_wait_share:6.1f} %   {memory}"
    )


def details(one: Measurement) -> list[str]:
    """First calls, and where the time goes."""
    lines = [
        f"fleet of {one.fleet}: the first update took {one.first_s('update'):.1f} s, the first act "
        f"{one.first_s('act'):.1f} s"
    ]
    for name, shares in one.profile.items():
        shown = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items() if share >= SHOWN_SHARE)
        lines.append(f"time of an {name}: {shown}")
    return lines
