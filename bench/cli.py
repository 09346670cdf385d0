"""The commands of `bench/`: tasks, doctor, speed, and those of its other modules. Each imports what it needs when it
runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.agents_cli import app as agents_app
from bench.errors import UserError
from bench.overrides import parse_overrides
from bench.train_cli import app as train_app

app = typer.Typer()
app.registered_commands += train_app.registered_commands
app.add_typer(agents_app, name="agents")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


@app.command("tasks")
def tasks_command(
    task_set: Annotated[
        str | None, typer.Option("--set", help="A task set, such as dmcontrol, mt30 or visual.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the tasks: sizes, budgets and metrics."""
    from dataclasses import asdict

    from bench import tasks

    chosen = tasks.task_set(task_set) if task_set else tasks.tasks()
    if as_json:
        _print_json([asdict(task) | {"tags": sorted(task.tags)} for task in chosen])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(chosen)} tasks" + (f" of {task_set}" if task_set else ""), header_style="bold")
    columns = (
        "task",
        "domain",
        "obs",
        "action",
        "repeat",
        "agent steps an episode",
        "budget (env steps)",
        "metric",
        "tags",
    )
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if 2 <= number <= 6 else "left")
    for task in chosen:
        numbers = (task.obs_size, task.action_size, task.action_repeat, task.episode_agent_steps, task.budget_env_steps)
        table.add_row(
            task.name, task.domain, *(f"{number:,}" for number in numbers), task.metric, " ".join(sorted(task.tags))
        )
    console = Console()
    console.print(table)
    console.print(f"Sets: {', '.join(tasks.set_names())}")


@app.command("doctor")
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    results: Annotated[Path, typer.Option(help="Where results will go.")] = Path("results"),
) -> None:
    """Say what works on this machine, and for what does not, the command that mends it."""
    from bench.doctor import command

    raise typer.Exit(command(as_json, results))


@app.command("speed")
def speed_command(
    agent: Annotated[str, typer.Argument(help="An agent of `bench agents`.")] = "tdmpc2",
    overrides: Annotated[list[str] | None, typer.Argument(help="Hyperparameters, key=value.")] = None,
    fleet: Annotated[str, typer.Option(help="Fleet sizes, separated by commas.")] = "1,2,4",
    task: Annotated[str, typer.Option(help="Its sizes and its simulator are used.")] = "walker-walk",
    obs: Annotated[str | None, typer.Option(help="state or rgb; the agent's first by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the learner on a CPU.")] = 2,
    calls: Annotated[int, typer.Option(min=4, help="Timed calls of each kind.")] = 20,
    results: Annotated[Path, typer.Option(help="Writes speed/<machine>.json below, for `bench sweep plan`.")] = Path(
        "results"
    ),
) -> None:
    """Measure update, act and training rates by fleet size, and keep them for the cost estimates of sweeps."""
    import torch

    from agents.registry import choose_obs_kind
    from bench import speed
    from bench.training import TrainOptions
    from bench.worker import prepare

    if not all(size.strip().isdigit() and int(size) > 0 for size in fleet.split(",")):
        raise UserError(f"--fleet '{fleet}': give fleet sizes separated by commas, for example 1,2,4")
    prepare(TrainOptions(device=device, threads=threads))
    kind: Any = choose_obs_kind(agent, obs)
    typer.echo(f"{agent} on {task} from {kind}, {device}, {threads} threads; medians ± half the interquartile range")
    typer.echo("fleet    update ms         act ms            env ms   agent steps/s a run   in all")
    measured = []
    for size in map(int, fleet.split(",")):
        one = speed.measure(agent, parse_overrides(overrides or []), task, size, torch.device(device), calls, kind)
        measured.append(one)
        typer.echo(
            f"{size:5}{one.update_ms:11.2f} ± {one.update_spread_ms:<6.2f}{one.act_ms:9.2f} ± {one.act_spread_ms:<6.2f}"
            f"{one.env_ms:9.2f}{one.loop_agent_steps_per_s:21.2f}{size * one.loop_agent_steps_per_s:9.2f}"
        )
    typer.echo(f"written to {speed.write(measured, device, results)}")
