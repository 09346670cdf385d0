"""`bench data` show, convert and download as a user sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dataset_files import NAMES, folder_of, mixed
from test_download import CONTENT, Server, serve
from typer.testing import CliRunner, Result

from bench.data_cli import Progress, app
from bench.datasets.published import urls
from bench.errors import UserError


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments])


def said(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_convert_and_show(tmp_path: Path) -> None:
    chunk = mixed([2, 0, 3], 6)
    chunks, made = str(folder_of(tmp_path / "chunks", [chunk])), str(tmp_path / "set")
    out = said("convert", chunks, "-o", made, "--tasks", ", ".join(NAMES))
    assert out.splitlines() == [f"5 rows of 6 entries: 0.0 GB of disk in {made}", f"{made}: 5 rows of 2 tasks, 0.0 GB"]
    facts = json.loads(said("show", made, "--json"))
    assert (facts["rows"], facts["transitions"], facts["sources"]) == (5, 25, ["chunk_0.pt"])
    returns = chunk["reward"][chunk["task"][:, 1] == 2, 1:].sum(1).numpy()
    catch, balance, swingup = facts["tasks"]
    assert (catch["rows"], balance["rows"], swingup["rows"]) == (2, 0, 3)
    np.testing.assert_allclose(
        [swingup[key] for key in ("mean", "least", "most")], [returns.mean(), returns.min(), returns.max()], rtol=1e-6
    )
    table = said("show", made).splitlines()
    assert table[2].split()[:5] == ["0", "cup-catch", "2", "8", "2"]
    assert table[3].split() == ["1", "cartpole-balance", "0", "5", "1"]
    result = run("show", chunks)
    assert isinstance(result.exception, UserError)


def test_progress_is_said_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = Progress()
    progress.say("rows", 100, 1000)
    for done, at in ((200, 10.0), (300, 30.0), (400, 40.0), (1000, 60.0)):
        now = at
        progress.say("rows", done, 1000)
    progress.close()
    assert capsys.readouterr().err.splitlines() == ["rows: 300 of 1,000, 1.8 minutes left", "rows: 1,000 of 1,000"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serve() as one:
        for number in range(4):
            one.pages.add(f"/datasets/nicklashansen/tdmpc2/resolve/main/mt30/chunk_{number}.pt")
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        yield one


def test_where_the_published_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert len(urls("mt80")) == 20
    assert urls("mt30")[3] == (
        "chunk_3.pt",
        "https://huggingface.co/datasets/nicklashansen/tdmpc2/resolve/main/mt30/chunk_3.pt",
    )
    with pytest.raises(UserError, match="unknown published data set 'mt50': did you mean mt"):
        urls("mt50")


def test_download_says_what_it_needs_and_goes_on(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "mt30"
    server.break_at = 3_000_000
    result = run("download", "mt30", "-o", str(folder))
    assert result.stdout.startswith(f"mt30: 4 files, 0.0 GB of disk in {folder}, 0.0 GB to download")
    assert isinstance(result.exception, UserError)
    assert "broke off at 3,000,000" in str(result.exception)
    server.break_at = None
    out = said("download", "mt30", "-o", str(folder))
    assert out.splitlines()[-1] == f"{folder}: 4 new files; next: bench data convert {folder} -o DATASET"
    assert "bytes=3000000-" in server.asked
    assert sorted(path.name for path in folder.iterdir()) == [f"chunk_{number}.pt" for number in range(4)]
    assert all(path.read_bytes() == CONTENT for path in folder.iterdir())
    asked = len(server.asked)
    assert "0 new files" in said("download", "mt30", "-o", str(folder))
    assert len(server.asked) == asked
    (folder / "chunk_2.pt").write_bytes(CONTENT[:-1])  # a size that is not the server's
    assert "1 new files" in said("download", "mt30", "-o", str(folder))


def test_a_disk_that_lacks_room_is_said_first(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 4 * len(CONTENT) - 1))
    result = run("download", "mt30", "-o", str(tmp_path / "mt30"))
    assert isinstance(result.exception, UserError)
    assert "lacks room: 0.0 GB are to be downloaded and 0.0 GB are free" in str(result.exception)
    assert not (tmp_path / "mt30").exists()
    assert server.asked == []


def test_a_server_that_is_not_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    result = run("download", "mt80", "-o", str(tmp_path))
    assert "mt80/chunk_0.pt: the server answered 404" in str(result.exception)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    result = run("download", "mt30", "-o", str(tmp_path))
    assert "cannot download http://127.0.0.1:1/datasets" in str(result.exception)
