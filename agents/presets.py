"""Named sets of hyperparameters. Light: imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Hyperparameters under a name: `preset=NAME` sets them, over what an agent sets by the task and under what the
    user gives beside it. A hyperparameters model has its own as `presets: ClassVar[Mapping[str, Preset]]`; the first is
    its defaults.
    """

    about: str
    """Whose settings these are, in a line."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What is set; nothing where these are the defaults."""
