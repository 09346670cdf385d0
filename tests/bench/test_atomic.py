from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITE = """
import sys
from pathlib import Path
import numpy as np
from bench import atomic, video
from sweeps import snapshot
folder = Path(sys.argv[1])
atomic.write_text(folder / "file", "x")
video.write_mp4(folder / "video", np.zeros((2, 16, 16, 3), np.uint8), fps=15)
snapshot.take(folder / "launch").rename(folder / "code")
"""


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o002, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    """A group that shares a results folder sets its umask for that."""
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], umask=umask, check=True, cwd=Path(__file__).parents[2])
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"file": file, "video": file, "code": folder, "launch": folder}
    assert (tmp_path / "code" / "bench" / "atomic.py").stat().st_mode & 0o777 == file
