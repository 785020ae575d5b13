"""Combine a small and a large network in a cascade. The large network computes only the examples on which the small
network is unsure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tune_sparsity.experiments.examples import mapped

Answer = Callable[[Any], Tensor]
"""Inputs as the data set holds them -> a logit for each example and class."""


def margins(outputs: Tensor) -> Tensor:
    """Return the margin of each example: the largest class probability minus the second largest, in [0, 1].

    Args:
        outputs: (n, classes), two classes or more.

    Returns:
        Shape (n,), float32.
    """
    first, second = outputs.float().softmax(1).topk(2, dim=1).values.unbind(1)
    return first - second


@dataclass(frozen=True)
class Cascade:
    """Returns the outputs of the small network for examples on which its margin is at least theta. The large network
    computes only the other examples. With theta = 0 the small network always answers. With theta > 1 the large network
    always answers.

    Attributes:
        theta: the threshold, a number that float32 represents exactly.
    """

    small: Answer
    large: Answer
    theta: float

    def __call__(self, inputs: Any) -> Tensor:
        outputs = self.small(inputs)
        rows = (margins(outputs) < self.theta).nonzero()[:, 0]
        if not len(rows):
            return outputs
        answered = self.large(mapped(lambda part: part[rows.to(part.device)], inputs))
        return outputs.index_copy(0, rows, answered.to(outputs))
