"""Downloads from a server on this machine that can break off, redirect and lie."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bench.download import fetch, remote_size
from bench.errors import UserError
from bench.published_models import MULTITASK_BYTES, published_models, select

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Server(ThreadingHTTPServer):
    """Serves CONTENT as /file; /linked redirects there and names its size and checksum."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.break_at: int | None = None
        self.checksum = hashlib.sha256(CONTENT).hexdigest()
        self.ranges = True
        self.asked: list[str | None] = []
        self.pages = {"/file"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        if self.path == "/linked":
            self.do_GET()
        elif self.path not in self.server.pages:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()

    def do_GET(self) -> None:
        if self.path == "/linked":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("X-Linked-Size", str(len(CONTENT)))
            self.send_header("X-Linked-Etag", f'"{self.server.checksum}"')
            self.end_headers()
            return
        if self.path not in self.server.pages:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.split("=")[1].rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = self.server.break_at
        self.wfile.write(CONTENT[start : len(CONTENT) if stop is None else stop])

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@contextmanager
def serve() -> Iterator[Server]:
    """A server for as long as it is needed."""
    one = Server()
    thread = threading.Thread(target=one.serve_forever, daemon=True)
    thread.start()
    yield one
    one.shutdown()
    one.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as one:
        yield one


@pytest.mark.parametrize("page", ["file", "linked"])
def test_a_file_arrives_whole_and_only_once(server: Server, tmp_path: Path, page: str) -> None:
    path, said = tmp_path / "folder" / "file", []
    assert fetch(f"{server.url}/{page}", path, progress=lambda done, total: said.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert said[-1] == (len(CONTENT), len(CONTENT))
    assert [one.name for one in path.parent.iterdir()] == ["file"]
    assert not fetch(f"{server.url}/{page}", path)
    assert len(server.asked) == 1


@pytest.mark.parametrize("page", ["file", "linked"])
def test_a_size_is_known_beforehand(server: Server, page: str) -> None:
    assert remote_size(f"{server.url}/{page}") == len(CONTENT)
    with pytest.raises(UserError, match="the server answered 404"):
        remote_size(f"{server.url}/nothing")
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1:1/file"):
        remote_size("http://127.0.0.1:1/file")


@pytest.mark.parametrize("ranges", [True, False])
def test_it_goes_on_where_it_broke_off(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.break_at, server.ranges = 3_000_000, ranges
    with pytest.raises(UserError, match=r"broke off at 3,000,000 of 5,120,000 bytes|cannot download"):
        fetch(f"{server.url}/linked", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    server.break_at = None
    assert fetch(f"{server.url}/linked", tmp_path / "file")
    assert server.asked[-1] == "bytes=3000000-"
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_part_that_is_whole_needs_no_more(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    assert fetch(f"{server.url}/file", tmp_path / "file", len(CONTENT))
    assert server.asked == []
    (tmp_path / "other.part").write_bytes(CONTENT)
    assert fetch(f"{server.url}/file", tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == CONTENT


def test_wrong_content_is_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 5,120,000 bytes instead of 77"):
        fetch(f"{server.url}/file", tmp_path / "file", 77)
    server.checksum = "0" * 64
    with pytest.raises(UserError, match="checksum"):
        fetch(f"{server.url}/linked", tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_reached_is_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server answered 404"):
        fetch(f"{server.url}/nothing", tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1:1/file .*refused.*goes on once"):
        fetch("http://127.0.0.1:1/file", tmp_path / "file")
    (tmp_path / "folder").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        fetch(f"{server.url}/file", tmp_path / "folder" / "file")


def test_the_published_models() -> None:
    models = published_models()
    assert len(models) == 324
    assert len(MULTITASK_BYTES) == 12
    folders = {model.folder for model in models.values()}
    assert folders == {"dmcontrol", "metaworld", "maniskill2", "myosuite", "multitask"}
    assert models["myo-hand-pose-hard-1"].path == "myosuite/myo-hand-pose-hard-1.pt"
    assert models["myo-hand-pose-hard-1"].task == "myo-pose-hard"
    assert models["mt80-5M"].url == "https://huggingface.co/nicklashansen/tdmpc2/resolve/main/multitask/mt80-5M.pt"


def test_models_by_name_task_and_set() -> None:
    assert [model.name for model in select(["walker-walk", "mt30-1M"])] == [
        "walker-walk-1",
        "walker-walk-2",
        "walker-walk-3",
        "mt30-1M",
    ]
    assert [model.name for model in select(["mt70"])] == ["mt70-5M", "mt70-19M"]
    assert len(select(["mt80"])) == 5
    assert len(select(["metaworld"])) == 150
    with pytest.raises(UserError, match="did you mean mt80-1M"):
        select(["mt80-1"])


def test_download_from_a_mirror(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from bench.models_cli import app

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    result = CliRunner().invoke(app, ["models", "download", "cup-catch-1", "-o", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert f"{server.url}/nicklashansen/tdmpc2/resolve/main/dmcontrol/cup-catch-1.pt: the server answered 404" in str(
        result.exception
    )
