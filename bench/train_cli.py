"""The commands that train: `bench train`, and `bench worker`, which sweeps run. Each imports what it needs when it
runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.errors import UserError
from bench.overrides import parse_overrides

if TYPE_CHECKING:
    from bench.fleet import TrainOptions
    from bench.rundir import RunDir
    from bench.runspec import RunSpec
    from bench.tasks import Task

app = typer.Typer()

AgentName = Annotated[str, typer.Argument(help="An agent of `bench agents`.")]
TaskName = Annotated[
    str, typer.Argument(help="A task of `bench tasks`; with --data tasks and sets, separated by commas.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Hyperparameters, key=value.")]
ObsKind = Annotated[str | None, typer.Option(help="state or rgb; the agent's first by default.")]
EnvSteps = Annotated[int | None, typer.Option(min=1, help="Budget; the task's own by default.")]
EvalEveryEnvSteps = Annotated[int | None, typer.Option(min=1, help="The task's own by default.")]
NumEnvs = Annotated[int, typer.Option(min=1, help="Training environments of the run.")]
Results = Annotated[Path, typer.Option(help="The run goes below this folder.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Learn offline, several tasks at once: a data set that `bench data convert` made."),
]
Updates = Annotated[int | None, typer.Option(min=1, help="Budget with --data; 10 million by default.")]
EvalEveryUpdates = Annotated[int | None, typer.Option(min=1, help="With --data; 50,000 by default.")]
Init = Annotated[
    Path | None,
    typer.Option(help="Finetune: start from an authors' file (.pt), a run directory or one of its checkpoints."),
]
InitTask = Annotated[
    str | None,
    typer.Option(help="Of a multi-task checkpoint: the similar task whose embedding the new one starts from."),
]
# How runs are executed, for `worker` too.
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]
EnvWorkers = Annotated[int, typer.Option(min=0, help="Environment processes; 0: none of their own.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of the learner on a CPU.")]
CheckpointEveryS = Annotated[float, typer.Option(min=0)]
Video = Annotated[bool, typer.Option(help="An mp4 of one episode of each evaluation.")]
KeepReplay = Annotated[bool, typer.Option(help="Keep the replay, so that the run can be extended later.")]
Sinks = Annotated[list[str] | None, typer.Option(help="tensorboard, wandb; may be given twice.")]
Graphs = Annotated[bool, typer.Option("--cuda-graphs", help="On a GPU: record acting and updating, and replay them.")]


@app.command("train")
def train_command(
    agent: AgentName,
    task: TaskName,
    overrides: Overrides = None,
    obs: ObsKind = None,
    seed: Annotated[int, typer.Option(min=0)] = 1,
    env_steps: EnvSteps = None,
    eval_every_env_steps: EvalEveryEnvSteps = None,
    eval_episodes: Annotated[int, typer.Option(min=1)] = 10,
    num_envs: NumEnvs = 1,
    results: Results = Path("results/train"),
    device: Device = "cpu",
    env_workers: EnvWorkers = 1,
    threads: Threads = 2,
    checkpoint_every_s: CheckpointEveryS = 300.0,
    video: Video = False,
    keep_replay: KeepReplay = False,
    sink: Sinks = None,
    graphs: Graphs = False,
    data: Data = None,
    updates: Updates = None,
    eval_every_updates: EvalEveryUpdates = None,
    init: Init = None,
    init_task: InitTask = None,
) -> None:
    """Train one run; the same command again goes on where it stopped."""
    changed = parse_overrides(overrides or [])
    if graphs:
        _check_graphs(agent, device)
    if data is None:
        _refuse("learning offline, with --data", {"--updates": updates, "--eval-every-updates": eval_every_updates})
        spec = _online(
            agent,
            task,
            obs,
            changed,
            (init, init_task, results),
            {"budget_env_steps": env_steps, "eval_every_env_steps": eval_every_env_steps},
            {"seed": seed, "num_envs": num_envs, "eval_episodes": eval_episodes},
        )
    else:
        steps = {"--env-steps": env_steps, "--eval-every-env-steps": eval_every_env_steps}
        others = {"--init": init, "--init-task": init_task, "--keep-replay": keep_replay, "--num-envs": num_envs > 1}
        _refuse("learning online: leave it out with --data", steps | others)
        schedule = {"updates": updates, "eval_every_updates": eval_every_updates, "eval_episodes": eval_episodes}
        spec = _offline(agent, task, obs, changed, data, seed, schedule)
    options = _options(device, env_workers, threads, checkpoint_every_s, video, keep_replay, sink, graphs=graphs)
    if _is_done(spec, results):
        return
    run = _directory(spec, results, options)
    _train(run, options)


def _is_done(spec: RunSpec, results: Path) -> bool:
    """Whether there is nothing to do, which is said; nothing is written then."""
    from bench.rundir import RunDir

    run = RunDir(results / spec.run_id)
    if run.read_json("run.json") is None or run.progress(spec.budget).state != "done":
        return False
    typer.echo(f"done already: {run.path}")
    kept = run.spec
    for name in ("eval_episodes", "eval_every_env_steps"):
        if getattr(kept, name) != getattr(spec, name):
            typer.echo(f"its evaluations stay as they are: {name} {getattr(kept, name)}, not {getattr(spec, name)}")
    return True


def _check_continuable(spec: RunSpec, results: Path) -> None:
    """Whether a run that was begun may continue with this specification; nothing is written before.

    Raises:
        UserError: it cannot be extended, was begun with another simulator, or another process trains it.
    """
    from bench.lock import RunLock
    from bench.rundir import RunDir
    from bench.worker import check_extendable

    run = RunDir(results / spec.run_id)
    if run.read_json("run.json") is not None:
        check_extendable(run, spec.budget_env_steps)
        run.check_version(spec.domain_version)
        RunLock(run).check_free()


def _directory(spec: RunSpec, results: Path, options: TrainOptions) -> RunDir:
    """Where the run trains. What is missing for its tasks, or for its start, is said before anything is written."""
    from bench import devices, pretrained, sinks
    from bench.envs import agents_pixels, make
    from bench.rundir import RunDir
    from bench.tasks import get as get_task

    for name in {get_task(name).domain: name for name in spec.tasks}.values():
        make(name, spec.obs, pixels=agents_pixels(spec.hyperparameters)).close()
    devices.prepare(options.device, options.threads)
    sinks.check(options.sinks)
    _check_continuable(spec, results)
    if spec.init is not None and not RunDir(results / spec.run_id).newest_checkpoint():
        pretrained.check_here(spec.init)
    run = RunDir.create(results, spec)
    run.update_spec(spec)
    return run


def _train(run: RunDir, options: TrainOptions) -> None:
    """Train a run to its budget, and exit as a worker does."""
    from bench.failures import EXIT_INTERRUPTED
    from bench.worker import main

    typer.echo(f"run {run.path}")
    if run.spec.offline is None and not options.keep_replay:
        typer.echo("its replay is removed when it is done: to extend it later, start it with --keep-replay")
    code = main([run.path], options)
    if code == EXIT_INTERRUPTED:
        typer.echo("stopped at a checkpoint: the same command goes on from there")
    raise typer.Exit(code)


def _check_graphs(agent: str, device: str) -> None:
    from agents import registry

    if not device.startswith("cuda"):
        raise UserError(f"--cuda-graphs needs --device cuda, not {device}: leave it out")
    if not registry.get(agent).capturable:
        able = ", ".join(name for name, entry in registry.agents().items() if entry.capturable)
        raise UserError(f"--cuda-graphs: {agent} cannot be recorded ({able} can): leave it out")


def _variant(changed: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in changed.items()) or "default"


def _refuse(belongs_to: str, options: Mapping[str, Any]) -> None:
    """Options of the other kind of learning are mistakes."""
    for option, value in options.items():
        if value:
            raise UserError(f"{option} belongs to {belongs_to}")


def _online(
    agent: str,
    task: str,
    obs: str | None,
    changed: dict[str, Any],
    start: tuple[Path | None, str | None, Path],
    steps: Mapping[str, int | None],
    others: Mapping[str, Any],
) -> RunSpec:
    """A run on one task; `steps` that are None are the task's own."""
    from agents.registry import choose_obs_kind
    from bench.runspec import RunSpec
    from bench.tasks import get as get_task
    from bench.tasks import set_names

    if "," in task or task in set_names():
        raise UserError(f"'{task}' is several tasks, which are learned offline from a data set: give --data")
    row = get_task(task)
    kind: Any = choose_obs_kind(agent, obs)
    init = start[0]
    own: dict[str, Any] = {key: value or getattr(row, key) for key, value in steps.items()}
    said = {} if init is None else {"init": init.stem or init.absolute().name}
    return RunSpec(
        agent=agent,
        variant=_variant({**said, **changed}),
        task=row.name,
        domain=row.domain,
        domain_version=row.domain_version,
        obs=kind,
        action_repeat=row.action_repeat,
        **own,
        **_start(agent, changed, row, kind, *start),
        **others,
    )


