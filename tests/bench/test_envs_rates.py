"""Rates of environments are measured through the pool."""

from __future__ import annotations

import sys

import pytest

from bench.envs import rates


def test_rates_and_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rates", "pendulum-swingup", "--envs", "2", "--workers", "0", "1", "--steps", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    rates.main()
    head, *rows = (line.split(",") for line in capsys.readouterr().out.splitlines())
    assert tuple(head) == rates.COLUMNS
    assert [row[:3] for row in rows] == [["pendulum-swingup", "2", "0"], ["pendulum-swingup", "2", "1"]]
    assert all(float(row[3]) > 0 for row in rows)
    assert rows[0][4] == ""
    assert 20 < int(rows[1][4]) < 2000
