"""Which ManiSkill is installed: version 2, which the paper used, or 3 instead. They cannot share an environment.

Light on purpose: finds packages and imports none.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.util import find_spec


@cache
def is_maniskill3() -> bool:
    """Whether ManiSkill3 is installed and ManiSkill2 is not: with both, ManiSkill2 is used."""
    return find_spec("mani_skill2") is None and find_spec("mani_skill") is not None


def maniskill3_version() -> str:
    """The `domain_version` of tasks on the ManiSkill3 that is installed."""
    return f"mani_skill-{_version('mani_skill')}+sapien-{_version('sapien')} (dense reward)"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
