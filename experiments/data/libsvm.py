"""The LIBSVM text format: one example a line, "label index:value index:value ...", zeros left out."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_LABEL = re.compile(r"[+-]?[0-9]{1,18}")
_ENTRY = re.compile(r"([0-9]{1,18}):([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_LARGEST = torch.finfo(torch.float32).max


def parse_libsvm(text: str, features: int) -> tuple[Tensor, Tensor]:
    """Dense inputs (n, features) float32 and labels (n,) int64 from the text of a file.

    Labels are whole numbers; indices count from 1 and ascend. Empty lines are passed over.

    Raises:
        ValueError: for anything else, naming the line.
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
                raise ValueError(f"line {number}: index {index} does not lie between {last + 1} and {features}")
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
