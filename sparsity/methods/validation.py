"""Check settings. Each error is one line. All methods use these functions.

pydantic would need the same checks and a translation of its errors. It would also double the time that this package
takes to load after torch.
"""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

OPTIMIZERS = ("sgd", "adamw")
"""The optimizers for parameters that are not on the sphere."""


def within(name: str, value: Any, good: bool, accepted: str) -> None:
    """Raise ValueError unless `good`. The message names the setting, its value and the accepted values."""
    if not good:
        raise ValueError(f"{name} = {value!r} is not accepted: it takes {accepted}")


def numbers(settings: Any) -> None:
    """Raise ValueError unless every float field of a settings dataclass holds a number."""
    for field in fields(settings):
        if field.type == "float":
            value = getattr(settings, field.name)
            within(field.name, value, isinstance(value, Real) and not isinstance(value, bool), "a number")


def whole(name: str, value: Any) -> None:
    """Raise ValueError unless the value is 1, 2, ..."""
    within(name, value, isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1, "1, 2, ...")
