"""Curves as people write them: read right, or named in the output of every command that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from analysis.cli import app
from analysis.sides import load_side

STEPS = (0, 100_000, 1_200_000)
ROWS = [(step, round(10.0 * seed + step / 1e5, 2), seed) for seed in (1, 2, 3) for step in STEPS]

AS_WRITTEN: dict[str, Callable[[list[tuple[int, float, int]]], bytes]] = {
    "plain": lambda rows: text(rows),
    "byte-order-mark": lambda rows: b"\xef\xbb\xbf" + text(rows),
    "utf-16": lambda rows: text(rows).decode().encode("utf-16"),
    "windows-lines": lambda rows: text(rows).replace(b"\n", b"\r\n"),
    "semicolons": lambda rows: text(rows).replace(b",", b";"),
    "decimal-commas": lambda rows: text(rows).replace(b",", b";").replace(b".", b","),
    "tabs": lambda rows: text(rows).replace(b",", b"\t"),
    "quoted": lambda rows: b"".join(b'"%s"\n' % line.replace(b",", b'","') for line in text(rows).splitlines()),
    "blanks": lambda rows: text(rows).replace(b",", b" , ") + b"\n \n",
    "capitals": lambda rows: text(rows).replace(b"step,reward,seed", b"Step,REWARD,Seed"),
    "other-columns": lambda rows: b"".join(b"%s,x\n" % line for line in text(rows).splitlines()),
    "thousands": lambda rows: text([(f'"{step:,}"', value, seed) for step, value, seed in rows]),
    "unsorted": lambda rows: text(sorted(rows, key=lambda row: (row[2], -row[0]))),
    "by-step": lambda rows: text(sorted(rows)),
    "seeds-as-words": lambda rows: text([(step, value, f"seed{seed}") for step, value, seed in rows]),
    "seeds-as-decimals": lambda rows: text([(step, value, f"{seed}.0") for step, value, seed in rows]),
    "exponents": lambda rows: text([(f"{step:.1e}", value, seed) for step, value, seed in rows]),
    "doubled-rows": lambda rows: text([row for row in rows for _ in range(2)]),
    "header-again": lambda rows: text(rows) + text(rows).splitlines(True)[0],
}


def text(rows: list) -> bytes:
    return "\n".join(["step,reward,seed", *(",".join(map(str, row)) for row in rows), ""]).encode()


def write(folder: Path, name: str, content: bytes) -> Path:
    (folder / "mine").mkdir(parents=True, exist_ok=True)
    (folder / "mine" / f"{name}.csv").write_bytes(content)
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("written", AS_WRITTEN)
def test_what_a_csv_reader_can_read_is_read(tmp_path: Path, written: str) -> None:
    plain = load_side(str(write(tmp_path / "plain", "walker-run", AS_WRITTEN["plain"](ROWS)))).evals
    other = load_side(str(write(tmp_path / "other", "walker-run", AS_WRITTEN[written](ROWS)))).evals
    columns = ["seed", "env_steps", "score"]
    assert other[columns].to_numpy().tolist() == plain[columns].to_numpy().tolist()
    assert len(plain) == len(ROWS)


BAD = {
    "binary": b"\x00\x01\xff" * 50,
    "no-rows": b"step,reward,seed\n",
    "empty": b"",
    "other-header": b"timestep,return\n1,2\n",
    "two-values": text([ROWS[0], (0, 99.0, 1), *ROWS[1:]]),
    "two-runs": text([*ROWS, *((step, value + 1, 1) for step, value, seed in ROWS if seed == 1)]),
    "negative-step": text([(-5, 1.0, 1), *ROWS]),
    "two-decimal-marks": b"step;reward;seed\n0;1.5;1\n100000;2,5;1\n",
    "words": text([(0, "high", 1)]),
    "beyond": text([(0, 3000.0, 1)]),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_read_is_refused_by_name_by_every_command(tmp_path: Path, bad: str) -> None:
    good = write(tmp_path / "good", "walker-run", text(ROWS))
    write(good, "walker-walk", text(ROWS))
    lost = write(tmp_path / "lost", "walker-run", text(ROWS))
    write(lost, "walker-walk", BAD[bad])
    for command in (
        ("compare", lost, good),
        ("compare", good, lost),
        ("regress", lost, good),
        ("regress", good, lost),
    ):
        options = ("-o", tmp_path / "out") if command[0] == "compare" else ()
        refused = call(*command, *options)
        assert type(refused.exception).__name__ == "UserError", refused.output
        assert "walker-walk.csv: " in str(refused.exception)
        assert "--allow-missing" in str(refused.exception)
        assert not (tmp_path / "out").exists()
    allowed = call("compare", lost, good, "-o", tmp_path / "out", "--allow-missing")
    assert "walker-walk.csv" in allowed.output
    assert "walker-walk.csv" in (tmp_path / "out" / "compare.md").read_text().replace("\\", "")
    counts = json.loads((tmp_path / "out" / "compare.json").read_text())["problem_counts"]
    assert counts["not read"] >= 1
    answer = call("regress", lost, good, "--allow-missing")
    assert "not read: " in answer.output
    imported = call("published", "import", "--from", lost, "-o", tmp_path / "curves")
    assert "not read: " in imported.output
    checked = call("published", "check", tmp_path / "curves")
    assert "not read: " in checked.output
    assert "full and regular" not in checked.output
    assert "not read: " in call("report", tmp_path / "curves", "-o", tmp_path / "r.html", "--reps", "100").output


def test_rows_left_out_are_named_and_counted(tmp_path: Path) -> None:
    rows = [*ROWS, (200_000, "nan", 1), (300_000, "-", 2)]
    mine = write(tmp_path / "a", "walker-run", text(rows))
    theirs = write(tmp_path / "b", "walker-run", text(ROWS))
    found = call("compare", mine, theirs, "-o", tmp_path / "out")
    assert found.exit_code == 0, found.output
    assert "left out: mine · walker-run · seed 1: not a number: 1 of 4 rows" in found.output
    assert "left out: " in (tmp_path / "out" / "compare.md").read_text()
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["problem_counts"]["left out"] == 2
    assert "assumed: " in found.output
    assert "`step` counts env steps" in found.output
