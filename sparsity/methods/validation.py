"""One-line refusals of settings, shared by the methods.

Pydantic would need the same checks and a translation of its errors, and double the time that this package takes to load
behind torch.
"""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

OPTIMIZERS = ("sgd", "adamw")
"""What steps the parameters that are not on the sphere."""


def within(name: str, value: Any, good: bool, accepted: str) -> None:
    """Raises ValueError naming the setting, its value and what is accepted, unless `good`."""
    if not good:
        raise ValueError(f"{name} = {value!r} is not accepted: it takes {accepted}")


def numbers(settings: Any) -> None:
    """Raises ValueError unless every float field of a settings dataclass holds a number."""
    for field in fields(settings):
        if field.type == "float":
            value = getattr(settings, field.name)
            within(field.name, value, isinstance(value, Real) and not isinstance(value, bool), "a number")


def whole(name: str, value: Any) -> None:
    """Raises ValueError unless the value is 1, 2, ..."""
    within(name, value, isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1, "1, 2, ...")
