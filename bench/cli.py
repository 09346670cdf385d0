"""The commands of `bench/`: tasks, doctor, train and worker. Each imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.agents_cli import app as agents_app
from bench.errors import UserError
from bench.overrides import parse_overrides

if TYPE_CHECKING:
    from bench.tasks import Task

app = typer.Typer()
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


@app.command("train")
def train_command(
    agent: Annotated[str, typer.Argument(help="An agent of `bench agents`.")],
    task: Annotated[str, typer.Argument(help="A task of `bench tasks`.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hyperparameters, key=value.")] = None,
    obs: Annotated[str | None, typer.Option(help="state or rgb; the agent's first by default.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    env_steps: Annotated[int | None, typer.Option(min=1, help="Budget; the task's own by default.")] = None,
    eval_every_env_steps: Annotated[int | None, typer.Option(min=1, help="The task's own by default.")] = None,
    eval_episodes: Annotated[int, typer.Option(min=1)] = 10,
    num_envs: Annotated[int, typer.Option(min=1, help="Training environments of the run.")] = 1,
    results: Annotated[Path, typer.Option(help="The run goes below this folder.")] = Path("results/train"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    env_workers: Annotated[int, typer.Option(min=0, help="Environment processes; 0: none of their own.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the learner on a CPU.")] = 2,
    checkpoint_every_s: Annotated[float, typer.Option(min=0)] = 300.0,
    video: Annotated[bool, typer.Option(help="An mp4 of one episode of each evaluation.")] = False,
    keep_replay: Annotated[bool, typer.Option(help="Keep the replay, so that the run can be extended later.")] = False,
    sink: Annotated[list[str] | None, typer.Option(help="tensorboard, wandb; may be given twice.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Finetune: start from an authors' file (.pt), a run directory or one of its checkpoints."),
    ] = None,
    init_task: Annotated[
        str | None,
        typer.Option(help="Of a multi-task checkpoint: the similar task whose embedding the new one starts from."),
    ] = None,
) -> None:
    """Train one run; the same command again goes on where it stopped."""
    from agents.registry import choose_obs_kind
    from bench import pretrained
    from bench.envs import agents_pixels, make
    from bench.rundir import RunDir
    from bench.runspec import RunSpec
    from bench.tasks import get as get_task

    row = get_task(task)
    kind: Any = choose_obs_kind(agent, obs)
    changed = parse_overrides(overrides or [])
    said = {} if init is None else {"init": init.stem or init.absolute().name}
    spec = RunSpec(
        agent=agent,
        variant=", ".join(f"{key}={value}" for key, value in {**said, **changed}.items()) or "default",
        task=row.name,
        domain=row.domain,
        domain_version=row.domain_version,
        obs=kind,
        seed=seed,
        num_envs=num_envs,
        action_repeat=row.action_repeat,
        budget_env_steps=env_steps or row.budget_env_steps,
        eval_every_env_steps=eval_every_env_steps or row.eval_every_env_steps,
        eval_episodes=eval_episodes,
        **_start(agent, changed, row, kind, init, init_task, results),
    )
    # What is missing for this task is said before anything is written.
    make(row.name, kind, pixels=agents_pixels(spec.hyperparameters)).close()
    run = RunDir(results / spec.run_id)
    if spec.init is not None and not run.newest_checkpoint():
        pretrained.check_here(spec.init)
    run = RunDir.create(results, spec)
    run.update_spec(spec)
    from bench.failures import EXIT_INTERRUPTED
    from bench.worker import main

    if run.progress(spec.budget).state == "done":
        typer.echo(f"done already: {run.path}")
        return
    typer.echo(f"run {run.path}")
    code = main([run.path], _options(device, env_workers, threads, checkpoint_every_s, video, keep_replay, sink))
    if code == EXIT_INTERRUPTED:
        typer.echo("stopped at a checkpoint: the same command goes on from there")
    raise typer.Exit(code)


def _start(
    agent: str, changed: dict[str, Any], task: Task, obs: str, init: Path | None, init_task: str | None, results: Path
) -> dict[str, Any]:
    """What a run starts from, as fields of its specification: hyperparameters, and init where there is one."""
    from agents.registry import resolve_hyperparameters
    from bench import pretrained

    if init is None:
        if init_task is not None:
            raise UserError(f"--init-task {init_task} needs a checkpoint: give --init")
        return {"hyperparameters": resolve_hyperparameters(agent, changed, task, obs)}
    pretrained.check_agent(agent)
    source = pretrained.Source(init, begun=results / agent / task.name)
    hyperparameters, started = source.resolve(changed, task, obs, init_task)
    return {"hyperparameters": hyperparameters, "init": started}


def _options(
    device: str,
    env_workers: int,
    threads: int,
    checkpoint_every_s: float,
    video: bool,
    keep_replay: bool,
    sink: list[str] | None,
    pack: int = 1,
) -> Any:
    from bench.training import TrainOptions

    return TrainOptions(device, env_workers, threads, checkpoint_every_s, video, keep_replay, tuple(sink or ()), pack)


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


@app.command("worker")
def worker_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories that train as one fleet.")],
    device: str = "cpu",
    env_workers: Annotated[int, typer.Option(min=0)] = 1,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    checkpoint_every_s: Annotated[float, typer.Option(min=0)] = 300.0,
    video: bool = False,
    keep_replay: bool = False,
    sink: list[str] | None = None,
    quiet: Annotated[bool, typer.Option(help="No progress lines.")] = False,
    pack: Annotated[int, typer.Option(min=1, help="Workers on this device, this one included: noted.")] = 1,
) -> None:
    """Train run directories as one fleet: what a sweep's jobs execute.

    Exit code 0: all done; 1: some failed; 75: stopped at a checkpoint.
    """
    from bench.worker import main

    options = _options(device, env_workers, threads, checkpoint_every_s, video, keep_replay, sink, pack)
    raise typer.Exit(main(runs, options, quiet))
