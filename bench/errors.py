"""The one error class that the command line prints as a single line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """What the user asked for cannot be done: the message says what is wrong, what is valid and how to mend it.

    The command line prints the message on one line and exits with code 2.
    """


def unknown(kind: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest valid names.

    Args:
        kind: what the name should be, as a person says it ("task", "agent", "hyperparameter of sac").
        name: what was given.
        valid: every name that would have been right.
    """
    names = sorted(valid)
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return UserError(f"unknown {kind} '{name}': did you mean {', '.join(near)}?")
    shown = ", ".join(names) if len(names) <= 30 else f"{', '.join(names[:10])} … ({len(names)} in all)"
    return UserError(f"unknown {kind} '{name}': valid are {shown}")
