"""The sweep file: agents × tasks × seeds × overrides, plus resources. Everything is checked before anything starts."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from bench.errors import UserError, unknown
from sweeps import document
from sweeps.document import Document, KeyPath

EVERY = "*"
"""Key that holds for the tasks (of `env_steps`) or agents (of `resources`) that are not named."""


def number(value: Any) -> Any:
    """Refuse texts and booleans where pydantic would turn them into numbers."""
    if isinstance(value, bool | str):
        raise ValueError("must be a number")
    return value


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str | int) and not isinstance(value, bool) else value


def _seeds(value: Any) -> Any:
    """A count n stands for the seeds 1 to n."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value != int(value) or value < 1:
            raise ValueError("must be a count of at least 1, or a list of seeds")
        return list(range(1, int(value) + 1))
    if isinstance(value, list) and len(set(map(str, value))) < len(value):
        raise ValueError("a seed is given twice: keep one")
    return value


def _by_name(value: Any) -> Any:
    return value if isinstance(value, dict) or value is None else {EVERY: value}


def _name(value: Any) -> Any:
    """A number stands for its digits: the place of a task whose name is not known."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _fleet_size(value: Any) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("must be a whole number of at least 1, or auto")
    return value


M = TypeVar("M", bound=BaseModel)

Count = Annotated[int, BeforeValidator(number), Field(ge=1)]
Seed = Annotated[int, BeforeValidator(number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(number), Field(gt=0)]
FleetSize = Annotated[int | Literal["auto"], PlainValidator(_fleet_size)]
Name = Annotated[str, BeforeValidator(_name), Field(min_length=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


class Part(BaseModel):
    """A frozen part of a YAML file, with no keys but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AgentChoice(Part):
    """One agent of the sweep; the same agent may appear several times with different hyperparameters."""

    agent: str
    variant: str | None = Field(default=None, min_length=1)
    """Label in tables and figures; made from the overrides where it is not given."""
    obs: Literal["state", "rgb"] | None = None
    """Kind of observation; the agent's first where it is not given."""
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    init: Annotated[str, Field(min_length=1)] | None = None
    """Checkpoint to finetune: an authors' file, a run directory or one of its checkpoints (from the working folder)."""
    init_task: Annotated[dict[str, Name] | None, BeforeValidator(_by_name)] = None
    """Of a multi-task checkpoint: the task (or its number) whose embedding the new one starts from; one, or by task."""


class Exclusion(Part):
    """Runs to leave out: those that match every key given."""

    agent: Names | None = None
    variant: Names | None = None
    task: Names | None = None
    """Tasks or sets."""
    seed: Annotated[tuple[Seed, ...], BeforeValidator(_one_or_many)] | None = None


class Resources(Part):
    """How runs are executed; never part of a result."""

    slots: Count = 1
    """Fleets trained at a time on this machine, each in a process of its own."""
    fleet: Annotated[dict[str, FleetSize], BeforeValidator(_by_name)] = Field(default={EVERY: 1})
    """Most runs of one fleet, and never more than the agent's max_fleet: one number, or numbers by agent. auto: as many
    as the GPU's memory holds."""
    pad: bool = False
    """Whether a fleet may hold tasks of one domain whose observations and actions differ in size, as far as the agent
    can do it; what a run then lacks to the largest is zero, and its results are the same."""
    pack: Annotated[dict[str, Count], BeforeValidator(_by_name)] = Field(default={EVERY: 1})
    """Fleets that one slot trains side by side, each in a process of its own: one number, for the agents that cannot
    train as a fleet, or numbers by agent."""
    gpu_memory_gb: Positive | None = None
    """Memory of one GPU, which fleets and packs must fit in; that of this machine's where it is not given."""
    run_gpu_gb: Annotated[dict[str, Positive], BeforeValidator(_by_name)] = Field(default_factory=dict)
    """Peak GPU memory of one run, or by agent; measured where it is not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where the machine has a CUDA device, else cpu."""
    gpus: tuple[Annotated[int, BeforeValidator(number), Field(ge=0)], ...] | None = None
    """Indices of the GPUs to use, given to the slots in turn; all visible GPUs of every slot where it is not given."""
    cuda_graphs: bool = False
    """On a GPU: record acting and updating as CUDA graphs and replay them, with the agents that allow it; results are
    the same."""
    env_workers: Annotated[int, BeforeValidator(number), Field(ge=0)] | None = None
    """Processes that step the environments of one fleet; where it is not given, on a GPU all cores of the fleet but one
    (16 at most), on a CPU, whose cores the learner takes, one."""
    threads: Count | None = None
    """CPU threads of the learner of one fleet; the machine's cores divided by the slots where it is not given."""
    checkpoint_every_s: Positive = 300.0
    video: bool = False
    """An mp4 of one episode of each evaluation."""
    keep_replay: bool = False
    """Keep the replay of finished runs, so that they can be extended to a larger budget."""
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers to tell, beside the local files."""


class SweepFile(Part):
    """The keys of a sweep file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    """Runs land in results/<name>/."""
    agents: tuple[AgentChoice, ...] = Field(min_length=1)
    tasks: Annotated[Names, Field(min_length=1)]
    """Names of tasks or sets."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_seeds), Field(min_length=1)]
    """A list, or a count n for the seeds 1 to n."""
    env_steps: Annotated[dict[str, Count] | None, BeforeValidator(_by_name)] = None
    """Budget: one number, or numbers for tasks and sets; the task's own where it is not given."""
    eval_every_env_steps: Count | None = None
    eval_episodes: Count = 10
    num_envs: Count = 1
    """Environments of each run."""
    data: Annotated[str, Field(min_length=1)] | None = None
    """A converted data set: every run learns all the tasks at once from it, offline."""
    updates: Count | None = None
    """Budget of runs that learn offline."""
    eval_every_updates: Count | None = None
    """Between evaluations of runs that learn offline."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """`agent.horizon: 5` for every agent that has the hyperparameter, `tdmpc2.horizon: 5` for one agent."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Like overrides, with a list of values: each combination is a variant."""
    exclude: tuple[Exclusion, ...] = ()
    resources: Resources = Field(default_factory=Resources)


