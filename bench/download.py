"""Downloads that go on where they stopped, and are checked before they take their name."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from bench.errors import UserError

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0


def hugging_face(repository: str, path: str) -> str:
    """Address of a file; the environment variable HF_ENDPOINT names a mirror."""
    return f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{repository}/resolve/main/{path}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects and keeps the headers of the first answer: Hugging Face names size and SHA-256 there."""

    def __init__(self) -> None:
        self.first: Message | None = None

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.first = self.first or headers
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(
    url: str,
    path: Path,
    expected_bytes: int | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> bool:
    """Download a file; what arrives is in `<name>.part` until it is whole.

    Args:
        url: http or https.
        path: where the file goes; its folder is made.
        expected_bytes: its size, where that is known beforehand.
        progress: called with bytes so far and in all (None: unknown).

    Returns:
        Whether anything was downloaded; false where the file was there.

    Raises:
        UserError: the server is not reached or refuses, the size or the checksum is another, or the disk is full. The
            next call goes on from what has arrived, unless that was wrong.
    """
    if path.exists() and (expected_bytes is None or path.stat().st_size == expected_bytes):
        return False
    part = path.with_name(path.name + ".part")
    with _one_line(url, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        size, sha256 = _receive(url, part, expected_bytes, progress)
    _check(url, part, expected_bytes if expected_bytes is not None else size, sha256)
    part.replace(path)
    return True


def remote_size(url: str) -> int:
    """How large a file is that has not been downloaded, in bytes.

    Raises:
        UserError: the server is not reached, refuses, or does not say.
    """
    redirects = _Redirects()
    with _one_line(url), _open(urllib.request.Request(url, method="HEAD"), redirects) as answer:
        size, _ = _named(redirects.first or answer.headers)
        length = answer.headers.get("Content-Length")
    if size is None and not length:
        raise UserError(f"{url}: the server does not say how large it is")
    return size if size is not None else int(length)


@contextmanager
def _one_line(url: str, part: Path | None = None) -> Iterator[None]:
    """What goes wrong on the way, as one line for the user."""
    try:
        yield
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"cannot download {url} ({reason}): the same command goes on once it is reached") from error
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}") from error


def _open(request: urllib.request.Request, redirects: _Redirects) -> Any:
    return urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT_S)


def _named(headers: Message) -> tuple[int | None, str | None]:
    """Size and SHA-256 as far as the first answer names them."""
    size, etag = headers.get("X-Linked-Size"), (headers.get("X-Linked-Etag") or "").strip('"')
    return int(size) if size else None, etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None


def _receive(
    url: str, part: Path, expected_bytes: int | None, progress: Callable[[int, int | None], None]
) -> tuple[int | None, str | None]:
    """Append to `part` what it lacks. Returns size and SHA-256 as far as the server names them."""
    have = part.stat().st_size if part.exists() else 0
    if expected_bytes is not None and have == expected_bytes:
        return expected_bytes, None
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    redirects = _Redirects()
    try:
        answer = _open(request, redirects)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is lacking
            return have, None
        raise
    with answer:
        if answer.status != 206:
            have = 0  # the server sends the whole file
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
        size, sha256 = _named(redirects.first or answer.headers)
        return size if size is not None else total, sha256


def _check(url: str, part: Path, size: int | None, sha256: str | None) -> None:
    have = part.stat().st_size
    if size is not None and have < size:
        raise UserError(f"{url} broke off at {have:,} of {size:,} bytes: the same command goes on from there")
    wrong = None
    if size is not None and have > size:
        wrong = f"has {have:,} bytes instead of {size:,}"
    elif sha256 is not None and sha256_of(part) != sha256:
        wrong = "does not have the checksum that the server names"
    if wrong:
        part.unlink()
        raise UserError(f"{url} {wrong}: it was removed, run the same command again")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
