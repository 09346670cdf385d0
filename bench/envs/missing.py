"""What to say when a domain's package cannot be imported: the package, the cause, and the command that mends it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from bench.errors import UserError
from bench.installed import is_maniskill3

SIMULATORS: Mapping[str, str] = MappingProxyType(
    {"dmcontrol": "dm_control", "metaworld": "metaworld", "maniskill": "mani_skill2", "myosuite": "myosuite"}
)
"""The package that a domain needs, as its import is called."""

SYSTEM_LIBRARIES: Mapping[str, str] = MappingProxyType(
    {
        "libvulkan.so": "libvulkan1",
        "libGL.so": "libgl1",
        "libEGL.so": "libegl1",
        "libOSMesa.so": "libosmesa6",
        "libgthread-2.0": "libglib2.0-0",
        "libglib-2.0": "libglib2.0-0",
    }
)
"""Shared library in an error message -> Debian package."""

MANISKILL_ASSETS: Mapping[str, str] = MappingProxyType(
    {"PickSingleYCB-v0": "ycb", "TurnFaucet-v0": "partnet_mobility_faucet"}
)
"""What ManiSkill2's downloader calls the models that an environment needs; the other environments need none."""


def import_failure(task: str, domain: str, cause: ImportError) -> UserError:
    """The one line for a task whose simulator cannot be imported; raise it from `cause`."""
    simulator = SIMULATORS[domain]
    for library, package in SYSTEM_LIBRARIES.items():
        if library in str(cause):
            mend = f"install the system's library with 'apt-get install {package}' (as root; Debian, Ubuntu)"
            break
    else:
        if domain == "maniskill" and is_maniskill3():
            simulator = "mani_skill"
        mend = (
            "install the pinned set with 'pip install --no-deps -r requirements.lock', or this domain alone with "
            f"'pip install \"tdmpc2-bench[{domain}]\"'"
        )
    return UserError(f"{task} needs {simulator}, whose import failed ({cause}): {mend}")
