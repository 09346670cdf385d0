"""`bench agents`: list them, show the settings of one, and check one against the protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.overrides import parse_overrides

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer()


@app.callback(invoke_without_command=True)
def agents_command(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """List the agents with their observation kinds, presets and hyperparameters; `show` or `check` one."""
    if context.invoked_subcommand is not None:
        return
    from agents.registry import agents, presets

    described: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "obs_kinds": list(entry.obs_kinds),
            "max_fleet": entry.max_fleet,
            "presets": {name: vars(preset) for name, preset in presets(entry.name).items()},
            "hyperparameters": {
                name: {"default": field.get_default(), "type": str(field.annotation), "help": field.description or ""}
                for name, field in entry.hyperparameters_model().model_fields.items()
            },
        }
        for entry in agents().values()
    ]
    if as_json:
        typer.echo(json.dumps(described, indent=2, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for agent in described:
        fleet = "any" if agent["max_fleet"] is None else agent["max_fleet"]
        console.print(f"[bold]{agent['name']}[/bold]: {agent['summary']}", highlight=False)
        console.print(f"  observations: {', '.join(agent['obs_kinds'])}; largest fleet: {fleet}", highlight=False)
        _print_presets(console, agent["presets"])
        table = Table("hyperparameter", "default", "meaning", header_style="bold")
        for name, field in agent["hyperparameters"].items():
            table.add_row(name, str(field["default"]), field["help"])
        console.print(table)


def _print_presets(console: Console, presets: dict[str, dict[str, Any]]) -> None:
    for name, preset in presets.items():
        console.print(f"  preset={name}: {preset['about']}", highlight=False, soft_wrap=True)


@app.command("show")
def show_command(
    agent: Annotated[str, typer.Argument(help="An agent of `bench agents`, or module:Class.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hyperparameters, key=value; preset=NAME.")] = None,
    task: Annotated[str | None, typer.Option(help="What is used there; every domain's protocol by default.")] = None,
    obs: Annotated[str | None, typer.Option(help="state or rgb; the agent's first by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what an agent is trained with: its presets, steps and action repeat, and each setting with its origin."""
    from agents import registry
    from bench import agent_settings
    from bench.tasks import get as get_task

    kind, row = registry.choose_obs_kind(agent, obs), None if task is None else get_task(task)
    entry = registry.get(agent)
    settings = agent_settings.settings(agent, parse_overrides(overrides or []), row, kind)
    protocols = agent_settings.protocols(agent, kind)
    if row is not None:
        protocols = [protocol for protocol in protocols if row.name in protocol.tasks]
    described = {
        "name": entry.name,
        "summary": entry.summary,
        "obs": kind,
        "task": None if row is None else row.name,
        "presets": {name: vars(preset) for name, preset in registry.presets(agent).items()},
        "protocols": [vars(protocol) for protocol in protocols],
        "hyperparameters": [vars(setting) for setting in settings],
    }
    if as_json:
        typer.echo(json.dumps(described, indent=2, default=dict))
        return
    _print_settings(described)


def _print_settings(described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{described['name']}[/bold]: {described['summary']}; from {described['obs']}", highlight=False)
    _print_presets(console, described["presets"])
    table = Table()
    table.add_column("domain", no_wrap=True)
    table.add_column("tasks")
    for column in ("env steps", "repeat", "episode", "evaluation"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("set by the task")
    for protocol in described["protocols"]:
        names = protocol["tasks"]
        shown = described["task"] or ", ".join(names if len(names) <= 8 else [*names[:3], f"… ({len(names)})"])
        table.add_row(
            protocol["domain"],
            shown,
            f"{protocol['env_steps']:,}",
            str(protocol["action_repeat"]),
            f"{protocol['episode_agent_steps']}",
            f"{protocol['eval_every_env_steps']:,}",
            " ".join(f"{key}={value}" for key, value in protocol["hyperparameters"].items()),
        )
    console.print(table)
    console.print("episode: agent steps; evaluation: every so many env steps", highlight=False)
    table = Table("hyperparameter", "value", "from", "meaning")
    for setting in described["hyperparameters"]:
        table.add_row(setting["key"], str(setting["value"]), setting["source"], setting["about"])
    console.print(table)


@app.command("check")
def check_command(
    agent: Annotated[str, typer.Argument(help="An agent of `bench agents`, or module:Class.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hyperparameters, key=value: small ones.")] = None,
    obs: Annotated[str | None, typer.Option(help="Observation kind; the agent's first by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check that an agent keeps the protocol: shapes, fleets, save and resume, evaluation, NaN. Exit code 1 if not."""
    import torch

    from agents import registry
    from bench.agent_checks import CHECKS, run_check
    from bench.agent_probe import Probe

    kind = registry.choose_obs_kind(agent, obs)
    torch.set_num_threads(1)
    values = registry.resolve_hyperparameters(agent, parse_overrides(overrides or []), None, kind)
    probe = Probe(registry.get(agent), values, kind)
    rows = []
    for check in CHECKS:
        outcome = run_check(check, probe)
        rows.append({"check": check.name, "rule": check.rule, "state": outcome.state, "line": outcome.line})
        if not as_json:
            colour = {"ok": typer.colors.GREEN, "failed": typer.colors.RED, "skipped": typer.colors.YELLOW}
            state = typer.style(f"{outcome.state:<8}", fg=colour[outcome.state])
            typer.echo(f"{check.name:<13}{state} {outcome.line or check.rule}")
    failed = sum(row["state"] == "failed" for row in rows)
    typer.echo(json.dumps(rows, indent=2) if as_json else f"{agent} ({kind}): {failed or 'no'} failed of {len(rows)}")
    raise typer.Exit(int(failed > 0))
