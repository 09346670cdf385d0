"""Commands of a real Slurm that fail, once or for good, before or after their work: nothing is lost or doubled."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cases import FAKE, attempts, executor, job_words, load, run_dirs, start, states, wait_for
from slurm_cluster import SlurmCluster

from bench.errors import UserError
from sweeps import launch, launches, slurm_state
from sweeps.launches import Launches
from sweeps.slurm_state import SlurmSilent

pytestmark = pytest.mark.whole

Behave = Callable[..., None]
Write = Callable[..., Path]
Fault = Callable[[str, str, int], None]

WRAPPER = """#!/bin/bash
# Fails as often as the file beside it says; `after` does its work first.
left=$(cat {count})
case " $* " in *" --test-only "*) left=0;; esac
if [ "$left" -gt 0 ]; then
    echo $((left - 1)) > {count}
    [ {kind} = after ] && {real} "$@" > /dev/null
    [ {kind} = garbage ] && {{ echo "<html>gateway</html>"; exit 0; }}
    echo "{name}: error: slurm_receive_msg: Socket timed out on send/recv operation" >&2
    exit 1
fi
exec {real} "$@"
"""


@pytest.fixture
def fault(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Makes a command fail so many times, `before` it does its work or `after`; 0 mends it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    reals = {name: shutil.which(name) for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol")}
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm_state, "PAUSES_S", (0.05, 0.05, 0.05))

    def set_fault(name: str, kind: str, times: int) -> None:
        count, script = folder / f"{name}.left", folder / name
        count.write_text(str(times))
        script.write_text(WRAPPER.format(count=count, kind=kind, real=reals[name], name=name))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    return set_fault


@pytest.mark.parametrize("name", ["squeue", "scontrol"])
def test_a_question_is_asked_again(
    name: str, write: Write, results: Path, behave: Behave, fault: Fault, tmp_path: Path
) -> None:
    fault(name, "before", 2)
    sweep = load(write, FAKE, "seeds=1")
    behave(seed1="sleep")
    launched = start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["running"])
    fault(name, "before", 2)
    assert job_words(launched) == ["RUNNING"]
    again = launch.launch(sweep, results, executor(tmp_path))
    assert (again.fleets, len(again.busy)) == ((), 1)


def test_what_was_known_holds_while_slurm_is_silent(
    write: Write, results: Path, behave: Behave, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launches, "ASK_SLURM_EVERY_S", 0.0)
    sweep = load(write, FAKE, "seeds=1")
    behave(seed1="sleep")
    start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["running"])
    known = Launches(results / "x")
    (before,) = known.read()
    fault("squeue", "before", 10**6)
    (after,) = known.read()
    assert known.silence is not None
    assert after.alive
    assert after.job_states == before.job_states
    (never_asked,) = Launches(results / "x").read()
    assert never_asked.alive
    with pytest.raises(SlurmSilent):  # it could start runs that are queued
        launch.launch(sweep, results, executor(tmp_path))


@pytest.mark.parametrize("kind", ["before", "after"])
def test_a_submission_without_an_answer_is_made_once(
    kind: str, write: Write, results: Path, behave: Behave, slurm: SlurmCluster, fault: Fault, tmp_path: Path
) -> None:
    fault("sbatch", kind, 2)
    sweep = load(write, FAKE)
    launched = start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["done"] * 3)
    assert [len(attempts(run)) for run in run_dirs(sweep, results)] == [1, 1, 1]
    wait_for(lambda: not slurm.run("squeue", "--noheader").stdout.strip())
    wait_for(lambda: job_words(launched) == ["COMPLETED"] * 3)


def test_a_submission_that_never_works_leaves_nothing(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, fault: Fault, tmp_path: Path
) -> None:
    fault("sbatch", "after", 10**6)
    sweep = load(write, FAKE)
    with pytest.raises(UserError, match=r"Slurm refused the submission: .*Socket timed out.*; nothing was submitted"):
        start(sweep, results, executor(tmp_path))
    wait_for(lambda: not slurm.run("squeue", "--noheader").stdout.strip())
    fault("sbatch", "before", 0)
    start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["done"] * 3)


def test_an_interrupted_submission_leaves_no_job_behind(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import submitit

    real = submitit.SlurmExecutor.map_array

    def interrupted(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    sweep = load(write, FAKE)
    behave(seed1="sleep", seed2="sleep", seed3="sleep")
    with monkeypatch.context() as patch:
        patch.setattr(submitit.SlurmExecutor, "map_array", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(sweep, results, executor(tmp_path))
    wait_for(lambda: not slurm.run("squeue", "--noheader").stdout.strip())
    behave()
    start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["done"] * 3)


@pytest.mark.parametrize("kind", ["before", "after"])
def test_jobs_that_could_not_be_cancelled_are_not_forgotten(
    kind: str, write: Write, results: Path, behave: Behave, fault: Fault, tmp_path: Path
) -> None:
    sweep = load(write, FAKE, "seeds=2")
    behave(seed1="sleep", seed2="sleep")
    launched = start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["running"] * 2)
    fault("scancel", "before", 10**6)
    with pytest.raises(SlurmSilent, match="scancel does not answer"):
        launch.cancel(results / "x")
    assert launched.released() == set()
    again = launch.launch(sweep, results, executor(tmp_path))
    assert (again.fleets, sum(map(len, again.busy.values()))) == ((), 2)
    fault("scancel", kind, 1)
    assert len(launch.cancel(results / "x").runs) == 2
    wait_for(lambda: set(job_words(launched)) == {"CANCELLED"})


def test_jobs_of_somebody_else_are_seen(
    write: Write, results: Path, behave: Behave, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague on a shared folder, and one whose uid has no name, see the same states."""
    sweep = load(write, FAKE, "seeds=1")
    behave(seed1="sleep")
    launched = start(sweep, results, executor(tmp_path))
    wait_for(lambda: states(sweep, results) == ["running"])
    with monkeypatch.context() as patch:
        for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            patch.setenv(name, "colleague")
        assert job_words(launched) == ["RUNNING"]
        again = launch.launch(sweep, results, executor(tmp_path))
        assert (again.fleets, len(again.busy)) == ((), 1)
