"""Many environments at once, in this process or over worker processes."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import tasks as task_table
from bench.envs import PAPER_PIXELS, ObsKind, Pixels, obs_spec
from bench.envs.base import checked_actions
from bench.envs.errors import WorkerError
from bench.envs.host import EnvEntry, EnvHost, Failure, HostError, Layout
from bench.envs.stepping import StepResult
from bench.envs.workers import CLOSE_TIMEOUT_S, Worker, shut_down, split, worker_environment
from bench.errors import UserError
from bench.tasks import Task

STARTUP_TIMEOUT_S = 600.0
"""How long a worker may take to load its simulators, on a file system that is slow."""


class EnvPool:
    """M environments over worker processes. An environment whose episode ended waits until the caller resets it.

        with EnvPool(["walker-walk"] * 4, workers=2) as pool:
            obs = pool.reset(range(4), seeds=[1, 2, 3, 4])        # (4, O)
            result = pool.step(actions)                           # actions (4, A) in [-1, 1]
            ended = np.flatnonzero(result.terminated | result.truncated)
            obs = result.obs
            if ended.size:
                obs[ended] = pool.reset(ended, seeds=...)

    The same seeds and actions give the same episodes with any number of workers. `step_send` and `step_recv` leave time
    for other work between them.

    Args:
        tasks: one entry for each environment: a name of the task table, or a row. Shapes must be equal, or `pad`.
        obs: kind of observation.
        workers: processes; 0 runs all in this one.
        action_repeats: env steps in an agent step, for each environment; the table's by default.
        render: whether `render` will be called; without it workers load MuJoCo without OpenGL, which saves memory.
        timeout_s: how long a worker may take for one command before it counts as hung.
        pixels: the pictures that obs="rgb" gives.
        pad: whether tasks of unequal sizes are shown as those of the largest: state observations end with zeros, and
            an environment takes as much of an action as is its own.

    Raises:
        UserError: tasks of unequal shapes, no environment for a task, a missing package, no way to render.
        WorkerError: a worker failed to start.
    """

    def __init__(
        self,
        tasks: Sequence[str | Task],
        obs: ObsKind = "state",
        workers: int = 0,
        action_repeats: Sequence[int] | None = None,
        render: bool = False,
        timeout_s: float = 120.0,
        pixels: Pixels = PAPER_PIXELS,
        pad: bool = False,
    ) -> None:
        self.tasks = [task_table.get(task) if isinstance(task, str) else task for task in tasks]
        self.timeout_s = timeout_s
        repeats: Sequence[int | None] = action_repeats or [None] * len(self.tasks)
        entries = {i: EnvEntry(*pair, pixels) for i, pair in enumerate(zip(self.tasks, repeats, strict=True))}
        layout = _common_layout(self.tasks, obs, pixels, pad)
        memory = layout.allocate()
        self.layout = layout
        self._arrays = layout.arrays(memory)
        self._sent: tuple[list[int], list[Worker]] | None = None
        self._workers: list[Worker] = []
        self._host: EnvHost | None = None
        self._close = Finalize(self, shut_down, args=(self._workers,), exitpriority=10)
        with self._closed_by_errors():
            if workers == 0:
                self._host = EnvHost(entries, obs, render, self._arrays)
                return
            draws_with_mujoco = obs == "rgb" or (render and any(task.domain != "maniskill" for task in self.tasks))
            with worker_environment(draws_with_mujoco):
                for part in split(len(self.tasks), workers):
                    arguments = ({i: entries[i] for i in part}, obs, render, layout, memory)
                    self._workers.append(Worker(part, arguments))
            self._receive(self._workers, STARTUP_TIMEOUT_S)

    def reset(self, indices: Sequence[int] | NDArray[np.integer[Any]], seeds: Sequence[int]) -> NDArray[Any]:
        """Start an episode in each of `indices`, which its seed decides completely. Returns observations (n, ...)."""
        chosen = self._indices(indices)
        pairs = list(zip(chosen, (int(seed) for seed in seeds), strict=True))
        with self._closed_by_errors():
            if self._host is not None:
                self._host.reset(pairs)
            busy = self._holding(chosen)
            for worker in busy:
                self._send(worker, "reset", [pair for pair in pairs if pair[0] in worker.held])
            self._receive(busy, self.timeout_s)
        return self._arrays.obs[chosen]

    def step_send(self, actions: Any, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None) -> None:
        """Begin an agent step.

        Args:
            actions: (n, A) float32 in [-1, 1], one row for each of `indices`, in that order.
            indices: which environments step; all M by default.

        Raises:
            ActionError: an action of wrong shape, NaN or out of range; no environment has moved.
        """
        chosen = self._indices(range(len(self.tasks)) if indices is None else indices)
        names = [self.tasks[index].name for index in chosen]
        self._arrays.action[chosen] = checked_actions(actions, self.layout.action_size, names)
        busy = self._holding(chosen)
        with self._closed_by_errors():
            for worker in busy:
                mine = None if indices is None else [index for index in chosen if index in worker.held]
                self._send(worker, "step", mine)
            self._sent = (chosen, busy)

    def step_recv(self) -> StepResult:
        """Finish the agent step that `step_send` began. The arrays are the caller's to keep.

        Raises:
            WorkerError: an environment failed, or its worker died or hangs; the pool is closed then.
        """
        if self._sent is None:
            raise RuntimeError("step_recv without step_send")
        (chosen, busy), self._sent = self._sent, None
        with self._closed_by_errors():
            if self._host is not None:
                self._host.step(chosen)
            self._receive(busy, self.timeout_s)
        a = self._arrays
        return StepResult(a.obs[chosen], a.reward[chosen], a.terminated[chosen], a.truncated[chosen], a.success[chosen])

    def step(self, actions: Any, indices: Sequence[int] | NDArray[np.integer[Any]] | None = None) -> StepResult:
        """`step_send`, then `step_recv`."""
        self.step_send(actions, indices)
        return self.step_recv()

    def render(self, index: int, height: int = 240, width: int = 320) -> NDArray[np.uint8]:
        """An image (height, width, 3) uint8 of one environment; the pool must be made with `render=True`."""
        (chosen,) = self._indices([index])
        with self._closed_by_errors():
            if self._host is not None:
                return self._host.render(chosen, height, width)
            (worker,) = self._holding([chosen])
            self._send(worker, "render", chosen, height, width)
            return np.asarray(self._receive([worker], self.timeout_s)[0])

    def close(self) -> None:
        """End the workers. May be called again."""
        if self._host is not None:
            self._host.close()
            self._host = None
        self._close()
        self._sent = None

    def __enter__(self) -> EnvPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _indices(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[int]:
        if self._host is None and not self._workers:
            raise RuntimeError("the pool is closed")
        if self._sent is not None:
            raise RuntimeError("an agent step is under way: call step_recv first")
        chosen = [int(index) for index in indices]
        if len(set(chosen)) != len(chosen) or not all(0 <= index < len(self.tasks) for index in chosen):
            raise IndexError(f"indices {chosen} must be different ones of 0 .. {len(self.tasks) - 1}")
        return chosen

    def _holding(self, indices: Sequence[int]) -> list[Worker]:
        return [worker for worker in self._workers if not worker.held.isdisjoint(indices)]

    @contextlib.contextmanager
    def _closed_by_errors(self) -> Iterator[None]:
        """Close the pool on any error, Ctrl-C included: a worker's late answer would be taken for the next one."""
        try:
            yield
        except HostError as error:
            self.close()
            self._raise(Failure.of(error), error.__cause__)
        except BaseException:
            self.close()
            raise

    def _send(self, worker: Worker, command: str, *arguments: Any) -> None:
        try:
            worker.pipe.send((command, arguments))
        except OSError as error:  # its end of the pipe is gone
            self._raise_dead(worker, error)

    def _receive(self, workers: Sequence[Worker], timeout_s: float) -> list[Any]:
        """The answer of each worker, in order."""
        answers: dict[int, Any] = {}
        waiting = {worker.pipe: number for number, worker in enumerate(workers)}
        deadline = time.monotonic() + timeout_s
        while waiting:
            ready = connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                hung = [index for number in waiting.values() for index in sorted(workers[number].held)]
                for number in waiting.values():
                    workers[number].process.kill()  # it would not hear that the pool closes
                raise self._error(f"no answer in {timeout_s:g} s from the worker of {self._named(hung)}", hung)
            for pipe in ready:
                number = waiting.pop(pipe)  # type: ignore[call-overload]
                try:
                    answers[number] = workers[number].pipe.recv()
                except (EOFError, OSError) as error:
                    self._raise_dead(workers[number], error)
                if isinstance(answers[number], Failure):
                    remote = RuntimeError(f"in the worker process:\n{answers[number].traceback}")
                    self._raise(answers[number], remote)
        return [answers[number] for number in range(len(workers))]

    def _raise(self, failure: Failure, cause: BaseException | None) -> None:
        if failure.is_users:
            raise UserError(failure.message) from cause
        where = [failure.index]
        raise self._error(f"{self._named(where)}: {failure.message}\n{failure.traceback}", where) from cause

    def _raise_dead(self, worker: Worker, cause: BaseException) -> None:
        worker.process.join(CLOSE_TIMEOUT_S)
        code = worker.process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}" + (
                " (out of memory?)" if code == -signal.SIGKILL else ""
            )
        else:
            how = f"ended with exit code {code}"
        held = sorted(worker.held)
        raise self._error(f"the worker of {self._named(held)} {how}", held) from cause

    def _error(self, message: str, indices: Sequence[int]) -> WorkerError:
        return WorkerError(message, indices, [self.tasks[index].name for index in indices])

    def _named(self, indices: Sequence[int]) -> str:
        return ", ".join(f"{self.tasks[index].name} (environment {index})" for index in indices)


def _common_layout(tasks: Sequence[Task], obs: ObsKind, pixels: Pixels, pad: bool) -> Layout:
    if not tasks:
        raise UserError("an environment pool needs at least one task")
    if pad and obs == "state":
        sizes = [(task.obs_size, task.action_size) for task in tasks]
        obs_size, action_size = (max(of) for of in zip(*sizes, strict=True))
        return Layout(len(tasks), (obs_size,), obs_spec(tasks[0], obs, pixels)[1], action_size)
    layouts = {Layout(len(tasks), *obs_spec(task, obs, pixels), task.action_size): task.name for task in tasks}
    if len(layouts) > 1:
        shapes = "; ".join(f"{name}: obs {lay.obs_shape}, action {lay.action_size}" for lay, name in layouts.items())
        raise UserError(f"tasks of one pool need equal shapes, these differ ({shapes}): use a pool for each")
    return next(iter(layouts))
