"""`bench agents`: list them, and check one against the protocol."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bench.overrides import parse_overrides

app = typer.Typer()


@app.callback(invoke_without_command=True)
def agents_command(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """List the agents with their observation kinds, largest fleet and hyperparameters; `check` one."""
    if context.invoked_subcommand is not None:
        return
    from agents.registry import agents

    described: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "obs_kinds": list(entry.obs_kinds),
            "max_fleet": entry.max_fleet,
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
        table = Table("hyperparameter", "default", "meaning", header_style="bold")
        for name, field in agent["hyperparameters"].items():
            table.add_row(name, str(field["default"]), field["help"])
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
