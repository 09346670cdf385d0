"""ManiSkill3 where it is installed instead of ManiSkill2: its versions of the tasks, under a version of their own."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from test_envs_domains import check_row
from test_training_domains import spec

from bench import envs, installed, tasks
from bench.envs import vulkan
from bench.envs.missing import import_failure
from bench.errors import UserError
from bench.rundir import RunDir
from bench.tasks.rows import MANISKILL3
from bench.tasks.task import DOMAIN_VERSIONS

CACHES = (installed.is_maniskill3, tasks._built_in, tasks._table, tasks._sets)
needs_maniskill3 = pytest.mark.skipif(
    not installed.is_maniskill3(), reason="ManiSkill3 is not installed instead of ManiSkill2"
)


@pytest.fixture
def as_if_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table that an environment with ManiSkill3 has."""

    def clear() -> None:
        for cached in CACHES:
            cached.cache_clear()

    with monkeypatch.context() as patch:
        patch.setattr(installed, "find_spec", lambda name: object() if name == "mani_skill" else None)
        patch.setattr(metadata, "version", {"mani_skill": "3.0.1", "sapien": "3.0.3"}.__getitem__)
        clear()
        yield
    clear()


@pytest.mark.usefixtures("as_if_installed")
def test_rows_and_versions() -> None:
    row = tasks.get("pick-cube")
    assert (row.simulator_id, row.obs_size, row.action_size) == ("PickCube-v1", 42, 4)
    assert row.domain_version == "mani_skill-3.0.1+sapien-3.0.3 (dense reward)"
    assert tasks.get("lift-cube").domain_version == DOMAIN_VERSIONS["maniskill"]
    assert len([task for task in tasks.tasks() if task.domain in DOMAIN_VERSIONS]) == 104
    line = str(import_failure("pick-cube", "maniskill", ImportError("No module named 'h5py'")))
    assert "pick-cube needs mani_skill, whose import failed (No module named 'h5py')" in line


@pytest.mark.usefixtures("as_if_installed")
def test_tasks_of_maniskill2_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.envs.maniskill.is_maniskill3", lambda: True)
    with pytest.raises(UserError, match="lift-cube is a task of ManiSkill2, and ManiSkill3 is installed, of which"):
        envs.make("lift-cube")


def test_a_run_never_mixes_versions(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, spec("sac", tasks.get("pick-cube"), 2))
    other = spec("sac", tasks.get("pick-cube"), 2, domain_version="mani_skill-3.0.1+sapien-3.0.3 (dense reward)")
    with pytest.raises(UserError, match=r"was begun with .* and mani_skill-3\.0\.1.* is installed: go on in the first"):
        run.update_spec(other)
    with pytest.raises(UserError, match="was begun with"):
        run.check_version(other.domain_version)


@needs_maniskill3
@pytest.mark.parametrize("name", sorted(MANISKILL3))
def test_the_real_tasks(name: str) -> None:
    """Sizes, length, repeat and seeds, bit for bit; with the renderer or without."""
    check_row(tasks.get(name))
    env = envs.make(name)
    env.reset(seed=1)
    *_, info = env.step(np.zeros(4, np.float32))
    assert info == {"success": 0.0}
    assert vulkan.device() is not None or not env.simulation.scene.can_render()  # type: ignore[attr-defined]
