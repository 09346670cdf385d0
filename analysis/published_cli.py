"""`bench published`: curves that others published, in the suite's tables."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from analysis.published import Imported

app = typer.Typer(no_args_is_help=True, help="Published curves: import them, and list what is irregular.")


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command("import")
def import_(
    source: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="DIR", help="a clone, an archive or a folder; may be given several times"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="where the tables go [default: results/published/curves]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Read published curves into tables; without --from they are downloaded at the pinned commits and checked."""
    from analysis.problems import lines as problem_lines
    from analysis.problems import to_json
    from analysis.published import write_published
    from analysis.published_finals import CURVES, write_finals

    with ExitStack() as stack:
        imported = _read(source, stack)
    files = write_published(imported, out or CURVES)
    files.append(write_finals(imported, out or CURVES))
    if as_json:
        from dataclasses import asdict

        summary = {"parts": [asdict(one) for one in imported.provenance], "files": [path.as_posix() for path in files]}
        summary |= to_json(imported.tables.problems)
        typer.echo(json.dumps(summary, indent=2))
        return
    for one in imported.provenance:
        checked = f"{one.licence}, unchanged" if one.verified else "not a pinned commit's: licence unknown"
        typer.echo(f"{one.agent} ({one.variant}, {one.obs}): {one.runs} runs from {one.source} ({checked})")
    for assumption in dict.fromkeys(said for one in imported.provenance for said in one.assumptions):
        typer.echo(f"assumed: {assumption}")
    for line in problem_lines(imported.tables.problems):
        typer.echo(line)
    if imported.irregularities:
        typer.echo(f"{len(imported.irregularities)} irregularities: bench published check {files[0].parent.as_posix()}")
    for path in files:
        typer.echo(path.as_posix())


def _read(places: list[Path] | None, stack: ExitStack) -> Imported:
    from analysis.published import merged, read_published
    from analysis.published_sources import SOURCES, download, unpacked
    from bench.errors import UserError

    if places:
        folders = [(place, stack.enter_context(unpacked(place))) for place in places]
        return merged([read_published(folder, place.as_posix(), _say) for place, folder in folders])
    cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="published-")))
    found = []
    for source in SOURCES:
        folder = stack.enter_context(unpacked(download(source, cache, _say)))
        one = read_published(folder, source.repository, _say).only(source)
        absent = set(source.parts) - {part.part for part in one.provenance if part.verified}
        if absent:
            raise UserError(
                f"{source.repository}@{source.commit[:7]}: {', '.join(sorted(absent))} is not what was pinned; "
                "clone that commit yourself and give it with --from"
            )
        found.append(one)
    return merged(found)


@app.command()
def check(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="what import wrote [default: results/published/curves]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
) -> None:
    """List every hole, duplicate, ragged end and early stop in imported curves, with the rule that handles it."""
    from dataclasses import asdict

    from analysis.problems import to_json
    from analysis.published import read_sidecar
    from analysis.published_finals import CURVES
    from analysis.published_layout import KINDS

    parts, irregularities, problems = read_sidecar(folder or CURVES)
    if as_json:
        found = {"parts": [asdict(one) for one in parts], "irregularities": [asdict(one) for one in irregularities]}
        found |= to_json(problems)
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{sum(one.runs for one in parts)} runs in {len(parts)} parts")
    typer.echo("rule: the last evaluation of a run is its final score")
    for kind, rule in KINDS.items():
        of_kind = [one for one in irregularities if one.kind == kind]
        if not of_kind:
            continue
        typer.echo(f"\n{kind}: {len(of_kind)} ({rule})")
        for one in of_kind:
            typer.echo(f"  {one.part} · {one.task} · seed {one.seed}: {one.text}")
    for problem in problems:
        typer.echo(str(problem))
    if not irregularities and not problems:
        typer.echo("every run is full and regular")
