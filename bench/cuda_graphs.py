"""Acting and updating recorded once as CUDA graphs, and replayed from then on.

A single run launches thousands of small kernels for one update or one plan, and a GPU finishes them faster than Python
names them. A graph launches them all with one call. The kernels and their order are those of the plain calls, and so is
what they draw: results are the same.

What is recorded are the agent's own `act` and `update`, if it says that they can be (`agents.protocol.Capturable`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from agents.protocol import Batch, Capturable
from bench.errors import UserError

WARM_UP_CALLS = 3
"""Plain calls before the recording: what is made or chosen at first (moments, kernels, work spaces) is there then."""

Tensors = Mapping[str, Tensor]
Layout = Mapping[str, tuple[torch.Size, torch.dtype]]


class Recorder(Protocol):
    """Records calls and replays them; `CudaGraph`, or what stands in for it in a test."""

    def warm_up(self, call: Callable[[], Tensors]) -> Tensors:
        """A plain call."""
        ...

    def record(self, call: Callable[[], None]) -> None:
        """Note what the call does to the device's memory, without doing it."""
        ...

    def replay(self) -> None:
        """Do what was recorded, to the same memory."""
        ...


class CudaGraph:
    """A CUDA graph.

    Args:
        generators: what the recorded call draws from. Each replay draws on where the last call ended.
        stream: where warm-up and recording happen.
        pool: memory that the graphs of one agent share for what does not outlive a call.
    """

    def __init__(self, generators: Sequence[torch.Generator], stream: torch.cuda.Stream, pool: Any) -> None:
        self.stream, self.pool = stream, pool
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)

    def warm_up(self, call: Callable[[], Tensors]) -> Tensors:
        """A plain call, on the stream of the recording."""
        here = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            result = call()
        here.wait_stream(self.stream)
        return result

    def record(self, call: Callable[[], None]) -> None:
        """Other threads may use the device meanwhile."""
        with torch.cuda.graph(self.graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            call()

    def replay(self) -> None:
        """One launch, on the current stream."""
        self.graph.replay()


class Recorded:
    """A call that is made plainly a few times, then recorded, and from then on replayed.

    Args:
        call: from tensors to tensors; the shapes of what it gives follow from those of what it takes.
        recorder: makes a recorder.
        prepare: called before the recording.
    """

    def __init__(
        self, call: Callable[[Tensors], Tensors], recorder: Callable[[], Recorder], prepare: Callable[[], None]
    ) -> None:
        self.call, self.make_recorder, self.prepare = call, recorder, prepare
        self._begin({})

    def _begin(self, layout: Layout) -> None:
        self.layout: Layout = layout
        self.recorder: Recorder | None = None
        self.recorded = False
        self.warm_ups = 0
        self.given: Tensors = {}
        self.results: Tensors = {}

    def forget(self) -> None:
        """Begin anew with plain calls."""
        self._begin({})

    def __call__(self, tensors: Tensors) -> Tensors:
        """What the call gives; after the recording always the same tensors, which the next call overwrites."""
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if layout != self.layout:  # the memory of another layout may be gone: one recording at a time
            self._begin(layout)
        self.recorder = self.recorder or self.make_recorder()
        if self.warm_ups < WARM_UP_CALLS:
            self.warm_ups += 1
            self.results = self.recorder.warm_up(lambda: self.call(tensors))
            return self.results
        if not self.recorded:
            self._record(self.recorder, tensors)
        for name, tensor in tensors.items():
            self.given[name].copy_(tensor)
        self.recorder.replay()
        return self.results

    def _record(self, recorder: Recorder, tensors: Tensors) -> None:
        self.prepare()
        self.given = {name: tensor.clone() for name, tensor in tensors.items()}
        # Not in the memory that the graphs share: another one's replay would write over them.
        self.results = {name: result.detach().clone() for name, result in self.results.items()}

        def call() -> None:
            for name, result in self.call(self.given).items():
                self.results[name].copy_(result)

        try:
            recorder.record(call)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the agent cannot be recorded as a CUDA graph: {reason}; go without cuda_graphs"
            ) from error
        self.recorded = True


def attach(agent: Any, recorder: Callable[[], Recorder] | None = None) -> None:
    """Have an agent's `act` and `update` recorded and replayed from now on.

    Args:
        agent: is changed. What it returns is overwritten by its next call.
        recorder: makes a recorder; that of a CUDA graph where it is not given.

    Raises:
        UserError: the agent cannot be recorded, or is not on a GPU.
    """
    capturable: object = agent
    if not isinstance(capturable, Capturable):
        raise UserError(f"{type(agent).__name__} cannot be recorded as CUDA graphs: go without cuda_graphs")
    make = recorder or _cuda_graphs(capturable)
    optimizers = capturable.optimizers()

    def prepare() -> None:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = group["params"][0].device.type == "cuda"

    plain_act, plain_update, plain_load = agent.act, agent.update, agent.load_state_dict

    def acting(explore: bool) -> Recorded:
        return Recorded(lambda given: {"action": plain_act(explore=explore, **given)}, make, prepare)

    acts = {explore: acting(explore) for explore in (True, False)}
    updates = Recorded(lambda given: plain_update(Batch(**given)), make, prepare)

    def act(obs: Tensor, first: Tensor, explore: bool, task: Tensor | None = None) -> Tensor:
        own = {} if task is None else {"task": task}
        return acts[explore]({"obs": obs, "first": first, **own})["action"]

    def update(batch: Batch) -> Tensors:
        return updates({name: value for name, value in vars(batch).items() if value is not None})

    def load_state_dict(states: Sequence[Mapping[str, Any]]) -> None:
        plain_load(states)
        for recorded in (*acts.values(), updates):
            recorded.forget()

    agent.act, agent.update, agent.load_state_dict = act, update, load_state_dict


def _cuda_graphs(agent: Capturable) -> Callable[[], CudaGraph]:
    device = agent.generators()[0].device
    if device.type != "cuda":
        raise UserError("cuda_graphs needs an NVIDIA GPU (device cuda): a CPU has nothing to record")
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(agent.generators(), stream, pool)