def _offline(
    agent: str,
    selectors: str,
    obs: str | None,
    changed: dict[str, Any],
    data: Path,
    seed: int,
    schedule: Mapping[str, int | None],
) -> RunSpec:
    """A run on several tasks from a data set."""
    from agents.registry import resolve_hyperparameters
    from bench import offline
    from bench.tasks import expand

    if obs not in (None, "state"):
        raise UserError(f"--obs {obs}: data sets hold states; leave it out with --data")
    tasks = expand([selector.strip() for selector in selectors.split(",")])
    hyperparameters = resolve_hyperparameters(agent, changed, tasks=tasks)
    given = {key: value for key, value in schedule.items() if value is not None}
    fingerprint = offline.fingerprint(data, tasks)
    return offline.run_spec(agent, hyperparameters, tasks, data, fingerprint, seed, _variant(changed), **given)


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
    graphs: bool = False,
) -> TrainOptions:
    from bench.fleet import TrainOptions

    sinks = tuple(sink or ())
    return TrainOptions(device, env_workers, threads, checkpoint_every_s, video, keep_replay, sinks, pack, graphs)


@app.command("worker")
def worker_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories that train as one fleet.")],
    device: Device = "cpu",
    env_workers: EnvWorkers = 1,
    threads: Threads = 2,
    checkpoint_every_s: CheckpointEveryS = 300.0,
    video: Video = False,
    keep_replay: KeepReplay = False,
    sink: Sinks = None,
    quiet: Annotated[bool, typer.Option(help="No progress lines.")] = False,
    pack: Annotated[int, typer.Option(min=1, help="Workers on this device, this one included: noted.")] = 1,
    graphs: Graphs = False,
) -> None:
    """Train run directories as one fleet: what a sweep's jobs execute.

    Exit code 0: all done; 1: some failed; 75: stopped at a checkpoint.
    """
    from bench.worker import main

    options = _options(device, env_workers, threads, checkpoint_every_s, video, keep_replay, sink, pack, graphs)
    raise typer.Exit(main(runs, options, quiet))
