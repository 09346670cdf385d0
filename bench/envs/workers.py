"""The worker processes of a pool: how they start, what they do, how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from bench.envs import ObsKind, rendering
from bench.envs.host import CONTEXT, EnvEntry, EnvHost, Failure, HostError, Layout

CLOSE_TIMEOUT_S = 5.0
"""How long a worker may take to end by itself."""

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LP_NUM_THREADS")
"""The last is Mesa's, which draws with a thread for each core where there is no GPU."""

PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""A terminal's Ctrl-C or a cluster's warning reaches every process of the group; the parent decides what it means."""


class Worker:
    """A worker process, its end of the pipe and the indices that it holds."""

    def __init__(self, indices: Sequence[int], arguments: tuple[Any, ...]) -> None:
        self.held = frozenset(indices)
        self.pipe, theirs = CONTEXT.Pipe()
        self.process: SpawnProcess = CONTEXT.Process(target=serve, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()  # so that the worker's death is an end of file here


def shut_down(workers: list[Worker]) -> None:
    """End worker processes: ask, then kill. Leaves the list empty."""
    for worker in workers:
        with contextlib.suppress(OSError):  # it is dead already
            worker.pipe.send(("close", ()))
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.process.close()
        worker.pipe.close()
    workers.clear()


def serve(
    connection: Connection,
    entries: Mapping[int, EnvEntry],
    obs: ObsKind,
    render: bool,
    layout: Layout,
    memory: Any,
) -> None:
    """What a worker process does: obey commands until the pool says close, or is gone.

    Commands are (name of a method of `EnvHost`, arguments); the answer is its result, or a `Failure`, after which the
    worker ends.
    """
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        host = EnvHost(entries, obs, render, layout.arrays(memory))
        connection.send(None)
        while True:
            command, arguments = connection.recv()
            if command == "close":
                host.close()
                return
            connection.send(getattr(host, command)(*arguments))
    except HostError as error:
        connection.send(Failure.of(error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent died


def split(num_envs: int, workers: int) -> Sequence[Sequence[int]]:
    """Indices 0 .. num_envs - 1 for each of at most `workers` processes, in runs of nearly equal length."""
    return [part.tolist() for part in np.array_split(np.arange(num_envs), min(workers, num_envs))]


@contextlib.contextmanager
def worker_environment(render: bool) -> Iterator[None]:
    """What spawned workers inherit: one thread each, the rendering backend, and the parent's signals held back."""
    values = dict.fromkeys(ONE_THREAD, "1")
    values["MUJOCO_GL"] = rendering.choose_backend() if render else rendering.DISABLED[0]
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
