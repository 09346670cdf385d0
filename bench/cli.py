"""The commands of `bench/`: tasks, doctor, speed, and those of its other modules. Each imports what it needs when it
runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.agents_cli import app as agents_app
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
    model_size: Annotated[int | None, typer.Option(help="The same as model_size=…")] = None,
    task: Annotated[str, typer.Option(help="Its sizes and its simulator are used.")] = "walker-walk",
    synthetic: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="OBS ACTION", help="Made-up environments of these sizes instead: no simulator is needed."),
    ] = None,
    env_ms: Annotated[float, typer.Option(min=0, help="With --synthetic: what an agent step of them takes.")] = 0.0,
    env_workers: Annotated[int, typer.Option(min=0, help="Environment processes; 0: none of their own.")] = 0,
    num_envs: Annotated[int, typer.Option(min=1, help="Environments of each run.")] = 1,
    obs: Annotated[str | None, typer.Option(help="state or rgb; the agent's first by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the learner on a CPU.")] = 2,
    calls: Annotated[int, typer.Option(min=4, help="Timed calls of each kind, and agent steps of the loop.")] = 20,
    profile: Annotated[bool, typer.Option(help="Say where the time goes.")] = True,
    graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="On a GPU: record update and act as CUDA graphs.")
    ] = False,
    results: Annotated[Path, typer.Option(help="Writes speed/<machine>.json below, for `bench sweep plan`.")] = Path(
        "results"
    ),
) -> None:
    """Measure update, act and training rates by fleet size, and keep them for the cost estimates of sweeps."""
    # Before torch is loaded, or its profiler writes between the lines of the table.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from bench import speed_text

    sizes = speed_text.fleet_sizes(fleet)
    changed = parse_overrides(overrides or []) | ({} if model_size is None else {"model_size": model_size})
    asked = speed_text.Asked(agent, changed, obs, num_envs, device, threads, calls, profile, graphs)
    speed_text.run(asked, speed_text.world(task, synthetic, env_ms, env_workers), sizes, results)
