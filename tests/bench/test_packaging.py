"""The distribution holds every folder, and one set of versions is pinned, locked and installed."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


LOCKED = {normal(name): version for name, _, version in (line.partition("==") for line in LOCK)}


def declared():
    """(name, specifier) of every requirement of the project, its extras and its build."""
    requirements = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        requirements += extra
    return sorted(re.fullmatch(r"([\w.-]+)(.*)", requirement).groups() for requirement in requirements)


def test_every_folder_with_code_is_in_the_distribution():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    top_level = {name.partition(".")[0] for name in listed}
    folders = {path.parent.relative_to(ROOT) for name in top_level for path in (ROOT / name).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == listed
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_no_code_lies_beside_the_distribution():
    listed = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    folders = {path.parent.name for path in ROOT.glob("[!.]*/*.py")}
    assert folders <= listed | {"tests", "examples", "docs", "build"}


def test_lock_lines_are_exact_pins_in_order():
    assert [line for line in LOCK if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*", line)] == []
    assert sorted(LOCKED) == list(LOCKED)


def test_torch_is_exactly_2_13_0():
    """Another request would bring gigabytes of CUDA packages onto machines without a GPU."""
    assert LOCKED["torch"] == "2.13.0"
    assert "torch==2.13.0" in PROJECT["project"]["dependencies"]


@pytest.mark.parametrize(("name", "specifier"), declared())
def test_the_lock_has_every_requirement_within_its_bounds(name, specifier):
    from packaging.specifiers import SpecifierSet

    assert normal(name) in LOCKED
    assert SpecifierSet(specifier).contains(LOCKED[normal(name)])


def test_what_is_installed_is_what_is_locked():
    installed = {name: metadata.version(name).partition("+")[0] for name in LOCKED}
    assert installed == LOCKED


def test_the_lock_is_closed():
    """Installing with --no-deps misses nothing: what a locked package needs here is locked too."""
    from packaging.requirements import Requirement

    needed = {}
    for name in LOCKED:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed.setdefault(normal(requirement.name), set()).add(name)
    # torch is installed with its own dependencies, which on a GPU machine are NVIDIA's packages and triton.
    # OpenCV is its build without windows, the same module under another name, which needs no library of the system.
    needed["opencv-python-headless"] = needed.pop("opencv-python")
    lacking = {name: by for name, by in needed.items() if name not in LOCKED and by != {"torch"}}
    assert lacking == {}


def make(*arguments, folder=ROOT):
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_setup_without_python_3_11_is_one_clear_line(tmp_path):
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).write_text((ROOT / name).read_text())
    done = make("setup", "PYTHON=no-such-python", folder=folder)
    assert done.returncode != 0
    first, *_ = done.stderr.splitlines()
    assert first.startswith("error: no Python 3.11 found (looked for: no-such-python)")
    assert not (folder / ".venv").exists()


def test_every_target_is_described():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split())
    described = set(re.findall(r"^make (\S+) ", make("help").stdout, re.M))
    assert described == targets - {"help"}
