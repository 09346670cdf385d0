"""A YAML file with the line of every key, so that each mistake can be named with its place."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.errors import UserError

KeyPath = tuple[str | int, ...]
"""Where a value sits: `("agents", 0, "variant")`."""


def dotted(path: KeyPath) -> str:
    """A path as a person writes it: `agents[0].variant`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `3e-4` as a number, as YAML 1.2 does (PyYAML takes it for a string)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Document:
    """What a YAML file holds, and where."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int]
    """Line of each key or list item, from 1."""

    def error(self, path: KeyPath, message: object) -> UserError:
        """A mistake at a key: file, line (of the nearest enclosing key that the file has), key, message."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = f":{self.lines[known]}" if known in self.lines else ""
        key = f"{dotted(path)}: " if path else ""
        return UserError(f"{self.path}{line}: {key}{message}")


def load(
    path: Path, kind: str = "sweep file", example: str = "sweeps/quickstart.yaml", keys: str = "name, agents, tasks"
) -> Document:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file.
        kind, example, keys: what it should be, for the messages.

    Raises:
        UserError: no such file, not YAML, a key given twice, or no mapping; one line with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}; give a {kind}, for example {example}") from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        _walk(path, node, (), lines, [])
        data = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a {kind}: the top level must be a mapping with the keys {keys}")
    return Document(path, data, lines)


def _walk(file: Path, node: yaml.Node | None, path: KeyPath, lines: dict[KeyPath, int], above: list[yaml.Node]) -> None:
    """Note the line of every key below a node; refuse keys that are given twice."""
    if node is None or any(node is other for other in above):
        return
    above = [*above, node]
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _walk(file, item, (*path, index), lines, above)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in seen:
                where = dotted((*path, name))
                raise UserError(
                    f"{file}:{line}: {where}: the key is given twice (first on line {seen[name]}): keep one"
                )
            seen[name] = line
            lines[(*path, name)] = line
            _walk(file, value, (*path, name), lines, above)


def parse_value(text: str) -> Any:
    """A value given on the command line, read as YAML: `5`, `3e-4`, `[1, 2]`, `true`.

    Raises:
        UserError: not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"'{text}' is not a YAML value: quote it, or give a number, a name or [a, list]") from error
