"""Provenance tells the code and the machine, and never fails where it cannot."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bench import provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "a checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_checkout(checkout):
    state = provenance.git_state(checkout)
    assert state["commit"] == git(checkout, "rev-parse", "HEAD")
    assert state["dirty"] is False
    assert state["diff"] is None
    assert state["diff_sha256"] is None
    assert state["untracked"] == []


def test_changes_are_kept_with_the_commit(checkout):
    (checkout / "code.py").write_text("x = 2\n")
    (checkout / "new agent.py").write_text("y = 1\n")
    state = provenance.git_state(checkout)
    assert state["dirty"] is True
    assert "-x = 1\n+x = 2" in state["diff"]
    assert state["diff_sha256"] == hashlib.sha256(state["diff"].encode()).hexdigest()
    assert state["untracked"] == ["new agent.py"]


def test_a_staged_change_is_dirty(checkout):
    (checkout / "code.py").write_text("x = 3\n")
    git(checkout, "add", ".")
    assert "+x = 3" in provenance.git_state(checkout)["diff"]


def test_a_long_diff_is_cut_but_hashed_whole(checkout):
    (checkout / "code.py").write_text("x = 1  # long\n" * 30_000)
    state = provenance.git_state(checkout)
    assert len(state["diff"].encode()) == provenance.DIFF_CAP_BYTES
    (checkout / "code.py").write_text("x = 1  # long\n" * 29_999 + "x = 2\n")
    other = provenance.git_state(checkout)
    assert other["diff"][1000:] == state["diff"][1000:]
    assert other["diff_sha256"] != state["diff_sha256"]


def test_outside_a_checkout(tmp_path):
    state = provenance.git_state(tmp_path)
    assert state["commit"] is None
    assert state["dirty"] is None
    assert "not a git repository" in state["commit_error"]


def test_inside_another_projects_checkout(checkout):
    installed = checkout / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    assert provenance.git_state(installed)["commit"] is None


def test_without_a_first_commit(tmp_path):
    git(tmp_path, "init", "-q")
    state = provenance.git_state(tmp_path)
    assert state["commit"] is None
    assert state["commit_error"]


def test_without_git(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    state = provenance.git_state(checkout)
    assert state["commit"] is None
    assert "git" in state["commit_error"]


def test_collect_is_json_and_describes_this_process(checkout, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "bench", "train", "a b"])
    found = json.loads(json.dumps(provenance.collect("cpu", checkout)))
    assert found["pid"] == os.getpid()
    assert found["gpu"] is None
    assert found["versions"]["numpy"] == np.__version__
    assert found["memory_gb"] > 0
    assert found["cpu"]
    assert found["cpu_count"] >= 1
    assert found["command"] == "python -m bench train 'a b'"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "1"}, "12_1"),
    ],
)
def test_job_id(monkeypatch, environment, expected):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert provenance.job_id() == expected


def test_driver_comes_from_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.nvidia_driver() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 570.10\necho 570.10\n")
    tool.chmod(0o755)
    assert provenance.nvidia_driver() == "570.10"


@pytest.mark.gpu
def test_gpu_is_named():
    assert provenance.collect("cuda")["gpu"]


def test_loads_no_torch():
    code = "import sys; from bench import provenance; provenance.collect('cpu'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
