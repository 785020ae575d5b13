"""Writes and reads epochs.csv, which has a row of metrics for each epoch of each trial."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tune_sparsity.tuner.study.objective import ACCURACY, Objective

Series = list[dict[str, float]]
"""The epochs of a trial in order. Each epoch is a dict with the number "epoch" (from 1) and the measured metrics."""


_KEYS = ("number", "epoch")


def columns(objective: Objective) -> tuple[str, ...]:
    """Return the names of those columns of epochs.csv that contain metrics. A cell in them is empty if the trial's
    method does not measure the metric."""
    validated = objective.val, objective.at_target
    trained = ("train_loss", *validated, "sparsity", "hoyer", "threshold", "grow_rate", "travel", "epoch_seconds")
    return (*trained, "size_bytes", "macs")


class EpochLog:
    """Appends a row to epochs.csv for each epoch. A resumed study appends to the existing file.

    Args:
        path: the file. It is created together with its first row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = []  # the file's columns after _KEYS

    def add(self, number: int, epoch: int, metrics: Mapping[str, float], objective: Objective = ACCURACY) -> None:
        """Append an epoch of a trial. If the file cannot be written, the row is lost, and no error is raised.

        Args:
            number: the trial's number.
            epoch: the epoch's number, from 1.
            metrics: a dict from the names of metrics to their values.
            objective: the study's objective. A new file gets the columns of this objective (see `columns`).
        """
        try:
            if not (self._names and self._path.exists()):
                self._names = self._begun(columns(objective))
            values = (repr(float(metrics[name])) if name in metrics else "" for name in self._names)
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(",".join([str(number), str(epoch), *values]) + "\n")
        except OSError:
            pass

    def _begun(self, names: Sequence[str]) -> list[str]:
        """Create the file with these columns if it does not exist. Return the file's metric columns. A file of an
        earlier version may have fewer columns."""
        with self._path.open("a+", encoding="utf-8", newline="") as file:
            file.seek(0)
            header = file.readline()
            if not header:
                header = ",".join((*_KEYS, *names)) + "\n"
                file.write(header)
        return header.strip().split(",")[len(_KEYS) :]


def read_epochs(path: Path) -> dict[int, Series]:
    """Return a dict from the number of each trial to the epochs of the trial (see `Series`). Return an empty dict if
    the file cannot be read.

    A trial that continued from a checkpoint may have trained some epochs twice. In this case, the result contains these
    epochs once, with the metrics of the second training. Rows that were not written completely are left out.
    """
    series: dict[int, Series] = {}
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                try:
                    number, epoch = int(row["number"]), int(row["epoch"])
                    measured = {name: float(value) for name, value in row.items() if value and name not in _KEYS}
                except (KeyError, TypeError, ValueError):
                    continue
                if None in row or len(measured) < 2:  # two rows in one line, or an incomplete row
                    continue
                before = [one for one in series.get(number, []) if one["epoch"] < epoch]
                series[number] = [*before, {"epoch": float(epoch), **measured}]
    except OSError:
        return {}
    return series
