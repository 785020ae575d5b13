"""Estimates the metric of a chosen trial on new data. The best of many noisy values is too high on average."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Estimate(NamedTuple):
    """The expected value of a metric on new data."""

    value: float
    error: float  # the standard error


def shrunk(value: float, values: Sequence[float], examples: int) -> Estimate:
    """Estimate a trial's metric on new data from the values of all trials that it was chosen from.

    Each value has the sampling error of a share of `examples` examples. The larger this error is, compared with the
    spread of the values, the nearer the estimate is to their mean. This is the positive-part James-Stein estimator
    towards the mean: Efron and Morris, "Data analysis using Stein's estimator and its generalizations", Journal of the
    American Statistical Association 70 (1975). It needs at least four values. With fewer values, the estimate is the
    value itself.

    The standard error is that of one trial, because all trials share their validation examples. It is the one in the
    interval of Agresti and Coull, "Approximate is better than exact for interval estimation of binomial proportions",
    The American Statistician 52 (1998), which is not 0 for values of 0 and 1.

    Args:
        value: the metric of the chosen trial on the validation data, a mean over the examples of scores in [0, 1].
        values: the metrics of all trials that were compared, with that of the chosen trial.
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
