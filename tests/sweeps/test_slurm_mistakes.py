"""What goes wrong when a sweep is launched on a cluster: one clear line each, and nothing half-submitted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cases import FAKE, executor, job_words, load, start, states, wait_for
from slurm_cluster import SlurmCluster

from bench.errors import UserError
from sweeps import cluster, launch, launches, slurm_limits, slurm_state
from sweeps.slurm import Chunk, PartlySubmitted, chunks
from sweeps.slurm_limits import Limits, read

Behave = Callable[..., None]
Write = Callable[..., Path]


def profile_error(tmp_path: Path, text: str) -> str:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        cluster.load(str(path))
    return str(caught.value).replace(str(path), "p.yaml")


def test_mistakes_in_a_profile(tmp_path: Path) -> None:
    assert profile_error(tmp_path, "partitoin: gpu\n") == (
        "p.yaml:1: partitoin: unknown key 'partitoin': did you mean partition, python?"
    )
    assert profile_error(tmp_path, "cpus: 1\ngpus: {number: 2}\n").startswith(
        "p.yaml:2: gpus.number: unknown key of gpus 'number'"
    )
    assert profile_error(tmp_path, "time_h: soon\n") == "p.yaml:1: time_h: 'soon': must be a number"
    assert "sbatch.array" in profile_error(tmp_path, "sbatch: {array: 0-3}\n")
    with pytest.raises(UserError, match=r"--cluster gpu: give the path of a profile, or the name of a shipped one: lo"):
        cluster.load("gpu")


def test_the_shipped_profiles_are_whole() -> None:
    assert cluster.load("local").executor == "local"
    example = cluster.load("slurm-example", ["time_h=0.51", "gpus.count=2"])
    assert (example.gres, example.time_min, example.cpus) == ("gpu:a100:2", 31, 8)


def test_arrays_keep_the_parallelism() -> None:
    assert [(c.first, c.count, c.parallel, c.after) for c in chunks(2500, 1000, 64)] == [
        (0, 833, 21, None),
        (833, 833, 21, None),
        (1666, 834, 22, None),
    ]
    few = [(2, 1, None), (3, 1, None), (2, 1, 0), (3, 1, 1)]
    assert [(c.count, c.parallel, c.after) for c in chunks(10, 3, 2)] == few
    for slots, size, parallel in ((1, 1001, 64), (1001, 1001, 1), (7, 2, 3), (5000, 1001, 300)):
        made = chunks(slots, size, parallel)
        assert sum(chunk.count for chunk in made) == slots
        assert max(chunk.count for chunk in made) <= size
        assert sum(chunk.parallel for chunk in made if chunk.after is None) <= parallel


def test_no_sbatch_on_the_path(
    write: Write, results: Path, behave: Behave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on the PATH: launch from the cluster's login node"):
        launch.launch(load(write, FAKE), results, executor(tmp_path))
    assert not list((results / "x").glob("[!.]*"))


@pytest.mark.whole
def test_refusals_leave_nothing_behind(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    sweep = load(write, FAKE)
    for keys, message in (
        ({"partition": "gpu"}, r"profile.yaml: partition: Slurm has no partition 'gpu': valid are main, high"),
        ({"constraint": "h100"}, r"Slurm refuses such a job: .*; nothing was submitted \(profile profile.yaml\)"),
        ({"gpus": {"count": 64}}, r"Slurm refuses such a job: .*Requested node configuration is not available"),
    ):
        with pytest.raises(UserError, match=message):
            launch.launch(sweep, results, executor(tmp_path, **keys))
        assert not list((results / "x").glob("[!.]*"))
        assert not launches.records(results / "x")
    assert not slurm.run("squeue", "--noheader").stdout


@pytest.mark.whole
def test_what_was_submitted_before_a_refusal_goes_on(
    write: Write,
    results: Path,
    behave: Behave,
    slurm: SlurmCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweep = load(write, FAKE, "seeds=4")
    runs_it = executor(tmp_path, sbatch={"hold": True})
    monkeypatch.setattr(slurm_limits, "read", lambda account, qos: Limits(max_array_size=2))
    real = runs_it._parameters

    def second_refused(name: str, chunk: Chunk, after: str | None, code: str) -> dict[str, object]:
        parameters = real(name, chunk, after, code)
        return parameters | {"partition": "gone"} if chunk.first else parameters

    monkeypatch.setattr(runs_it, "_parameters", second_refused)
    with pytest.raises(
        PartlySubmitted,
        match=r"Slurm took 2 of 4 jobs \(\d+\) and refused the next: .*; those go on, and launching again",
    ):
        launch.launch(sweep, results, runs_it)
    monkeypatch.undo()
    for name, value in slurm.env.items():
        monkeypatch.setenv(name, value)
    again = launch.launch(sweep, results, executor(tmp_path, sbatch={"hold": True}))
    assert [fleet.run_ids[0] for fleet in again.fleets] == [run.run_id for run in sweep.runs[2:]]
    assert sum(len(runs) for runs in again.busy.values()) == 2


@pytest.mark.whole
def test_a_full_disk_submits_nothing(write: Write, behave: Behave, slurm: SlurmCluster, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(UserError, match="No space left on device; nothing was started: make room"):
            launch.launch(load(write, FAKE), disk / "results", executor(tmp_path))
        assert not slurm.run("squeue", "--noheader").stdout
        assert not launches.records(disk / "results" / "x")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_results_folder_that_cannot_be_written(write: Write, behave: Behave, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write .*file/x: Not a directory; choose another folder with --results"
    ):
        launch.launch(load(write, FAKE), tmp_path / "file", executor(tmp_path))


TWICE = """
import sys
from pathlib import Path
from sweeps import expand, launch
from sweeps.executors import choose
launch.WORKER = tuple(sys.argv[4:])
done = launch.launch(expand.load(Path(sys.argv[1])), Path(sys.argv[2]), choose(sys.argv[3]))
print(sum(len(fleet.runs) for fleet in done.fleets), sum(map(len, done.busy.values())))
"""


@pytest.mark.whole
def test_launched_twice_at_once(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path
) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("partition: main\nsbatch: {hold: true}\n")
    command = [sys.executable, "-c", TWICE, str(write(FAKE)), str(results), str(profile), *launch.WORKER]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    assert sorted(process.communicate()[0].strip() for process in both) == ["0 3", "3 0"]
    assert len(slurm.run("squeue", "--noheader", "--array").stdout.splitlines()) == 3


@pytest.mark.whole
def test_limits_and_endings_of_the_accounting(
    write: Write,
    results: Path,
    behave: Behave,
    accounting_cluster: SlurmCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No more jobs than the user may submit: each works off several fleets; and sacct tells how they ended."""
    for name, value in accounting_cluster.env.items():
        monkeypatch.setenv(name, value)
    assert read(None, None).max_submit is None
    accounting_cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=2")
    wait_for(lambda: read(None, None).max_submit == 2)
    limits = read(None, None)
    assert (limits.submittable, limits.source) == (2, "MaxSubmitJobs of account lab")
    sweep = load(write, FAKE, "seeds=5")
    launched = start(sweep, results, executor(tmp_path))
    assert launched.tasks == [[0, 2, 4], [1, 3]]
    with pytest.raises(UserError, match=r"Slurm lets you submit 2 jobs at a time \(MaxSubmitJobs of account lab\)"):
        launch.launch(load(write, FAKE, "seeds=6"), results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["done"] * 5)
    wait_for(lambda: job_words(launched) == ["COMPLETED", "COMPLETED"])
    behave(seed7="sleep")
    sleeps = load(write, FAKE, "seeds=[7]")
    other = start(sleeps, results, executor(tmp_path))
    wait_for(lambda: states(sleeps, results) == ["running"])
    accounting_cluster.run("scancel", other.jobs()[0])
    monkeypatch.setattr(slurm_state, "_squeue", lambda job_ids: ())  # as once the controller has forgotten its jobs
    wait_for(lambda: job_words(other) == ["CANCELLED"])
    assert json.dumps(slurm_state.history(other.jobs()[0])) == '["CANCELLED"]'
