"""YAML mappings with the line of every key, so that an error can say where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


class BadFile(ValueError):
    """A file that cannot be used; the message is one line: file, line where known, what is wrong, what is accepted."""


class Lines:
    """Where the keys of a mapping stand: paths of keys such as ("parameters", "p") to line numbers from 1."""

    def __init__(self, path: Path, node: yaml.Node) -> None:
        self._path = path
        self._lines: dict[tuple[Any, ...], int] = {}
        self._walk(node, ())

    def _walk(self, node: yaml.Node, prefix: tuple[Any, ...]) -> None:
        self._lines.setdefault(prefix, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*prefix, key.value)
                if place in self._lines:
                    raise BadFile(f"{self._path}:{key.start_mark.line + 1}: {key.value!r} is given twice")
                self._lines[place] = key.start_mark.line + 1
                self._walk(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._walk(value, (*prefix, index))

    def error(self, place: tuple[Any, ...], message: str) -> BadFile:
        """The error to raise about the value at `place`, or about the nearest enclosing one that the file has."""
        while place not in self._lines:
            place = place[:-1]
        return BadFile(f"{self._path}:{self._lines[place]}: {' '.join(message.split())}")


def read_mapping(path: Path) -> tuple[dict[str, Any], Lines]:
    """A YAML file whose top level is a mapping with text as keys, loaded safely, and its lines.

    Raises:
        BadFile: if the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise BadFile(f"{path} cannot be read: {reason}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except RecursionError as error:
        raise BadFile(f"{path} is nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise BadFile(f"{path}{line}: not YAML: {' '.join((error.problem or str(error)).split())}") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise BadFile(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or node is None:
        raise BadFile(f"{path}:1: must be a mapping of keys to values, not {_kind(data)}")
    if wrong := [key for key in data if not isinstance(key, str)]:
        raise BadFile(f"{path}: the key {wrong[0]!r} is not text")
    return data, Lines(path, node)


def _kind(data: Any) -> str:
    return {type(None): "empty", list: "a list", str: "text"}.get(type(data), f"a {type(data).__name__}")
