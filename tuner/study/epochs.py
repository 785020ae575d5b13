"""epochs.csv: what every trial measured after every epoch, a row each, written as the study goes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tune_sparsity.tuner.study.objective import ACCURACY, Objective

Series = list[dict[str, float]]
"""A trial's epochs in their order, each with "epoch" and the metrics that were measured."""


_KEYS = ("number", "epoch")


def columns(objective: Objective) -> tuple[str, ...]:
    """Return the columns behind those of `_KEYS`; a method that has no such thing leaves its cell empty."""
    validated = objective.val, objective.at_target
    trained = ("train_loss", *validated, "sparsity", "hoyer", "threshold", "grow_rate", "travel", "epoch_seconds")
    return (*trained, "size_bytes", "macs")


class EpochLog:
    """Appends to the file, a line an epoch. A study that goes on appends to what is there.

    Args:
        path: the file; made by the first row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = []  # of the file's columns behind _KEYS

    def add(self, number: int, epoch: int, metrics: Mapping[str, float], objective: Objective = ACCURACY) -> None:
        """Writes a trial's epoch. A disk that is full or gone loses the row and not the study."""
        try:
            if not (self._names and self._path.exists()):
                self._names = self._begun(columns(objective))
            values = (repr(float(metrics[name])) if name in metrics else "" for name in self._names)
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(",".join([str(number), str(epoch), *values]) + "\n")
        except OSError:
            pass

    def _begun(self, names: Sequence[str]) -> list[str]:
        """Make the file with these columns, unless it is there. Return its columns: an earlier version's has fewer."""
        with self._path.open("a+", encoding="utf-8", newline="") as file:
            file.seek(0)
            header = file.readline()
            if not header:
                header = ",".join((*_KEYS, *names)) + "\n"
                file.write(header)
        return header.strip().split(",")[len(_KEYS) :]


def read_epochs(path: Path) -> dict[int, Series]:
    """Return every trial's epochs, by its number. Of an epoch that was trained again the last row counts, and what it
    was followed by at first is dropped; rows that a process died in are left out. Without the file: nothing."""
    series: dict[int, Series] = {}
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                try:
                    number, epoch = int(row["number"]), int(row["epoch"])
                    measured = {name: float(value) for name, value in row.items() if value and name not in _KEYS}
                except (KeyError, TypeError, ValueError):
                    continue
                if None in row or len(measured) < 2:  # two rows run together, or the beginning of one
                    continue
                before = [one for one in series.get(number, []) if one["epoch"] < epoch]
                series[number] = [*before, {"epoch": float(epoch), **measured}]
    except OSError:
        return {}
    return series
