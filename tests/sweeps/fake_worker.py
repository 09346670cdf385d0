"""Stands in for `bench worker`: writes what a worker writes, and misbehaves on request.

Usage: fake_worker.py BEHAVIOURS.json RUN_DIR [RUN_DIR ...] --device …

BEHAVIOURS.json maps `agent/task/seed<k>` to one of: done (the default), fail, die (SIGSEGV), deaf (SIGUSR2, to which it
does not listen yet), silent (exit 0 without a word), exit7, sleep (until it is told to stop), stubborn (ignores
SIGTERM).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from bench.rundir import RunDir


def train(run: RunDir, behaviour: str, stopped: list[int]) -> str:
    """Act as asked; returns `done`, `failed` or `interrupted`."""
    spec = run.spec
    run.beat(env_steps=spec.budget_env_steps // 2, agent_steps_per_s=100.0, wall_s=1.0, **{"return": 12.5})
    if behaviour == "die":
        sys.stderr.write("about to crash\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
    if behaviour == "deaf":
        os.kill(os.getpid(), signal.SIGUSR2)
    if behaviour == "silent":
        sys.exit(0)
    if behaviour == "exit7":
        sys.stderr.write("error: something is missing\n")
        sys.exit(7)
    if behaviour == "fail":
        run.mark_failed(ValueError("the reward was not a number\nsecond line"))
        return "failed"
    while behaviour in ("sleep", "stubborn"):
        if stopped and behaviour == "sleep":
            return "interrupted"
        time.sleep(0.02)
    run.beat(env_steps=spec.budget_env_steps, agent_steps_per_s=100.0, wall_s=2.0, **{"return": 25.0})
    run.mark_done(env_steps=spec.budget_env_steps, agent_steps=spec.budget_agent_steps, wall_s=2.0)
    return "done"


def main() -> int:
    behaviours = json.loads(Path(sys.argv[1]).read_text())
    end = next(i for i, part in enumerate(sys.argv) if part.startswith("--"))
    runs = [RunDir(Path(path)) for path in sys.argv[2:end]]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    for run in runs:
        facts = {
            "options": sys.argv[end:],
            "pid": os.getpid(),
            "mark": os.environ.get("MARK"),
            "python": sys.executable,
        }
        run.begin_attempt({"device": "cpu", "fleet": len(runs), **facts})
        run.beat(env_steps=0, agent_steps_per_s=None, wall_s=0.0, **{"return": None})
    outcomes = []
    for run in runs:
        name = run.spec.run_id.rpartition("-")[0]
        outcomes.append(train(run, behaviours.get(name, "done"), stopped))
        if outcomes[-1] == "interrupted":
            break
    for run in runs:
        run.end_beat()
    return 75 if "interrupted" in outcomes else 1 if "failed" in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
