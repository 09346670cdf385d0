"""The episodes on disk: what a crash, a full disk or a lost file does to them."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.errors import UserError
from bench.replay_log import ReplayLog
from bench.replay_segment import Episode

LENGTHS = [3, 1, 4, 2, 5]


def episode(number, transitions, obs_shape=(2,), dtype=np.float32):
    rng = np.random.default_rng(number)
    return Episode(
        env=number % 2,
        obs=(100 * rng.random((transitions + 1, *obs_shape))).astype(dtype),
        action=rng.random((transitions, 3), dtype=np.float32),
        reward=rng.random(transitions, dtype=np.float32),
        terminated=np.eye(transitions, dtype=np.float32)[-1],
    )


EPISODES = [episode(i, length) for i, length in enumerate(LENGTHS)]


def assert_same(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.env == other.env
        for name in ("obs", "action", "reward", "terminated"):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert np.array_equal(getattr(one, name), getattr(other, name))


def filled(folder: Path, segment_bytes=10**6) -> ReplayLog:
    log = ReplayLog(folder, segment_bytes)
    for one in EPISODES:
        log.append([one])
    return log


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("segment_bytes", [1, 250, 10**6])
@pytest.mark.parametrize("together", [False, True])
def test_what_was_appended_is_read(tmp_path, segment_bytes, together):
    log = ReplayLog(tmp_path / "replay", segment_bytes)
    for batch in [EPISODES] if together else [[one] for one in EPISODES]:
        log.append(batch)
    for opened in (log, ReplayLog(tmp_path / "replay", segment_bytes)):
        assert opened.position() == 5
        assert_same(opened.read(5, 1000), EPISODES)
        assert_same(opened.read(3, 1000), EPISODES[:3])
        assert_same(opened.read(5, 7), EPISODES[3:])  # 2 + 5 transitions
        assert_same(opened.read(5, 8), EPISODES[3:])
        assert_same(opened.read(5, 11), EPISODES[2:])
    assert len(files(tmp_path / "replay")) == {1: 5, 250: 2, 10**6: 1}[segment_bytes]


def test_images(tmp_path):
    images = [episode(i, 2, (3, 5, 5), np.uint8) for i in range(3)]
    ReplayLog(tmp_path).append(images)
    assert_same(ReplayLog(tmp_path).read(3, 100), images)
    with pytest.raises(ValueError, match="float32 or uint8"):
        ReplayLog(tmp_path).append([episode(0, 2, (2,), np.float64)])


def test_a_tail_torn_at_any_byte_costs_the_last_episode_and_nothing_else(tmp_path):
    log = filled(tmp_path)
    path = files(tmp_path)[0]
    whole = path.read_bytes()
    ends = [record.start for record in log._segments[0].records[1:]] + [len(whole)]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends)
        torn = ReplayLog(tmp_path)
        assert torn.position() == kept
        assert path.stat().st_size == size  # opening changes nothing
        if size % 7 == 0 or size in ends:
            assert_same(torn.read(kept, 1000), EPISODES[:kept])
            torn.append(EPISODES[kept:])
            assert path.read_bytes() == whole


def test_a_last_episode_whose_bytes_never_arrived_is_left_out(tmp_path):
    filled(tmp_path)
    path = files(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(8))
    log = ReplayLog(tmp_path)
    assert log.position() == 4
    log.append(EPISODES[4:])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("segment_bytes", [1, 250, 10**6])
def test_truncate_forgets_what_came_after(tmp_path, segment_bytes):
    for position in range(6):
        folder = tmp_path / str(position)
        log = filled(folder, segment_bytes)
        log.truncate(position)
        assert_same(log.read(position, 1000), EPISODES[:position])
        log.append([EPISODES[0]])
        assert_same(ReplayLog(folder, segment_bytes).read(position + 1, 1000), [*EPISODES[:position], EPISODES[0]])
    with pytest.raises(UserError, match="holds 1 whole episodes and the checkpoint needs 2"):
        ReplayLog(tmp_path / "0", segment_bytes).truncate(2)


def test_discard_keeps_what_a_refill_needs(tmp_path):
    log = filled(tmp_path, segment_bytes=1)
    log.discard_before(position=4, keep_transitions=6)  # 2 + 4
    assert [int(path.stem) for path in files(tmp_path)] == [2, 3, 4]
    for opened in (log, ReplayLog(tmp_path)):
        assert_same(opened.read(4, 6), EPISODES[2:4])
        assert_same(opened.read(5, 6), EPISODES[4:])
        with pytest.raises(UserError, match=r"the segment before 000000000002\.episodes is missing"):
            opened.read(4, 7)
    log.discard_before(position=5, keep_transitions=1000)
    assert len(files(tmp_path)) == 3


def test_a_missing_segment_is_named(tmp_path):
    filled(tmp_path / "replay", segment_bytes=1)
    for name, message in {
        "000000000002.episodes": "000000000002.episodes is missing: restore it, or remove",
        "000000000004.episodes": "holds 4 whole episodes and the checkpoint needs 5",
        "000000000000.episodes": "is missing",
    }.items():
        path = tmp_path / "replay" / name
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError, match=message):
            ReplayLog(tmp_path / "replay").read(5, 1000)
        path.write_bytes(content)
    log = ReplayLog(tmp_path / "replay")
    episodes = log.read(5, 1000)
    (tmp_path / "replay" / "000000000003.episodes").unlink()
    with pytest.raises(UserError, match=r"000000000003\.episodes is missing"):
        list(episodes)


def test_a_flipped_byte_is_refused_and_named(tmp_path):
    filled(tmp_path / "replay", segment_bytes=250)
    path = files(tmp_path / "replay")[0]
    whole = bytearray(path.read_bytes())
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"000000000000.episodes|000000000001.episodes is missing"):
            list(ReplayLog(tmp_path / "replay").read(5, 1000))


def test_a_foreign_file_is_named(tmp_path):
    (tmp_path / "notes.episodes").write_text("hello\n")
    with pytest.raises(UserError, match=r"notes\.episodes is no replay segment"):
        ReplayLog(tmp_path)


class FullDisk(io.FileIO):
    """A file on a disk that takes `room` more bytes."""

    room = 0

    def write(self, data):
        if FullDisk.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = super().write(data[: FullDisk.room])
        FullDisk.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 30, 60, 100])
@pytest.mark.parametrize("before", [0, 2])
def test_a_full_disk_leaves_whole_episodes(tmp_path, monkeypatch, room, before):
    log = ReplayLog(tmp_path)
    log.append(EPISODES[:before])
    on_disk = files(tmp_path)[0].read_bytes() if before else b""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode="r", buffering=-1: FullDisk(path, mode.replace("b", "")))
        patch.setattr(FullDisk, "room", room)
        with pytest.raises(UserError, match=r"No space left on device; make room .*the \d episodes before are safe"):
            log.append(EPISODES[before:])
    assert files(tmp_path)[0].read_bytes() == on_disk
    for opened in (log, ReplayLog(tmp_path)):
        assert opened.position() == before
        assert_same(opened.read(before, 1000), EPISODES[:before])
    log.append(EPISODES[before:])
    assert_same(ReplayLog(tmp_path).read(5, 1000), EPISODES)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot append to"):
        ReplayLog(tmp_path / "file" / "replay").append(EPISODES)


def test_reading_loads_no_torch():
    code = "import sys, bench.replay_log; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
