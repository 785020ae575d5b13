"""How many generated cases a property is tried with."""

from __future__ import annotations

from hypothesis import settings

USUAL = 50
"""Cases of a property that does not say how many; `make long` tries ten times as many of each."""

settings.register_profile("usual", deadline=None, max_examples=USUAL)  # the machine may be busy with something else
settings.register_profile("long", deadline=None, max_examples=10 * USUAL)


def examples(count: int) -> settings:
    """Return the settings of a property that is tried with so many cases, and in `make long` with ten times as many."""
    return settings(max_examples=count * settings.default.max_examples // USUAL)


def is_long() -> bool:
    """Return whether this is a run of `make long`."""
    return settings.default.max_examples > USUAL
