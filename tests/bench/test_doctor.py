"""The doctor tells what works, keeps the original error, names the mend, and survives what crashes."""

import json
import os
import stat
import subprocess
import sys
import time

import pytest

from bench import checks, doctor
from bench.checks import Check, judge, judge_gpu, judge_rendering
from bench.children import Outcome, run_child

WORKS = Outcome(0, {"found": "it stepped"}, "", 1.0)


def broken(error, missing_module=None, stderr=""):
    return Outcome(1, {"error": error, "missing_module": missing_module}, stderr, 1.0)


# Children


def child(code, timeout_s=20.0):
    return run_child([sys.executable, "-c", code], os.environ, timeout_s)


def test_a_child_answers_among_noise_on_stderr():
    outcome = child("import sys; print('noise', file=sys.stderr); print('{\"found\": 1}')")
    assert outcome.answer == {"found": 1}
    assert outcome.returncode == 0


def test_a_crash_is_named():
    outcome = child("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert outcome.end == "crashed (SIGSEGV)"
    assert judge("myosuite", outcome).status == "fail"


def test_a_hang_is_ended_with_all_that_it_started():
    start = time.monotonic()
    # The grandchild holds the pipe open: ending the child alone would wait for it.
    outcome = child("import subprocess; subprocess.run(['sleep', '60'])", timeout_s=1.0)
    assert time.monotonic() - start < 20
    assert outcome.returncode is None
    assert "no answer within 1 s" in judge("metaworld", outcome).found


# Verdicts


def test_what_works_is_ok():
    assert judge("metaworld", WORKS) == Check("metaworld", "ok", "it stepped", seconds=1.0)


def test_an_answer_before_a_crash_does_not_count():
    outcome = Outcome(-11, {"found": "it stepped"}, "", 1.0)
    assert judge("maniskill", outcome).found == "crashed (SIGSEGV)"


def test_a_missing_package_keeps_the_error_and_names_the_command():
    check = judge("myosuite", broken("ModuleNotFoundError: No module named 'myosuite'", "myosuite"))
    assert check.found == "ModuleNotFoundError: No module named 'myosuite'"
    assert "-m pip install --no-deps myosuite==2.11.6" in check.mend
    check = judge("maniskill", broken("ModuleNotFoundError: No module named 'mani_skill2'", "mani_skill2.envs"))
    assert "-m pip install --no-deps mani-skill2==0.5.3" in check.mend


@pytest.mark.parametrize(
    ("library", "package"), [("libvulkan.so.1", "libvulkan1"), ("libGL.so.1", "libgl1"), ("libEGL.so.1", "libegl1")]
)
def test_a_missing_system_library_names_its_debian_package(library, package):
    check = judge("maniskill", broken(f"ImportError: {library}: cannot open shared object file"))
    assert check.mend.startswith(f"apt-get install -y {package} ")


def test_one_way_to_render_is_enough():
    without = broken("AttributeError: 'NoneType' object has no attribute 'glGetError'")
    assert [check.status for check in judge_rendering(WORKS, without)] == ["ok", "warn"]
    assert [check.status for check in judge_rendering(without, without)] == ["fail", "fail"]
    egl, osmesa = judge_rendering(without, without)
    assert "libegl1 libgl1 libgl1-mesa-dri" in egl.mend
    assert "libosmesa6" in osmesa.mend
    assert "glGetError" in osmesa.found


def test_gpu():
    no_cuda = broken("RuntimeError: torch 2.13.0+cpu sees no CUDA device")
    assert judge_gpu(no_cuda, None).status == "warn"
    unused = judge_gpu(no_cuda, "570.10")
    assert unused.status == "fail"
    assert "driver 570.10" in unused.found
    assert "-m pip install torch==2.13.0 --force-reinstall" in unused.mend
    assert judge_gpu(Outcome(0, {"found": "GPU"}, "", 1.0), "570.10").found == "GPU, driver 570.10"


# Checks in this process


def test_results_folder(tmp_path):
    check = checks.check_results(tmp_path / "not" / "yet")
    assert check.status in ("ok", "warn")
    assert "GB free" in check.found
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert checks.check_results(tmp_path / "file" / "runs").status == "fail"
    assert checks.check_results(tmp_path / "file").core


def test_a_results_folder_that_cannot_be_written():
    check = checks.check_results(checks.Path("/proc/results"))
    assert check.status == "fail"
    assert "cannot write" in check.found


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "LOW_DISK_GB", 1e9)
    assert checks.check_results(tmp_path).status == "warn"


