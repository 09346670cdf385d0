from __future__ import annotations

from pathlib import Path

import pytest

from sweeps import selectors, text


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("tdmpc2[big]", True),
        ("tdmpc2[big]/*", True),
        ("tdmpc2[big]/cup-catch/seed1", True),
        ("tdmpc2[b*]/cup-*", True),
        ("*[big]*", True),
        ("tdmpc2[small]/*", False),
        ("tdmpc2", False),
        ("seed[12]", True),  # a glob's own brackets
        ("seed[34]", False),
    ],
)
def test_variants_are_named_as_they_are_shown(pattern: str, meant: bool) -> None:
    assert selectors.matches("tdmpc2[big]/cup-catch/seed1-0123456789", [pattern]) is meant


def test_a_command_about_a_sweep_is_ready_for_a_shell() -> None:
    assert text.command("status", "s.yaml", Path("results")) == "bench sweep status s.yaml"
    assert text.command("retry", "my s.yaml", Path("/data/a b"), ["seeds=[1, 2]"]) == (
        "bench sweep retry 'my s.yaml' --results '/data/a b' '--set=seeds=[1, 2]'"
    )
