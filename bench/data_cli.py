"""The commands on multi-task data sets: `bench data` download, collect, convert and show."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
data = typer.Typer(help="Multi-task data: download or collect chunk files, and convert them to train from.")
app.add_typer(data, name="data", no_args_is_help=True)

LINE_EVERY_S = 20.0
TERMINAL_EVERY_S = 0.2


class Progress:
    """One line on stderr that is written over in a terminal, and a line every 20 seconds elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.what = ""
        self.began = self.written = 0.0
        self.before = 0

    def say(self, what: str, done: int, total: int) -> None:
        """So much of it is done."""
        now = time.monotonic()
        if what != self.what:
            self.close()
            # What an earlier call has done does not count for the rate.
            self.what, self.began, self.written, self.before = what, now, now, done
        if done < total and now - self.written < (TERMINAL_EVERY_S if self.terminal else LINE_EVERY_S):
            return
        rate = (done - self.before) / (now - self.began) if now > self.began else 0.0
        left = f", {(total - done) / rate / 60:,.1f} minutes left" if rate and done < total else ""
        text = f"{what}: {done:,} of {total:,}{left}"
        sys.stderr.write(f"\r{text:<76}" if self.terminal else f"{text}\n")
        sys.stderr.flush()
        self.written = now

    def close(self) -> None:
        """End the line."""
        if self.terminal and self.what:
            sys.stderr.write("\n")
        self.what = ""


@data.command("download")
def download_command(
    name: Annotated[str, typer.Argument(help="mt30 or mt80.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the chunk files.")],
) -> None:
    """Download the chunk files that TD-MPC2's authors publish; goes on where it stopped, and checks sizes."""
    from bench.datasets.published import download

    progress = Progress()
    new = download(name, output, progress.say, typer.echo)
    progress.close()
    typer.echo(f"{output}: {new} new files; next: bench data convert {output} -o DATASET")


@data.command("collect")
def collect_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the chunk files.")],
    sources: Annotated[
        list[Path] | None, typer.Argument(help="Run directories, checkpoints of runs, authors' files (.pt).")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Task or set, may be given twice, in the order of the task ids; by default the sources'."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=0, help="That each source plays of each of its tasks.")] = 0,
    replay_episodes: Annotated[
        int, typer.Option(min=0, help="Out of the replay of each run, evenly spaced over its training.")
    ] = 0,
    random_episodes: Annotated[int, typer.Option(min=0, help="Of each task, with uniformly random actions.")] = 0,
    explore: Annotated[bool, typer.Option(help="Agents add their exploration noise, as in training.")] = False,
    policy: Annotated[bool, typer.Option(help="The policy acts where an agent would plan.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    model_tasks: Annotated[
        list[str] | None, typer.Option(help="All tasks of a multi-task file in order; names or sets.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    envs: Annotated[int, typer.Option(min=1, help="Episodes that are played at once.")] = 10,
    env_workers: Annotated[int, typer.Option(min=0, help="Environment processes; 0: none of their own.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the agent on a CPU.")] = 2,
) -> None:
    """Write chunk files of episodes: of agents, of the replay of runs, of random actions; goes on where it stopped.

    They are in the authors' format, so their code reads them too.
    """
    from bench.datasets.collect import Request, collect
    from bench.devices import prepare

    prepare(device, threads)
    request = Request(
        sources or [],
        task or [],
        model_tasks or [],
        episodes,
        replay_episodes,
        random_episodes,
        explore,
        policy,
        seed,
        device,
        envs,
        env_workers,
    )
    progress = Progress()
    folder = collect(request, output, progress.say)
    progress.close()
    typer.echo(f"{'task':32}{'episodes':>9}{'return':>10}{'success':>9}  source")
    for part in folder.parts:
        success = "" if part.mean_success is None else f"{part.mean_success:.2f}"
        typer.echo(f"{part.task:32}{part.episodes:9}{part.mean_return:10.1f}{success:>9}  {part.source}")
    typer.echo(f"next: bench data convert {output} -o DATASET")


@data.command("convert")
def convert_command(
    chunks: Annotated[Path, typer.Argument(help="Folder of chunk files.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Names and sets in the order of the task ids, separated by commas; by default what the folder says."
        ),
    ] = None,
    allow_missing: Annotated[bool, typer.Option(help="Convert although chunk files are missing.")] = False,
) -> None:
    """Convert chunk files once to what training reads from the disk; goes on where it was interrupted."""
    from bench.datasets.convert import convert

    progress = Progress()
    layout = convert(
        chunks,
        output,
        [name.strip() for name in (tasks or "").split(",") if name.strip()],
        allow_missing,
        progress.say,
        typer.echo,
    )
    progress.close()
    held = sum(part.rows > 0 for part in layout.parts)
    typer.echo(f"{output}: {layout.rows:,} rows of {held} tasks, {layout.bytes / 1e9:,.1f} GB")


@data.command("show")
def show_command(
    dataset: Annotated[Path, typer.Argument(help="A folder that `bench data convert` made.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a converted data set holds: tasks, rows, and what the rows of each task return."""
    from bench.datasets.show import facts

    found = facts(dataset)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(
        f"{found['rows']:,} rows of {found['row_entries'] - 1} transitions ({found['transitions']:,} in all), "
        f"{found['bytes'] / 1e9:,.1f} GB, fingerprint {found['fingerprint'][:12]}"
    )
    typer.echo(
        f"{'id':>3} {'task':32}{'rows':>10}{'obs':>5}{'action':>8}{'return of a row: mean':>24}{'least':>9}{'most':>9}"
    )
    for number, one in enumerate(found["tasks"]):
        returns = (
            "".join(f"{one[key]:{width}.1f}" for key, width in (("mean", 24), ("least", 9), ("most", 9)))
            if one["rows"]
            else ""
        )
        typer.echo(f"{number:3} {one['task']:32}{one['rows']:10,}{one['obs_size']:5}{one['action_size']:8}{returns}")