def test_packages_differ_from_their_pins(monkeypatch):
    assert checks.check_packages().status == "ok"
    real = checks.metadata.version
    monkeypatch.setattr(checks.metadata, "version", lambda name: "2.4.0" if name == "numpy" else real(name))
    check = checks.check_packages()
    assert check.status == "warn"
    assert "numpy==1.26.4 (installed: 2.4.0)" in check.found


def test_assets_are_counted(tmp_path):
    check = checks.check_maniskill_assets(tmp_path)
    assert check.status == "warn"
    assert "60 of 60" in check.found
    assert "download_asset -y ycb" in check.mend
    ycb = tmp_path / "mani_skill2_ycb"
    (ycb / "models" / "a").mkdir(parents=True)
    (ycb / "models" / "a" / "collision.obj").touch()
    (ycb / "info_pick_v0.json").write_text('{"a": {}, "b": {}}')
    assert "pick-ycb: 1 of 2 models missing" in checks.check_maniskill_assets(tmp_path).found
    (ycb / "info_pick_v0.json").write_text('{"a": {}}')
    check = checks.check_maniskill_assets(tmp_path)
    assert "pick-ycb" not in check.found
    assert "ycb" not in check.mend.partition("&&")[2]


def tool(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no sbatch and no scontrol" in checks.check_slurm().found
    tool(tmp_path, "sbatch", "echo slurm 23.11.4")
    tool(tmp_path, "scontrol", "echo 'Slurmctld(primary) at head is DOWN'; exit 1")
    assert checks.check_slurm().status == "fail"
    tool(tmp_path, "scontrol", "echo 'Slurmctld(primary) at head is UP'")
    check = checks.check_slurm()
    assert check.status == "ok"
    assert "slurm 23.11.4" in check.found


# All of it, for real


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """The doctor's JSON on this machine, with a Meta-World that cannot be imported and a MyoSuite that crashes."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "metaworld.py").write_text("raise ImportError('the original reason')")
    (folder / "myosuite.py").write_text("import os; os.abort()")
    code = "import sys; from pathlib import Path; from bench.doctor import command; sys.exit(command(True, Path('.')))"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    return {
        "returncode": done.returncode,
        "core_works": found["core_works"],
        "seconds": time.monotonic() - start,
        **{check["name"]: check for check in found["checks"]},
    }


@pytest.mark.whole
def test_the_core_works_here(answer):
    assert answer["returncode"] == 0
    assert answer["core_works"] is True
    for name in ("python", "torch", "dmcontrol", "analysis", "results"):
        assert answer[name]["core"] is True
        assert answer[name]["status"] != "fail", answer[name]
    assert answer["video"]["status"] == "ok"
    assert "walker-walk" in answer["dmcontrol"]["found"]


@pytest.mark.whole
def test_a_broken_domain_is_told_and_hides_no_other(answer):
    assert answer["metaworld"]["status"] == "fail"
    assert answer["metaworld"]["found"] == "ImportError: the original reason"
    assert answer["myosuite"]["status"] == "fail"
    assert "crashed (SIGABRT)" in answer["myosuite"]["found"]


@pytest.mark.whole
def test_every_failure_names_its_mend(answer):
    found = [check for check in answer.values() if isinstance(check, dict)]
    assert len(found) == 15
    assert all(check["mend"] for check in found if check["status"] == "fail")


@pytest.mark.whole
def test_it_takes_less_than_a_minute(answer):
    assert answer["seconds"] < 60


def test_a_broken_core_is_exit_code_1(monkeypatch, capsys, tmp_path):
    found = [
        Check("python", "ok", "3.11.7", core=True),
        Check("dmcontrol", "fail", "ImportError: [why]", "make setup", core=True),
        Check("slurm", "warn", "no sbatch"),
    ]
    monkeypatch.setattr(doctor, "run_checks", lambda results: found)
    assert doctor.command(False, tmp_path) == 1
    out = capsys.readouterr().out
    assert "ImportError: [why]" in out
    assert "dmcontrol: make setup" in out
    assert doctor.command(True, tmp_path) == 1
    assert json.loads(capsys.readouterr().out)["core_works"] is False
    monkeypatch.setattr(doctor, "run_checks", lambda results: [found[0], found[2]])
    assert doctor.command(True, tmp_path) == 0
