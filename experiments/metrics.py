"""Define metrics. A metric has a name and a direction. It scores each example, or all examples of a split together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tune_sparsity.experiments.examples import mapped, tensors_in

ACCURACY = "accuracy"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ROUNDING = 1e-6  # a mean of scores in [0, 1] may be outside of [0, 1] by this much
_TAKEN = (
    *("bit_ops", "bytes", "epochs", "hypervolume", "macs", "method", "nonzero", "seconds", "size_bytes", "sparsity"),
    *("study", "syn_ops", "target", "train_bytes", "trial"),
)
"""Names that a metric cannot have, because the tables and plots have other columns with these names."""
_BELOW_ZERO = ("matthews_corr_coef", "cohen_kappa")
"""Metrics of torchmetrics that lie in [-1, 1] although their plot_lower_bound is 0."""


@dataclass(frozen=True)
class Metric:
    """Describes a metric: its name, its function and its direction.

    >>> rmse = Metric("rmse", lambda outputs, targets: (outputs - targets).square().mean().sqrt(), maximize=False)
    >>> rmse.function(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(1.4142)

    Attributes:
        name: the name. It begins with a letter and consists of a-z, 0-9 and _, for example macro_f1. The names of
            results contain it in place of `accuracy`: for example val_rmse in place of val_accuracy.
        function: (outputs, targets) -> one finite number. The arguments are those of the whole split, on the CPU. If
            they are dicts or tuples of tensors, each tensor holds the whole split. Instead of a function, a
            torchmetrics metric may be given. None means that the user's own training loop measures the metric.
        maximize: whether larger values are better.
        each: whether the function returns a score for every example, shape (n,), instead of one number. The function is
            then called for each batch, on the batch's device. The metric is the mean of the scores.
        percent: whether the metric lies in [0, 1] and is shown in percent.

    Raises:
        ValueError: if the name is not accepted, or if the name is accuracy, but `maximize` or `percent` is False.
    """

    name: str
    function: Any = None
    maximize: bool = True
    each: bool = False
    percent: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"a metric's name must consist of a-z, 0-9 and _, as macro_f1 does, got {self.name!r}")
        if self.name in _TAKEN or self.name.endswith("_at_target"):
            raise ValueError(f"a metric cannot be called {self.name}: another column of the tables has this name")
        if self.name == ACCURACY and not (self.maximize and self.percent):
            raise ValueError(
                "a metric called accuracy must lie in [0, 1] and be maximised: set percent=True, or take another name"
            )

    def check_range(self, value: float) -> None:
        """Check a value of a metric with `percent`. Values of torchmetrics metrics are not checked.

        Raises:
            ValueError: if the value is outside [0, 1].
        """
        if self.percent and not is_torchmetric(self.function) and (value < -_ROUNDING or value > 1 + _ROUNDING):
            raise ValueError(f"the {self.name} is {value:g}, but must lie in [0, 1]: give a fraction, not percent")

    def tolerance(self, value: float, examples: int) -> float:
        """Return the largest acceptable difference between two measurements of one network on different devices.

        Devices round sums differently. Examples near a decision boundary may therefore get another class.

        Args:
            value: the first measurement.
            examples: the number of examples of each measurement.
        """
        if self.each and self.percent:
            return max(0.005, 2.5 / examples)
        return 1e-5 + 0.02 * abs(value)


def metric_of(given: Any) -> Metric:
    """Convert the metric of an experiment to a Metric.

    Args:
        given: a Metric, a torchmetrics metric, or a function (outputs, targets) -> a score in [0, 1] for each example.
            The mean of these scores is called accuracy.

    Raises:
        ValueError: if a torchmetrics metric does not declare whether larger values are better.
    """
    if isinstance(given, Metric):
        return given
    if not is_torchmetric(given):
        return Metric(ACCURACY, given, each=True, percent=True)
    kind = type(given).__name__
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
    larger = getattr(given, "higher_is_better", None)
    if not isinstance(larger, bool):
        wrapped = f'Metric("{name}", {kind}(...), maximize=...)'
        raise ValueError(f"{kind} does not tell whether larger is better (higher_is_better): give {wrapped}")
    bounds = getattr(given, "plot_lower_bound", None), getattr(given, "plot_upper_bound", None)
    percent = bounds == (0.0, 1.0) and not name.endswith(_BELOW_ZERO)
    return Metric(name, given, maximize=larger, percent=percent)


def is_torchmetric(value: Any) -> bool:
    """Return whether a value is a torchmetrics metric. This function only looks at the value's methods, so that
    torchmetrics need not be imported."""
    parts = ("update", "compute", "reset", "to")
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in parts)


class Scorer:
    """Computes a metric over a whole split from the outputs of its batches.

    Args:
        metric: the metric.
        device: the device of the outputs and targets.

    Raises:
        ValueError: if the metric has no function.
    """

    def __init__(self, metric: Metric, device: torch.device) -> None:
        if metric.function is None:
            raise ValueError(f"the metric {metric.name} has no function: give Metric(name, function)")
        self._metric = metric
        self._gathered: list[Any] = []
        self._stateful = is_torchmetric(metric.function)
        if self._stateful:
            metric.function.to(device).reset()

    def add(self, outputs: Any, targets: Any) -> None:
        """Add the outputs and the targets of a batch."""
        function = self._metric.function
        if self._stateful:
            function.update(outputs, targets)
        elif self._metric.each:
            self._gathered.append(function(outputs, targets))
        else:
            self._gathered.append(mapped(lambda one: one.detach().cpu(), (outputs, targets)))

    def value(self) -> float:
        """Return the metric's value over all batches. It may be NaN or infinite."""
        function, gathered = self._metric.function, self._gathered
        if self._stateful:
            value = float(function.compute())
            function.reset()  # its states may be large
            return value
        if self._metric.each:
            return float(torch.cat(gathered).double().mean())
        return float(function(*concatenated(gathered)))


def concatenated(parts: Sequence[Any]) -> Any:
    """Concatenate nested structures of tensors along the first dimension, tensor by tensor. All parts must have the
    same structure."""
    joined = map(torch.cat, zip(*map(tensors_in, parts), strict=True))
    return mapped(lambda _: next(joined), parts[0])
