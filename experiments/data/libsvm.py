"""Read the LIBSVM text format. Each line is one example, "label index:value index:value ...". A line does not contain
features with the value zero."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_LABEL = re.compile(r"[+-]?[0-9]{1,18}")
_ENTRY = re.compile(r"([0-9]{1,18}):([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_LARGEST = torch.finfo(torch.float32).max


def parse_libsvm(text: str, features: int) -> tuple[Tensor, Tensor]:
    """Parse the text of a LIBSVM file. Return inputs (n, features) in float32 and labels (n,) in int64.

    Labels must be whole numbers. The indices in a line start at 1 and must ascend. Empty lines are skipped.

    Args:
        text: the text of the file.
        features: the number of features, the largest possible index.

    Raises:
        ValueError: if a line has another form. The message names the line.
    """
    labels: list[int] = []
    places: list[tuple[int, int]] = []
    values: list[float] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        label, *entries = line.split()
        if not _LABEL.fullmatch(label):
            raise ValueError(f"line {number}: the label {label[:40]!r} is no whole number")
        last = 0
        for entry in entries:
            index, value = _parse(entry, number)
            if not last < index <= features:
                raise ValueError(f"line {number}: index {index} must lie between {last + 1} and {features}")
            places.append((len(labels), index - 1))
            values.append(value)
            last = index
        labels.append(int(label))
    x = torch.zeros(len(labels), features)
    if places:
        rows, columns = torch.tensor(places).T
        x[rows, columns] = torch.tensor(values)
    return x, torch.tensor(labels, dtype=torch.int64)


def _parse(entry: str, number: int) -> tuple[int, float]:
    found = _ENTRY.fullmatch(entry)
    if not found or abs(float(found[2])) > _LARGEST:
        raise ValueError(f"line {number}: {entry[:40]!r} is not index:value")
    return int(found[1]), float(found[2])
