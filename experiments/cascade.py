"""Combine a small and a large network in a cascade. The large network computes only the examples for which the small
network's two largest class probabilities are similar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tune_sparsity.experiments.examples import mapped

Answer = Callable[[Any], Tensor]
"""A function: inputs of the data set -> logits of the shape (examples, classes)."""


def margins(outputs: Tensor) -> Tensor:
    """Return the margin of each example: the largest class probability minus the second largest, in [0, 1].

    Args:
        outputs: logits of the shape (n, classes), with at least two classes.

    Returns:
        A float32 tensor of the shape (n,).
    """
    first, second = outputs.float().softmax(1).topk(2, dim=1).values.unbind(1)
    return first - second


@dataclass(frozen=True)
class Cascade:
    """Combines two networks. The small network computes the outputs of all examples. If the margin of an example is
    less than theta, the large network's outputs replace the small network's outputs for this example.

    With theta = 0, all outputs are those of the small network. With theta > 1, all are those of the large network.

    Attributes:
        small, large: the networks, as functions: inputs of the data set -> logits (examples, classes).
        theta: the threshold, >= 0. float32 must represent this number exactly.
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
