"""Trackers get every number, a resumed run stays one curve, and a broken tracker never stops training."""

import json
import logging
import subprocess
import sys
import textwrap

import pytest

from bench import sinks
from bench.errors import UserError
from bench.sinks import GuardedSink, TensorBoardSink, TrackedRun, make_sinks


def curve(folder, name):
    """(env steps, value) of one scalar, as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 4)) for event in events.Scalars(name)]


def fleet(tmp_path, count=2, resumed_at=0):
    runs = [
        TrackedRun(f"sac/walker-walk/seed{k}-abc", tmp_path / f"seed{k}", {"seed": k}, "sac/walker-walk")
        for k in range(count)
    ]
    for run in runs:
        run.folder.mkdir(exist_ok=True)
    return [TrackedRun(run.run_id, run.folder, run.config, run.group, resumed_at) for run in runs]


def test_tensorboard_keeps_each_run_apart(tmp_path):
    runs = fleet(tmp_path)
    (sink,) = make_sinks(["tensorboard", "tensorboard"], runs, project="p")
    for env_steps in (500, 1000):
        for index in range(2):
            sink.log(index, env_steps, {"return": env_steps + index, "eval/return": 2.5})
    sink.close()
    assert curve(tmp_path / "seed0" / "tensorboard", "return") == [(500, 500.0), (1000, 1000.0)]
    assert curve(tmp_path / "seed1" / "tensorboard", "return") == [(500, 501.0), (1000, 1001.0)]
    assert curve(tmp_path / "seed1" / "tensorboard", "eval/return") == [(500, 2.5), (1000, 2.5)]


def test_tensorboard_shows_a_resumed_run_as_one_curve(tmp_path):
    first = TensorBoardSink([tmp_path])
    for env_steps in (500, 1000, 1500):  # the checkpoint was at 1000; the row at 1500 is trained again
        first.log(0, env_steps, {"return": 1.0})
    first.close()
    second = TensorBoardSink([tmp_path], [1000])
    for env_steps in (1500, 2000):
        second.log(0, env_steps, {"return": 2.0})
    second.close()
    assert curve(tmp_path, "return") == [(500, 1.0), (1000, 1.0), (1500, 2.0), (2000, 2.0)]


WANDB_SESSION = """
import sys
from pathlib import Path
from bench.sinks import TrackedRun, make_sinks

folder, attempt = Path(sys.argv[1]), int(sys.argv[2])
runs = [TrackedRun(f"sac/walker-walk/seed{k}-abc", folder / f"seed{k}", {"lr": 0.5}, "group") for k in (0, 1)]
for run in runs:
    run.folder.mkdir(exist_ok=True)
(sink,) = make_sinks(["wandb"], runs, project="suite")
for env_steps in (500, 1000):
    for index in (0, 1):
        sink.log(index, 1000 * attempt + env_steps, {"return": env_steps + index})
sink.close()
"""

WANDB_READ = """
import json, struct, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record

# A .wandb file: 7 bytes of header, then LevelDB's log format (checksum, length, type, data) in blocks of 32 KiB.
data, at, whole, found = Path(sys.argv[1]).read_bytes(), 7, b"", {"rows": []}
while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    _, length, kind = struct.unpack_from("<IHB", data, at)
    whole += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind not in (1, 4):  # neither whole nor the last part
        continue
    record, whole = Record.FromString(whole), b""
    if record.HasField("run") and record.run.run_id:
        found |= {"id": record.run.run_id, "group": record.run.run_group, "project": record.run.project}
    if record.HasField("history"):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        found["rows"].append([record.history.step.num, items["return"]])
print(json.dumps(found))
"""


def python(code, *arguments, folder):
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "WANDB_MODE": "offline",
        "PYTHONPATH": ":".join(path for path in [".", *sys.path] if path),
    }
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.whole
def test_wandb_offline_runs_have_fixed_ids(tmp_path):
    """Two attempts of a fleet of two, without a network: the same ids both times, each with its own rows."""
    logs = [python(WANDB_SESSION, tmp_path, attempt, folder=tmp_path) for attempt in (0, 1)]
    assert all("failed" not in log.stderr for log in logs)
    for index in (0, 1):
        files = sorted((tmp_path / f"seed{index}" / "wandb").glob("offline-run-*/*.wandb"))
        assert len(files) == 2
        attempts = [json.loads(python(WANDB_READ, file, folder=tmp_path).stdout) for file in files]
        assert {attempt["id"] for attempt in attempts} == {f"sac-walker-walk-seed{index}-abc"}
        assert {attempt["project"] for attempt in attempts} == {"suite"}
        assert {attempt["group"] for attempt in attempts} == {"group"}
        rows = sorted(row for attempt in attempts for row in attempt["rows"])
        assert rows == [[500, 500 + index], [1000, 1000 + index], [1500, 500 + index], [2000, 1000 + index]]


class Broken:
    def __init__(self):
        self.calls = 0

    def log(self, run_index, env_steps, values):
        self.calls += 1
        raise ConnectionError("the tracker's server is gone")

    def close(self):
        raise ConnectionError("still gone")


def test_a_broken_tracker_warns_once_and_goes_on(caplog):
    broken = Broken()
    sink = GuardedSink("wandb", lambda: broken)
    with caplog.at_level(logging.WARNING):
        for env_steps in range(5):
            sink.log(0, env_steps, {"return": 1.0})
        sink.close()
    assert broken.calls == 5
    (record,) = caplog.records
    assert "wandb" in record.getMessage()
    assert "the tracker's server is gone" in record.getMessage()


def test_a_tracker_that_cannot_open_is_left_out(caplog, tmp_path):
    runs = fleet(tmp_path, count=1)
    (runs[0].folder / "tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        (sink,) = make_sinks(["tensorboard"], runs, project="p")
        sink.log(0, 500, {"return": 1.0})
        sink.close()
    assert len(caplog.records) == 1


def test_stopping_a_run_is_not_swallowed():
    class Stopped:
        def log(self, run_index, env_steps, values):
            raise KeyboardInterrupt

        def close(self):
            pass

    with pytest.raises(KeyboardInterrupt):
        GuardedSink("wandb", Stopped).log(0, 1, {})


def test_an_unknown_tracker_names_the_valid_ones():
    with pytest.raises(UserError, match=r"unknown tracker 'tensorbord': did you mean tensorboard"):
        make_sinks(["tensorbord"], [], project="p")
    with pytest.raises(UserError, match="valid are tensorboard, wandb"):
        make_sinks(["mlflow"], [], project="p")


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'tdmpc2-bench\[wandb\]'") as caught:
        make_sinks(["wandb"], [], project="p")
    assert "wandb" in str(caught.value.__cause__)


def test_a_folder_called_wandb_is_not_the_package(monkeypatch, tmp_path):
    """W&B leaves a folder `wandb` in the working directory, which Python imports where the package is missing."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UserError, match="is not installed"):
        make_sinks(["wandb"], [], project="p")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_trackers_load_only_when_asked_for():
    code = f"import sys; import {sinks.__name__}; assert not {{'torch', 'wandb', 'tensorboard'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
