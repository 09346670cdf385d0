from __future__ import annotations

import pytest

from bench.errors import UserError
from sweeps.local import visible_gpus
from sweeps.spec import Resources


@pytest.mark.parametrize(
    ("inherited", "gpus", "expected"),
    [
        (None, None, [None, None]),
        ("", None, ["", ""]),
        ("4,5", None, ["4,5", "4,5"]),
        (None, (0, 1), ["0", "1"]),
        ("4,5", (0, 1), ["4", "5"]),
        ("GPU-a,GPU-b", (1,), ["GPU-b", "GPU-b"]),
    ],
)
def test_slots_see_what_this_process_may_use(
    inherited: str | None, gpus: tuple[int, ...] | None, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if inherited is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    assert visible_gpus(Resources(gpus=gpus), 2) == expected


def test_an_empty_list_of_devices_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"resources.gpus is \[0\], but CUDA_VISIBLE_DEVICES shows no GPU"):
        visible_gpus(Resources(gpus=(0,)), 1)
