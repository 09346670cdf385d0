"""The `bench` command: the one place where every folder's commands come together."""

from __future__ import annotations

import sys

import typer

from bench.errors import UserError


def build_app() -> typer.Typer:
    """All commands. Each command imports what it needs when it runs, so that help and reading stay fast."""
    from analysis.cli import app as analysis_app
    from bench.cli import app as bench_app
    from bench.data_cli import app as data_app
    from bench.models_cli import app as models_app
    from sweeps.cli import app as sweep_app

    app = typer.Typer(
        name="bench",
        help="Train TD-MPC2 and baselines on 104 continuous-control tasks, and compare the results.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    for part in (bench_app, models_app, data_app, analysis_app):
        app.registered_commands += part.registered_commands
        app.registered_groups += part.registered_groups
    app.add_typer(sweep_app, name="sweep")
    return app


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        build_app()()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
