"""Hyperparameters from the command line, as `key=value`."""

from __future__ import annotations

from typing import Any

from bench.errors import UserError


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["horizon=5"]` as `{"horizon": 5}`; values are read as YAML.

    Raises:
        UserError: a pair without `=`, or a value that is no YAML.
    """
    if not pairs:
        return {}
    import yaml  # a machine that only measures speed may lack it

    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"'{pair}' is no override: write key=value, for example horizon=5")
        try:
            overrides[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"override '{pair}': the value is no YAML") from error
    return overrides
