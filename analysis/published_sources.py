"""Where published learning curves come from, and whether some files are exactly theirs.

A source is a repository at a pinned commit. Its parts (a folder of CSV files, or one JSON file) are known by the
SHA-256 over their files, so that a clone, an archive or a bare copy of them is recognised wherever it lies.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from bench.errors import UserError

CHUNK_BYTES = 1 << 20
SUFFIXES = (".csv", ".json.gz", ".json")
"""What is taken out of an archive."""


@dataclass(frozen=True)
class Part:
    """The curves of one agent from one kind of observation."""

    agent: str
    variant: str
    obs: str
    digest: str
    """SHA-256 over the names and contents of its files; see `digest_of`."""


@dataclass(frozen=True)
class Source:
    """A repository with published curves, at the commit that is known here."""

    repository: str
    commit: str
    licence: str
    folder: str
    """Where in the repository its parts lie."""
    parts: Mapping[str, Part]
    """Name of a folder or file -> what it holds."""
    domain_versions: Mapping[str, str]
    """Domain -> the simulator that made the curves, as far as it is stated."""

    @property
    def archive_url(self) -> str:
        return f"https://codeload.github.com/{self.repository}/tar.gz/{self.commit}"

    def place(self, part: str) -> str:
        """How tables cite a part."""
        return f"{self.repository}@{self.commit[:7]}:{self.folder}/{part}"


TDMPC2 = Source(
    repository="nicklashansen/tdmpc2",
    commit="e9f59321933cbc8e11a002b842adc7d4ffae8ff1",
    licence="MIT",
    folder="results",
    parts=MappingProxyType(
        {
            "sac": Part("sac", "default", "state", "b13e38b740885236e8605d9d6659c908764390774c9889f87d6997b5fcaeca06"),
            "dreamerv3": Part(
                "dreamerv3", "default", "state", "5439c6dcb087755384bc91f0141045f1d696cb3a889e46c6e1ea437f67133743"
            ),
            "tdmpc": Part(
                "tdmpc", "default", "state", "b758f2a7741a6b07520e1b7abdb71c57af48be0a0ad8dcf493087a2557e9a0f0"
            ),
            "tdmpc2": Part(
                "tdmpc2", "default", "state", "c0e0931a8dd419937b783ebc19ed254886058ce923b1e4074801393026a3b065"
            ),
            "tdmpc2-pixels": Part(
                "tdmpc2", "default", "rgb", "dec4063027aca2d6636a22c0da3e1feeda46f170f268d868bd3f95a6deaf8f8d"
            ),
        }
    ),
    domain_versions=MappingProxyType(
        {
            "dmcontrol": "TD-MPC2 paper: mujoco-2.3.1",
            "metaworld": "TD-MPC2 paper: metaworld v2 at 04be337a, mujoco-py-2.1.2.14",
            "maniskill": "TD-MPC2 paper: mani_skill2-0.4.1",
            "myosuite": "TD-MPC2 paper: myosuite, version not stated",
        }
    ),
)
DREAMERV3 = Source(
    repository="danijar/dreamerv3",
    commit="e3f02248693a79dc8b0ebd62c93683888ddaccfe",
    licence="MIT",
    folder="scores",
    parts=MappingProxyType(
        {
            "dmc_vision-curl.json.gz": Part(
                "curl", "default", "rgb", "ca80f13c66b6af54f182025617d8903d22e494bcf88b92b9103c5f7f97d48690"
            ),
            "dmc_vision-drqv2.json.gz": Part(
                "drqv2", "default", "rgb", "47e4ecacff61aabf9730d4d0120f754dc55336f1add73ef4bfb817f22ad886dd"
            ),
            "dmc_vision-sac.json.gz": Part(
                "sac", "default", "rgb", "5d2ac6af9302bc0043aac55993b5604d1e32a1cd6111f805c22063bd4275d0d1"
            ),
            "dmc_vision-dreamerv3.json.gz": Part(
                "dreamerv3", "2024", "rgb", "7fdfcabb0c47f2f96ca9213f0ef1d5c6f40b3f9f6d3f9cf6a011b144ff59a6f1"
            ),
            "dmc_proprio-dreamerv3.json.gz": Part(
                "dreamerv3", "2024", "state", "4d71d4fdb16ac39d61dff12d20eb5c78fec516067130b39491ce98bd9bcb5305"
            ),
        }
    ),
    domain_versions=MappingProxyType({"dmcontrol": "DreamerV3 repository: dm_control, version not stated"}),
)
SOURCES = (TDMPC2, DREAMERV3)


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 over `name sha256` lines of some files, in order of name."""
    lines = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def recognise(name: str, files: list[Path]) -> tuple[Source, Part] | None:
    """The source and part that some files are, byte for byte; None where they are something else."""
    for source in SOURCES:
        part = source.parts.get(name)
        if part is not None and digest_of(files) == part.digest:
            return source, part
    return None


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with the curves of an archive (.tar.gz, .zip); a folder is given back as it is.

    Raises:
        UserError: no such file, or no archive.
    """
    if path.is_dir():
        yield path
        return
    if not path.exists():
        raise UserError(f"no folder or archive {path}: give a clone or archive of {TDMPC2.repository}, or results")
    with tempfile.TemporaryDirectory(prefix="published-") as folder:
        try:
            if tarfile.is_tarfile(path):
                with tarfile.open(path) as tar:
                    for member in tar:
                        if member.isfile() and member.name.endswith(SUFFIXES):
                            _place(Path(folder), member.name, tar.extractfile(member).read())  # type: ignore[union-attr]
            elif zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for name in archive.namelist():
                        if name.endswith(SUFFIXES):
                            _place(Path(folder), name, archive.read(name))
            else:
                raise UserError(f"{path} is neither a folder nor a .tar.gz or .zip archive")
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}): fetch it again") from error
        yield Path(folder)


def _place(folder: Path, name: str, content: bytes) -> None:
    """Write a member of an archive below a folder, wherever its name wants to go."""
    target = folder.joinpath(*(part for part in PurePosixPath(name).parts if part not in ("/", "..", ".")))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def download(source: Source, folder: Path, progress: Callable[[str], None], url: str = "") -> Path:
    """Fetch the archive of a source at its pinned commit.

    Args:
        url: another place of the same archive.

    Returns:
        The archive's file, below `folder`.

    Raises:
        UserError: it cannot be reached.
    """
    url = url or source.archive_url
    target = folder / f"{source.repository.replace('/', '-')}.tar.gz"
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as file:
            done = 0
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if done // CHUNK_BYTES % 10 == 0:
                    progress(f"{source.repository}: {done / 1e6:.0f} MB")
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise UserError(
            f"cannot download {url} ({error}): clone {source.repository} where there is a network, and give "
            "its folder with --from"
        ) from error
    return target
