"""Check the settings of methods. Each error message is one line.

This module does not use pydantic. With pydantic, the same checks would have to be written, and its error messages would
have to be rewritten. The import of pydantic would also double the import time of this package, torch not counted.
"""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

OPTIMIZERS = ("sgd", "adamw")
"""The optimizers for parameters that are not on the sphere."""


def within(name: str, value: Any, good: bool, accepted: str) -> None:
    """Raise ValueError if `good` is false. The message contains the setting's name, its value and the text
    `accepted`, which describes the accepted values."""
    if not good:
        raise ValueError(f"{name} = {value!r} is not accepted: it takes {accepted}")


def numbers(settings: Any) -> None:
    """Raise ValueError if a field of type float in a settings dataclass does not hold a number."""
    for field in fields(settings):
        if field.type == "float":
            value = getattr(settings, field.name)
            within(field.name, value, isinstance(value, Real) and not isinstance(value, bool), "a number")


def whole(name: str, value: Any) -> None:
    """Raise ValueError if the value of a setting is not 1, 2, ..."""
    within(name, value, isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1, "1, 2, ...")