def read(path: Path, assignments: Sequence[str] = ()) -> tuple[Document, SweepFile]:
    """Read and check the shape of a sweep file; names and hyperparameters are checked by `expand`.

    Args:
        path: the YAML file.
        assignments: `key=value` from the command line, put over the file: `resources.slots=2`, `seeds=3`,
            `agent.horizon=5`, `tdmpc2.horizon=5`.

    Raises:
        UserError: one line with file, line, key and the valid choices.
    """
    doc = document.load(path)
    for assignment in assignments:
        _assign(doc, assignment)
    values = dict(doc.data)
    if "agents" in values:
        values["agents"] = [check(doc, where, AgentChoice, entry) for where, entry in _agent_entries(doc)]
    return doc, check(doc, (), SweepFile, values)


def _assign(doc: Document, assignment: str) -> None:
    parts, value = parse_assignment(assignment, "resources.slots=2 or agent.horizon=5")
    if len(parts) > 1 and parts[0] not in SweepFile.model_fields:
        parts = ["overrides", ".".join(parts)]
    target: Any = doc.data
    for depth, part in enumerate(parts[:-1]):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            where = ".".join(parts[: depth + 1])
            raise UserError(f"--set '{assignment}': {where} is no mapping in {doc.path}: set {where} as a whole")
    target[parts[-1]] = value


def parse_assignment(assignment: str, example: str) -> tuple[list[str], Any]:
    """`a.b=value` from the command line as its keys and its value.

    Raises:
        UserError: no `=`, an empty key, or a value that is not YAML.
    """
    key, equals, text = assignment.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set '{assignment}': write key=value, for example {example}")
    return parts, document.parse_value(text)


def agent_path(doc: Document, index: int) -> KeyPath:
    """Where the index-th agent stands in the file, whichever form the file uses."""
    return _agent_entries(doc)[index][0]


def _agent_entries(doc: Document) -> list[tuple[KeyPath, Any]]:
    """The agents of the file, in its three forms, as (where, entry): mapping, list of names, list of entries."""
    agents = doc.data["agents"]
    if isinstance(agents, str):
        agents = [agents]
    if isinstance(agents, dict):
        entries: list[tuple[KeyPath, Any]] = []
        for name, hyperparameters in agents.items():
            if not isinstance(hyperparameters, dict | None):
                message = f"{hyperparameters!r}: must be a mapping of hyperparameters, or empty"
                raise doc.error(("agents", name), message)
            entries.append((("agents", name), {"agent": name, "hyperparameters": hyperparameters or {}}))
        return entries
    if not isinstance(agents, list):
        raise doc.error(("agents",), f"{agents!r}: must be a mapping of agents, or a list of names or entries")
    return [
        (("agents", index), {"agent": entry} if isinstance(entry, str) else entry) for index, entry in enumerate(agents)
    ]


def check(doc: Document, where: KeyPath, model: type[M], values: Any) -> M:
    """Validate one part; the first mistake becomes one line with its place."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(first["loc"])
        if first["type"] == "extra_forbidden":
            fields = _model_at(model, path[:-1]).model_fields
            inside = f" of {document.dotted((*where, *path[:-1]))}" if (where or path[:-1]) else ""
            raise doc.error((*where, *path), unknown(f"key{inside}", str(path[-1]), fields)) from error
        raise doc.error((*where, *path), _phrase(first)) from error


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The model that validates a nested mapping, by the annotations of its parents."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            candidates = [annotation, *typing.get_args(annotation)]
            model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return model


_PHRASES: Mapping[str, str] = {
    "missing": "the key is missing",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a text (quote it if it is a name)",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "too_short": "must not be empty",
    "string_pattern_mismatch": "must be letters, digits, '_', '-' and '.'",
}


def _phrase(error: Mapping[str, Any]) -> str:
    """A pydantic error in a person's words: what was given, what is valid."""
    if error["type"] == "missing":
        return _PHRASES["missing"]
    message = _PHRASES.get(error["type"])
    if message is None:
        message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{error['input']!r}: {message}"
