"""The whole way, with nothing stood in for: sweep file, launch, training, tables, report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from bs4 import BeautifulSoup

SWEEP = """
name: tiny
agents:
  - agent: tdmpc2
    variant: tiny
    hyperparameters: {enc_dim: 16, mlp_dim: 16, latent_dim: 16, num_q: 2, num_samples: 16, num_elites: 4,
                      num_pi_trajs: 2, iterations: 1, batch_size: 8, seed_agent_steps: 500}
  - agent: sac
    variant: tiny
    hyperparameters: {hidden_dim: 16, batch_size: 8, seed_agent_steps: 300}
tasks: [cartpole-balance, cup-catch]
seeds: [1, 2]
env_steps: 1200
eval_every_env_steps: 600
eval_episodes: 1
resources: {slots: 2, fleet: 2, threads: 1, env_workers: 1, device: cpu}
"""


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, cwd=folder)


@pytest.mark.whole
def test_from_a_sweep_file_to_a_report(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    plan = json.loads(bench(tmp_path, "sweep", "plan", "tiny.yaml", "--json").stdout)
    launched = bench(tmp_path, "sweep", "launch", "tiny.yaml", "--wait")
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "ended: 8 done" in launched.stdout
    status = json.loads(bench(tmp_path, "sweep", "status", "tiny.yaml", "--json").stdout)
    assert plan != status
    assert {run["state"] for run in status["runs"]} == {"done"}
    again = bench(tmp_path, "sweep", "launch", "tiny.yaml", "--wait")
    assert again.returncode == 0
    assert "8" in again.stdout
    assert "done" in again.stdout

    assert bench(tmp_path, "collect", "results/tiny", "-o", "tables").returncode == 0
    evals, runs = (pd.read_parquet(tmp_path / "tables" / f"{name}.parquet") for name in ("evals", "runs"))
    assert len(evals) == 2 * 2 * 2 * 3, "agents x tasks x seeds x evaluations"
    assert sorted(evals["env_steps"].unique()) == [0, 600, 1200]
    assert evals["score"].between(0, 100).all()
    assert (evals["score"] == evals["return"] / 10).all()
    assert runs["attempts"].eq(1).all()
    assert runs["run_id"].is_unique

    reported = bench(tmp_path, "report", "results/tiny", "-o", "report.html")
    assert reported.returncode == 0, reported.stderr
    assert reported.stdout.splitlines()[-1].endswith("report.html")
    page = BeautifulSoup((tmp_path / "report.html").read_text(), "html.parser")
    assert not page.find_all("script", src=True)
    images = page.find_all("img")
    assert len(images) >= 5
    assert all(image["src"].startswith("data:") and image["alt"] for image in images)
    text = page.get_text()
    assert "tdmpc2" in text
    assert "cup-catch" in text
    assert {path.suffix for path in (tmp_path / "report_files").iterdir()} == {".png", ".pdf", ".csv"}
