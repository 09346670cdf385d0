"""How fast environments step in a pool and what memory they take, without an agent. Run as a program:

    python -m bench.envs.rates walker-walk mw-push --envs 8 --workers 0 1 2
    python -m bench.envs.rates metaworld --envs 150 --workers 16

Given a set, the environments of one pool take its tasks in turn (their shapes must be equal). Prints CSV.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence

import numpy as np
import psutil

from bench import tasks
from bench.envs.pool import EnvPool

COLUMNS = ("task", "envs", "workers", "agent_steps_per_s", "memory_mb")


def measure(names: Sequence[str], workers: int, steps: int) -> tuple[float, float | None]:
    """Agent steps per second over all environments, and the memory of the processes that hold them in MB (PSS, in
    which pages that several processes share are counted once); None without workers.

    Args:
        names: the task of each environment; actions are random.
        workers: processes; 0 steps them in this one, which holds more than them.
        steps: agent steps of every environment that are timed.
    """
    with EnvPool(names, workers=workers) as pool:
        indices, random = range(len(names)), np.random.default_rng(0)
        pool.reset(indices, list(indices))
        shape = (steps + 1, len(names), pool.layout.action_size)
        actions = random.uniform(-1, 1, shape).astype(np.float32)
        pool.step(actions[0])
        begin = time.perf_counter()
        for action in actions[1:]:
            pool.step(action)
        elapsed = time.perf_counter() - begin
        memory = sum(process.memory_full_info().pss for process in psutil.Process().children())
    return steps * len(names) / elapsed, memory / 2**20 if workers else None


def main() -> None:
    """Measure each task or set with each number of workers."""
    parser = argparse.ArgumentParser(prog="python -m bench.envs.rates")
    parser.add_argument("tasks", nargs="+", help="tasks, or sets of equal shapes")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name in arguments.tasks:
        rows = tasks.expand([name])
        names = [rows[index % len(rows)].name for index in range(arguments.envs)]
        for workers in arguments.workers:
            rate, memory_mb = measure(names, workers, arguments.steps)
            writer.writerow((name, arguments.envs, workers, round(rate, 1), memory_mb and round(memory_mb)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
