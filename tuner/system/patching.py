"""Change attributes of other libraries, or environment variables, until the end of a `with` block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a module or a class. Restore the old value at the end of the `with` block.

    Args:
        owner: the module or the class.
        name: the name of the attribute, which must exist.
        value: the value within the `with` block.
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def variables(new: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables. Restore the old values at the end of the `with` block.

    Args:
        new: a dict from the names of variables to their new values.
    """
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
