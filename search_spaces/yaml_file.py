"""Read a YAML file together with the line number of every key. Error messages name the line."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import yaml

# Limits far above any real file. Without them, a short file with anchors could stand for billions of values.
_BYTES, _VALUES, _DEPTH, _SCALAR = 100_000, 10_000, 50, 3_000


class BadFile(ValueError):
    """Report a mistake in a file. The message is one line. It contains the file, the line number if it is known, the
    mistake, and often the accepted values."""


class Lines:
    """Holds the line numbers, from 1, of all keys in a YAML file. A key is given as its path through the nested
    mappings, for example ("parameters", "p")."""

    def __init__(self, path: Path, node: yaml.Node) -> None:
        self._path = path
        self._lines: dict[tuple[Any, ...], int] = {}
        self._values = 0
        self._walk(node, ())

    def _walk(self, node: yaml.Node, prefix: tuple[Any, ...]) -> None:
        self._lines.setdefault(prefix, node.start_mark.line + 1)
        self._values += 1
        if len(prefix) > _DEPTH:
            raise self._at(node, "nested too deeply")
        if self._values > _VALUES:
            raise self._at(node, f"more than {_VALUES} values after its anchors are expanded")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise self._at(key, "a key must be text")
                place = (*prefix, key.value)
                if place in self._lines:
                    raise self._at(key, f"{shown(key.value)} is given twice")
                self._lines[place] = key.start_mark.line + 1
                self._walk(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._walk(value, (*prefix, index))
        elif len(node.value) > _SCALAR:
            raise self._at(node, f"a value of more than {_SCALAR} characters")

    def _at(self, node: yaml.Node, message: str) -> BadFile:
        return BadFile(f"{self._path}:{node.start_mark.line + 1}: {message}")

    def error(self, place: tuple[Any, ...], message: str) -> BadFile:
        """Return an error about the value at the path `place`. If the file does not contain this path, the error names
        the line of the innermost key that encloses it."""
        while place not in self._lines:
            place = place[:-1]
        return BadFile(f"{self._path}:{self._lines[place]}: {' '.join(message.split())}")


def read_mapping(path: Path) -> tuple[dict[str, Any], Lines]:
    """Load a YAML file safely. Return its content, a mapping with text keys, and the line numbers of all keys.

    Raises:
        BadFile: if the file cannot be read, is not YAML, is not a mapping with text keys, or exceeds one of the limits
            at the top of this module.
    """
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        # `Lines` is made first: it checks the limits before `safe_load` can fill the memory.
        lines = None if node is None else Lines(path, node)
        data = yaml.safe_load(text)
    except BadFile:
        raise
    except RecursionError as error:
        raise BadFile(f"{path} is nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise BadFile(f"{path}{line}: not YAML: {' '.join((error.problem or str(error)).split())}") from error
    except Exception as error:  # the loader's conversions raise errors of many types
        raise BadFile(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or lines is None:
        raise BadFile(f"{path}:1: the file must be a mapping of keys to values, not {_kind(data)}")
    if wrong := [key for key in data if not isinstance(key, str)]:
        raise BadFile(f"{path}: the key {shown(wrong[0])} is not text")
    return data, lines


def shown(value: Any) -> str:
    """Return the value as text for an error message: in one line, and shortened if it is long."""
    return reprlib.repr(value)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_BYTES + 1)
        text = raw.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise BadFile(f"{path} cannot be read: {reason}") from error
    if len(raw) > _BYTES:
        raise BadFile(f"{path} has more than {_BYTES} bytes")
    return text


def _kind(data: Any) -> str:
    return {type(None): "an empty file", list: "a list", str: "text"}.get(type(data), f"a {type(data).__name__}")
