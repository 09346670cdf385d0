"""Frames written as mp4 come back as the frames they were, up to compression."""

import imageio.v3 as iio
import numpy as np
import pytest

from bench.video import write_mp4


def moving_bar(length: int, height: int, width: int) -> np.ndarray:
    """A white bar that walks to the right on dark blue: any shift in time, space or colour shows."""
    frames = np.zeros((length, height, width, 3), np.uint8)
    frames[..., 2] = 96
    for t in range(length):
        frames[t, :, 4 * t : 4 * t + 12] = 255
    return frames


def test_reads_back_the_same_pictures(tmp_path):
    frames = moving_bar(8, 64, 64)
    write_mp4(tmp_path / "episode.mp4", frames, fps=15)
    back = iio.imread(tmp_path / "episode.mp4", plugin="FFMPEG")
    assert back.shape == frames.shape
    per_frame = np.abs(back.astype(float) - frames).mean(axis=(1, 2, 3))
    assert per_frame.max() < 6
    shifted = np.abs(back[1:].astype(float) - frames[:-1]).mean()
    assert shifted > 2 * per_frame.max()
    assert iio.immeta(tmp_path / "episode.mp4", plugin="FFMPEG")["fps"] == 15


def test_odd_sizes_gain_a_row_and_a_column(tmp_path):
    frames = moving_bar(3, 63, 65)
    write_mp4(tmp_path / "odd.mp4", frames, fps=10)
    back = iio.imread(tmp_path / "odd.mp4", plugin="FFMPEG")
    assert back.shape == (3, 64, 66, 3)
    assert np.abs(back[:, :63, :65].astype(float) - frames).mean() < 6


def test_a_failed_write_leaves_the_old_video_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "episode.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: "false")
    with pytest.raises(OSError, match="ffmpeg could not write"):
        write_mp4(path, moving_bar(2, 16, 16), fps=10)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_encoder_error_is_told_in_its_own_words(tmp_path):
    with pytest.raises(OSError, match="video rate"):
        write_mp4(tmp_path / "episode.mp4", moving_bar(2, 16, 16), fps=-1)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
    ],
)
def test_refuses_what_are_no_frames(tmp_path, frames):
    with pytest.raises(ValueError, match=r"\(T, H, W, 3\) uint8"):
        write_mp4(tmp_path / "episode.mp4", frames, fps=10)
