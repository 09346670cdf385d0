"""The picture of a model's task embeddings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from analysis import embeddings
from analysis.cli import app
from bench import tasks
from bench.errors import UserError
from bench.pretrained import Pretrained

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from authors_files import build

TINY = (16, 24, 16, 2, 3, 12)
MT30 = [task.name for task in tasks.task_set("mt30")]


def save(path, count=30):
    entries = build(tasks=count, obs=24, action=6, dims=TINY)
    torch.save(entries, path)
    return entries["model"]["_task_emb.weight"].numpy()


def draw(*arguments):
    result = CliRunner().invoke(app, ["figures", "embeddings", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_is_alike_lies_together_and_the_numbers_repeat():
    names = [*MT30[:12], *(f"mw-{name}" for name in ("reach", "push", "sweep", "soccer", "hammer", "drawer-open"))]
    centres = np.repeat(np.random.default_rng(0).normal(size=(3, 20)), 6, axis=0)
    near = (centres + 0.05 * np.random.default_rng(1).normal(size=centres.shape)).astype(np.float32)
    points = embeddings.table(names, near, seed=1)
    assert list(points["domain"]) == ["dmcontrol"] * 12 + ["metaworld"] * 6
    np.testing.assert_allclose(points["norm"], np.linalg.norm(near, axis=1))
    at = points[["x", "y"]].to_numpy()
    apart = np.linalg.norm(at[:, None] - at, axis=2) + 1e9 * np.eye(18)
    assert (apart.argmin(1) // 6 == np.arange(18) // 6).all(), "every task's nearest is of its own group"
    pd.testing.assert_frame_equal(points, embeddings.table(names, near, seed=1))


def test_a_files_table_is_drawn_with_its_names_and_norms(tmp_path):
    table = save(tmp_path / "x.pt")
    np.testing.assert_array_equal(Pretrained.look_up(tmp_path / "x.pt").embeddings(), table)
    norms = np.linalg.norm(table, axis=1)
    said = draw(tmp_path / "x.pt", "-o", tmp_path / "figures")
    assert f"30 tasks, embeddings of 12 numbers with norms of {norms.min():.2f} to {norms.max():.2f}" in said
    drawn = pd.read_csv(tmp_path / "figures" / "embeddings.csv")
    assert list(drawn["task"]) == MT30
    np.testing.assert_allclose(drawn["norm"], norms, rtol=1e-5)
    assert (tmp_path / "figures" / "embeddings.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures" / "embeddings.pdf").read_bytes().startswith(b"%PDF")


def test_names_of_other_models_are_told_or_numbered(tmp_path):
    save(tmp_path / "x.pt", count=5)
    draw(tmp_path / "x.pt", "-o", tmp_path)
    assert list(pd.read_csv(tmp_path / "embeddings.csv")["task"]) == [f"task {number}" for number in range(5)]
    five = ["--model-tasks", "cup-catch", "--model-tasks", "locomotion"]
    for arguments, words in (
        (["x.pt", *five], "a model of 5 tasks, 8 were given"),
        (["y.pt"], "no file"),
        (["three.pt"], "at least 4 tasks, the model has 3"),
        (["one.pt"], "without task embeddings"),
    ):
        save(tmp_path / "three.pt", count=3)
        torch.save(build(dims=TINY), tmp_path / "one.pt")
        with pytest.raises(UserError, match=words):
            draw(tmp_path / arguments[0], "-o", tmp_path, *arguments[1:])


def test_names_do_not_cover_each_other_where_there_is_room():
    points = embeddings.table(MT30, np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32), seed=1)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from analysis.style import figure

    with figure(9, 9) as drawn:
        axis = drawn.subplots()
        axis.plot(points["x"], points["y"], "o")
        drawn.draw_without_rendering()
        embeddings._write_names(axis, points, ["#000000"] * 30)
        renderer = FigureCanvasAgg(drawn).get_renderer()
        boxes = np.array([text.get_window_extent(renderer).extents for text in axis.texts])
    assert [text.get_text() for text in axis.texts] == MT30
    common = embeddings.overlaps(boxes, boxes)
    assert np.diag(common) == pytest.approx(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    assert common.sum() - np.trace(common) < 0.02 * np.trace(common)


@pytest.mark.whole
def test_drawing_loads_no_torch(tmp_path):
    save(tmp_path / "x.pt")
    arguments = ["bench", "figures", "embeddings", str(tmp_path / "x.pt"), "-o", str(tmp_path)]
    code = (
        f"import sys; sys.argv = {arguments!r}\n"
        "from bench.__main__ import main\ntry:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
