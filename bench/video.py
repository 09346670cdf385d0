"""Videos of episodes, as mp4 files that every browser plays."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from bench import atomic

VIDEO_FPS = 30
"""Of evaluation episodes, whatever their agent steps stand for."""


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    """Encode frames as H.264 (yuv420p). The file appears whole under its name, or not at all.

    Args:
        path: ends in `.mp4`; its folder exists.
        frames: (T, H, W, 3) RGB. Odd heights and widths are made even by repeating the last row or column, because
            yuv420p halves the colour planes.
        fps: frames per second.

    Raises:
        ValueError: frames of another shape or type, or none at all.
        OSError: ffmpeg failed (full disk, folder that cannot be written); its own words are in the message.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or frames.size == 0:
        raise ValueError(f"frames must be (T, H, W, 3) uint8 and not empty, got {frames.shape} {frames.dtype}")
    _, height, width, _ = frames.shape
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".mp4")
    os.close(handle)
    try:
        _encode(Path(aside), even, fps)
        os.chmod(aside, 0o666 & ~atomic.UMASK)
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def _encode(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    _, height, width, _ = frames.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    # The index goes to the front (faststart), so that a page can play the video before it has all of it.
    target = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *source, *target],
        input=np.ascontiguousarray(frames).reshape(-1).data,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        # The first line names the cause; those after it say what could not go on.
        raise OSError(f"ffmpeg could not write the video: {words[0] if words else f'exit code {done.returncode}'}")
