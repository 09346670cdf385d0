"""The columns of every table that the suite writes: the contract between runs and analysis.

`EVAL_CSV` and `TRAIN_CSV_FIRST` are the files of a run directory; `EVALS` and `RUNS` are the collected tables (long
format, CSV and Parquet). The version goes up whenever a column changes its name, unit or meaning.
"""

from __future__ import annotations

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""2 added runs that learn offline: the columns in `ADDED_IN_2`, and `offline` in run.json."""

EVAL_CSV: dict[str, str] = {
    "env_steps": "int64",  # simulator control steps of training before this evaluation
    "agent_steps": "int64",  # actions chosen in training before it (env_steps / action repeat)
    "wall_s": "float64",  # seconds of training and evaluation so far, over all attempts
    "episode": "int64",  # 0 .. episodes - 1 within this evaluation
    "return": "float64",  # sum of rewards of the episode
    "success": "float64",  # 0 or 1 at the last agent step; 0 where the domain has no success
    "length": "int64",  # agent steps in the episode
}

TRAIN_CSV_FIRST: dict[str, str] = {
    "env_steps": "int64",
    "agent_steps": "int64",
    "wall_s": "float64",
    "return": "float64",  # mean over the training episodes that ended since the last row
    "success": "float64",
    "agent_steps_per_s": "float64",  # of this run, since the last row
}
"""The first columns of train.csv; the agent's own metrics follow, by name."""

OFFLINE_EVAL_CSV: dict[str, str] = {
    "updates": "int64",  # gradient steps before this evaluation
    "wall_s": "float64",
    "task": "string",
    "episode": "int64",
    "return": "float64",
    "success": "float64",
    "length": "int64",
}
"""eval.csv of a run that learns offline: the episodes of every task."""

OFFLINE_TRAIN_CSV_FIRST: dict[str, str] = {
    "updates": "int64",
    "wall_s": "float64",
    "updates_per_s": "float64",  # of this run, since the last row
}

EVALS: dict[str, str] = {
    "run_id": "string",
    "agent": "string",
    "variant": "string",  # label of the hyperparameter overrides, "default" where there are none
    "domain": "string",
    "domain_version": "string",
    "task": "string",
    "obs": "string",  # "state" or "rgb"
    "seed": "int64",
    "env_steps": "int64",
    "agent_steps": "int64",
    "updates": "Int64",  # of a run that learns offline, which takes 0 env steps; null online
    "wall_s": "float64",
    "return": "float64",  # mean over the episodes of this evaluation
    "success": "float64",  # mean over the episodes of this evaluation
    "score": "float64",  # 0-100: return / 10 on DMControl, success x 100 elsewhere
    "source": "string",  # the run directory, or the published file
}
"""One row for each evaluation of each run and task: a run that learns offline is evaluated on several."""

RUNS: dict[str, str] = {
    "run_id": "string",
    "hash": "string",
    "agent": "string",
    "variant": "string",
    "task": "string",  # of a run that learns offline, a label of all its tasks
    "obs": "string",
    "seed": "int64",
    "state": "string",  # pending, running, stale, failed, done
    "env_steps": "Int64",  # reached so far
    "budget_env_steps": "Int64",
    "updates": "Int64",  # reached so far by a run that learns offline; null online, as is the next
    "budget_updates": "Int64",
    "attempts": "Int64",
    "commit": "string",
    "dirty": "boolean",
    "host": "string",
    "gpu": "string",
    "versions": "string",  # JSON: package -> version
    "job_id": "string",
    "wall_s": "Float64",
    "gpu_h": "Float64",  # wall hours x share of the GPU (1 / runs that train on it together); 0 on a CPU
    "peak_gpu_gb": "Float64",
    "started": "string",  # ISO 8601, UTC
    "ended": "string",
    "error_class": "string",
    "path": "string",
}
"""One row for each run directory, whatever its state."""

ADDED_IN_2 = ("updates", "budget_updates")
"""Columns of `EVALS` and `RUNS` that tables of version 1 lack: null there."""
