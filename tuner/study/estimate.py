"""Estimates the metric of the best trial on new data. The validation metric of the best trial is too high on average,
because this trial was chosen for its high metric."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """An estimate of a metric on new data, with its standard error."""

    value: float
    error: float  # the standard error


def shrunk(value: float, values: Sequence[float], examples: int) -> Estimate:
    """Estimate the metric of a chosen trial on new data, by shrinking its value towards the mean of all trials.

    Each value has a sampling error, because the validation data are only a sample. This function computes the error as
    if each value were a proportion of correct answers among `examples` examples. The larger this error is, compared
    with the spread of the values, the nearer the estimate is to the mean of the values. This is the positive-part
    James-Stein estimator towards the mean: Efron and Morris, "Data analysis using Stein's estimator and its
    generalizations", Journal of the American Statistical Association 70 (1975). The estimator needs at least four
    values. With fewer values, the estimate is the value itself.

    The standard error of the estimate is the standard error of a single trial. More trials do not make the error
    smaller, because all trials are evaluated on the same validation examples. The formula comes from the confidence
    interval of Agresti and Coull, "Approximate is better than exact for interval estimation of binomial proportions",
    The American Statistician 52 (1998). With this formula, the error is not 0 for values of 0 or 1.

    Args:
        value: the validation metric of the chosen trial: the mean of a score in [0, 1] over the examples.
        values: the validation metrics of all trials among which the trial was chosen, including its own.
        examples: the number of validation examples.

    >>> shrunk(0.99, [0.99, 0.98, 0.97, 0.98, 0.98], examples=180).value
    0.98
    """
    mean = statistics.fmean(values)
    spread = math.fsum((one - mean) ** 2 for one in values)
    if len(values) > 3 and spread > 0:
        variance = mean * (1 - mean) / examples
        value = mean + max(0.0, 1 - (len(values) - 3) * variance / spread) * (value - mean)
    share = (value * examples + 2) / (examples + 4)
    return Estimate(value, math.sqrt(share * (1 - share) / (examples + 4)))
