"""Parses those options that say what a study searches: --target, --front, --max-bytes and --max-latency."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

TARGET = "a target is a sparsity in [0, 1), e.g. 0.9, or several with commas: 0.8,0.9,0.95"
FRONT = "a front goes from a sparsity to a higher one, both in [0, 1), e.g. 0.5:0.99"
BYTES = "a size is a number of bytes, e.g. 10000, 10kB or 10KiB"
_BYTES = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMG", 1)
    for kind, base in (("B", 1000), ("IB", 1024))
}
_MOST_BYTES = 10**15
LATENCY = "a latency is a time with its unit, e.g. 2ms, 500us or 0.1s"
_MILLISECONDS = {"us": Decimal("0.001"), "ms": Decimal(1), "s": Decimal(1000)}
_LATENCIES = (0.001, 3_600_000.0)  # the shortest and the longest, in milliseconds
_MOST = 20  # the largest number of targets, because each target has its own files


def split(value: Any) -> Any:
    """Split a text at its commas, and return the parts as a list. Return a value that is not a text unchanged."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def parse_target(value: Any) -> Any:
    """Return a sparsity as a float, or several sparsities as a tuple in ascending order. All lie in [0, 1).

    Args:
        value: a number, a list of numbers, or a text such as "0.9" or "0.8,0.9". For None, the result is None.

    Raises:
        ValueError: if the value is wrong. The message names the accepted values.
    """
    values = split(value)
    if value is None:
        return None
    if not isinstance(values, list | tuple):
        return _sparsity(values, TARGET)
    targets = sorted(_sparsity(one, TARGET) for one in values)
    if not 1 <= len(targets) <= _MOST:
        raise ValueError(f"give from 1 to {_MOST} targets")
    if len(set(targets)) < len(targets):
        raise ValueError("a target is given twice")
    return targets[0] if len(targets) == 1 else tuple(targets)


def parse_front(value: Any) -> Any:
    """Return the two ends of the range of sparsities of --front, the lower end first. Both lie in [0, 1).

    Args:
        value: a text such as "0.5:0.99", or a pair of numbers. For None, the result is None.

    Raises:
        ValueError: if the value is wrong. The message names the accepted values.
    """
    if value is None:
        return None
    ends = value.split(":") if isinstance(value, str) else value
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise ValueError(FRONT)
    low, high = (_sparsity(end, FRONT) for end in ends)
    if not low < high:
        raise ValueError(FRONT)
    return low, high


def parse_bytes(value: Any) -> Any:
    """Return a number of bytes, rounded down.

    Args:
        value: a number, or a text such as "10000", "10kB" or "10KiB". For None, the result is None.

    Raises:
        ValueError: if the value is wrong. The message names the accepted values.
    """
    if value is None:
        return None
    number, unit = value, "B"
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", value.strip())
        number, unit = match.groups() if match else ("", "")
    try:
        count = int(Decimal(str(number)) * _BYTES[unit.upper()])
    except (KeyError, ArithmeticError, ValueError):
        raise ValueError(BYTES) from None
    if not 1 <= count <= _MOST_BYTES:
        raise ValueError(BYTES)
    return count


def parse_latency(value: Any) -> Any:
    """Return a time in milliseconds.

    Args:
        value: a text such as "2ms", "500us" or "0.1s". For None, the result is None.

    Raises:
        ValueError: if the value is wrong. The message names the accepted values.
    """
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(us|ms|s)", value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(LATENCY)
    number, unit = match.groups()
    milliseconds = float(Decimal(number) * _MILLISECONDS[unit])
    if not _LATENCIES[0] <= milliseconds <= _LATENCIES[1]:
        raise ValueError("give a latency from 1us to 3600s")
    return milliseconds


def _sparsity(value: Any, accepted: str) -> float:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError(accepted) from None
        if 0 <= number < 1:
            return number + 0.0  # turns -0.0 into 0.0
    raise ValueError(accepted)


def _latency_text(milliseconds: float | None) -> str | None:
    return None if milliseconds is None else f"{milliseconds!r}ms"


def _front_text(ends: tuple[float, float] | None) -> str | None:
    return None if ends is None else f"{ends[0]!r}:{ends[1]!r}"


Target = Annotated[float | tuple[float, ...] | None, BeforeValidator(parse_target)]
Bytes = Annotated[int | None, BeforeValidator(parse_bytes)]
Latency = Annotated[float | None, BeforeValidator(parse_latency), PlainSerializer(_latency_text)]
Front = Annotated[tuple[float, float] | None, BeforeValidator(parse_front), PlainSerializer(_front_text)]
