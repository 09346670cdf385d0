"""The commands on trained agents: eval, and models (list, download, show, export)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.errors import UserError
from bench.overrides import parse_overrides

app = typer.Typer()
models = typer.Typer(help="The checkpoints that TD-MPC2's authors publish, and files in their layout.")
app.add_typer(models, name="models", invoke_without_command=True)

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
ModelTasks = Annotated[
    list[str] | None,
    typer.Option(help="All tasks of a multi-task file in order, where their number does not tell; names or sets."),
]


@app.command("eval")
def eval_command(
    source: Annotated[Path, typer.Argument(help="A run directory, one of its checkpoints, or an authors' file (.pt).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hyperparameters, key=value: mpc=false lets the policy act.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task or set, may be given twice; by default what the source was trained on."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="For each task and seed.")] = 10,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Of the episodes, may be given twice; 1.")] = None,
    video: Annotated[Path | None, typer.Option(help="Folder for an mp4 of each task's first episode.")] = None,
    model_tasks: ModelTasks = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    env_workers: Annotated[int, typer.Option(min=0, help="Environment processes; 0: none of their own.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the agent on a CPU.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Play episodes with a trained agent, without exploration; the same command gives the same numbers."""
    import torch

    from bench.devices import prepare
    from bench.evaluate import open_source, play
    from bench.tasks import expand

    prepare(device, threads)
    seeds = seed or [1]
    opened = open_source(
        source, task or [], model_tasks or [], parse_overrides(overrides or []), seeds[0], torch.device(device)
    )
    tasks = expand(task) if task else list(opened.tasks)
    if not as_json:
        typer.echo(opened.what)
        typer.echo(
            f"{'task':32}{'seed':>5}{'episodes':>9}{'return':>10}{'± std':>9}{'success':>9}{'score':>8}{'length':>8}"
        )
    rows = []
    for played in play(opened, tasks, episodes, seeds, env_workers, video):
        row = played.to_json()
        rows.append(row)
        if not as_json:
            length = sum(played.lengths) / len(played.lengths)
            typer.echo(
                f"{played.task:32}{played.seed:5}{row['episodes']:9}{row['return']:10.1f}{row['return_std']:9.1f}"
                f"{row['success']:9.2f}{played.score:8.1f}{length:8.0f}"
            )
    mean = sum(row["score"] for row in rows) / len(rows)
    if as_json:
        _print_json({"source": str(source), "what": opened.what, "mean_score": mean, "tasks": rows})
    elif len(rows) > 1:
        typer.echo(f"{'mean (normalised score)':74}{mean:8.1f}")


@models.callback()
def list_command(context: typer.Context, as_json: AsJson = False) -> None:
    """List what is published, unless one of the commands below is given."""
    if context.invoked_subcommand is not None:
        return
    from dataclasses import asdict

    from bench.published_models import published_models

    found = published_models()
    if as_json:
        _print_json([asdict(model) | {"url": model.url} for model in found.values()])
        return
    many = [model for model in found.values() if model.folder == "multitask"]
    typer.echo("models of many tasks:")
    for model in many:
        size = "size unknown" if model.bytes is None else f"{model.bytes / 1e6:,.1f} MB"
        typer.echo(f"  {model.name:12}{size:>14}")
    names = sorted({model.task for model in found.values()} - {model.task for model in many})
    typer.echo(f"models of one task, as TASK-SEED, seeds 1, 2, 3 ({len(found) - len(many)} files):")
    for start in range(0, len(names), 4):
        typer.echo("  " + "".join(f"{name:29}" for name in names[start : start + 4]).rstrip())
    typer.echo("bench models download NAME; bench models download walker-walk for its three seeds")


@models.command("download")
def download_command(
    names: Annotated[list[str], typer.Argument(help="Models (mt80-5M, walker-walk-1), tasks or sets.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder.")] = Path("results/models"),
) -> None:
    """Download published models; goes on where it stopped, and checks sizes."""
    import sys

    from bench.download import fetch
    from bench.published_models import select

    for model in select(names):
        path = output / model.path

        def progress(done: int, total: int | None, name: str = model.name) -> None:
            if sys.stderr.isatty():
                of = "" if total is None else f" of {total / 1e6:,.1f}"
                sys.stderr.write(f"\r{name}: {done / 1e6:,.1f}{of} MB ")

        new = fetch(model.url, path, model.bytes, progress)
        if new and sys.stderr.isatty():
            sys.stderr.write("\n")
        typer.echo(f"{path}" + ("" if new else " (there already)"))


@models.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(help="An authors' file (.pt).")], as_json: AsJson = False
) -> None:
    """Say what a file of the authors holds: layout, size, observations, actions, tasks."""
    from agents.tdmpc2.checkpoints import AuthorsFile

    read = AuthorsFile.read(file)
    facts = {
        "layout": read.layout,
        "obs": read.obs_kind,
        "obs_size": read.obs_size if read.obs_kind == "state" else None,
        "action_size": read.action_size,
        "tasks": max(read.num_tasks, 1),
        "termination_head": read.has_termination,
        **read.architecture,
    }
    if as_json:
        _print_json(facts)
        return
    for key, value in facts.items():
        typer.echo(f"{key:18}{value}")


@models.command("export")
def export_command(
    run: Annotated[
        Path, typer.Argument(help="A run directory of tdmpc2, one of its checkpoints, or an authors' file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write (.pt).")],
    task: Annotated[list[str] | None, typer.Option(help="Of an authors' file that does not name it.")] = None,
    model_tasks: ModelTasks = None,
) -> None:
    """Write a model in the authors' current layout, for their code to load."""
    import torch

    from agents.tdmpc2.authors_layout import export
    from bench import atomic
    from bench.evaluate import open_source

    opened = open_source(run, task or [], model_tasks or [], {}, 1, torch.device("cpu"))
    if opened.agent_name != "tdmpc2":
        raise UserError(f"{run} is of {opened.agent_name}: only tdmpc2 has a layout of the authors")
    hp = opened.agent.hp
    if not (hp.layer_norm and hp.simnorm and hp.regression == "discrete"):
        raise UserError(f"{run} was trained without LayerNorm, SimNorm or discrete regression, which their code needs")
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic.writing(output) as file:
        torch.save(export(opened.agent.model, 0), file)
    typer.echo(f"{output}: {opened.what}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
