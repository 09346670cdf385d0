"""Arguments and options that several commands of `bench sweep` take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="A sweep file, such as sweeps/quickstart.yaml.")]
Target = Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A sweep file, or the folder of its results.")]
Results = Annotated[Path, typer.Option(help="Runs lie in RESULTS/<sweep name>/.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Put over the file: seeds=3, resources.slots=2, agent.horizon=5."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="PROFILE",
        help="A cluster profile, such as sweeps/profiles/slurm-example.yaml; its keys can be set too: "
        "--set cluster.time_h=4. This machine where none is given.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow until all runs have ended; exit code 1 if any failed.")]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="CLASS",
        help="Only runs that failed so: oom, cuda, time-limit, node, disk, missing, nan, simulator, bug.",
    ),
]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--run", metavar="PATTERN", help="Only runs that match: a task, 'sac/*', 'tdmpc2/cup-catch/seed1'."),
]
