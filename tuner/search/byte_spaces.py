"""Adapts a search space to a limit of the packed file's bytes (option --max-bytes). Two parameters are adapted: the
bits of a weight, and the number of neurons with which a training begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from optuna.distributions import CategoricalDistribution, FloatDistribution

from tune_sparsity.search_spaces import Space
from tune_sparsity.search_spaces.priors import Prior
from tune_sparsity.sparsity import METHODS
from tune_sparsity.sparsity.cost.layout import Layout
from tune_sparsity.tuner.study.trial import WEIGHT_BITS, WIDTH
from tune_sparsity.tuner.worker.sizes import ByteLimit

# The scales and biases of neurons may take at most the fraction _NEURONS of the allowed bytes. At the expected best
# width, they take the fraction _BEST. It was chosen by the validation accuracy of MNIST in 2,000 bytes.
_NEURONS = 1 / 3
_BEST = 1 / 8
_MANY_BITS = 8
_WIDTHS = [step / 100 for step in range(1, 101)]


@dataclass(frozen=True)
class Widths:
    """The range in which a study searches the parameter named `width`. If this parameter has the value w in (0, 1], a
    layer of n neurons begins with n^w neurons (sparsity.neurons.narrow).

    Attributes:
        low, high: the ends of the range.
        centre: the value that is expected to be best. It is the centre of the prior of `width`.
    """

    low: float
    centre: float
    high: float

    def searched_in(self, space: Space) -> Space:
        """Return the space with `width` as one more parameter. If the space searches the parameter `drop`, fix it at
        "ramp". If the method has no parameter `width`, return the space unchanged."""
        if WIDTH not in {one.name for one in fields(METHODS[space.method].settings)}:
            return space
        without = {name for name, when in space.when.items() if "ramp" not in when.get("drop", ("ramp",))} | {"drop"}
        distributions = {name: one for name, one in space.distributions.items() if name not in without}
        fixed = {name: value for name, value in space.fixed.items() if name not in without}
        near = space.near or (None,) * len(space.first)
        points = [
            ({**{name: value for name, value in point.items() if name != "drop"}, WIDTH: self.centre}, target)
            for point, target in zip(space.first, near, strict=True)
            if point.get("drop", "ramp") == "ramp"
        ]
        return replace(
            space,
            distributions={**distributions, WIDTH: FloatDistribution(self.low, self.high)},
            fixed=fixed | ({"drop": "ramp"} if "drop" in space.distributions else {}),
            priors={name: one for name, one in space.priors.items() if name in distributions}
            | {WIDTH: Prior(self.centre)},
            when={name: one for name, one in space.when.items() if name not in without},
            first=tuple(point for point, _ in points),
            near=tuple(target for _, target in points),
        )


def spaces_within(limit: ByteLimit, spaces: Sequence[Space]) -> list[Space]:
    """Return the spaces, adapted to a limit of bytes. A number of bits per weight is removed from the spaces if no
    network whose weights have so many bits meets the limit. If trainings may begin with fewer neurons (`limit.neurons`
    is not None), the parameter `width` is added (see Widths)."""
    fitting = [_with_fitting_bits(limit, space) for space in spaces]
    if limit.neurons is None:
        return fitting
    widths = widths_for(limit)
    return [widths.searched_in(space) for space in fitting]


def _with_fitting_bits(limit: ByteLimit, space: Space) -> Space:
    bits = space.distributions.get(WEIGHT_BITS)
    if not isinstance(bits, CategoricalDistribution):
        return space
    fitting = [one for one in bits.choices if limit.layouts[int(one)].least() <= limit.most]  # type: ignore[arg-type]
    return replace(space, distributions={**space.distributions, WEIGHT_BITS: CategoricalDistribution(fitting)})


def searches_width(space: Space) -> bool:
    """Return whether a training of the space may begin with fewer neurons than the network has."""
    return WIDTH in space.distributions or space.fixed.get(WIDTH, 1) != 1


def too_many_neurons(limit: ByteLimit, width: float = 1.0) -> bool:
    """Return whether the scales and biases of a network's neurons take more than a third of the limit of bytes."""
    return limit.neuron_bytes(width) > _NEURONS * limit.most


def widths_for(limit: ByteLimit) -> Widths:
    """Return the range of the parameter `width` to search within a limit of bytes.

    At the lower end, a network has so few neurons that it meets the limit with 8 bits for each weight, even if no
    weight is zero. At the upper end, the scales and biases of all neurons take a third of the limit. At the centre, the
    scales and biases take an eighth of the limit.
    """

    low = _last(lambda width: limit.nonzero(_MANY_BITS, width) >= limit.part(_MANY_BITS, width).weights)
    high = max(low, _last(lambda width: not too_many_neurons(limit, width)))
    centre = _last(lambda width: limit.neuron_bytes(width) <= _BEST * limit.most)
    return Widths(low, min(max(centre, low), high), high)


def roomiest(limit: ByteLimit) -> Layout:
    """Return the layout of the packed file (see Layout) in which the most nonzero weights fit within a limit of bytes.
    Each value of the parameter `width` (see Widths) gives another layout."""
    widths = widths_for(limit)
    parts = [limit.part(limit.bits, width) for width in _WIDTHS if widths.low <= width <= widths.high]
    return max(parts, key=lambda one: one.nonzero_within(limit.most))


def _last(holds: Callable[[float], bool]) -> float:
    """Return the largest width such that a condition holds for this width and for all smaller widths, in steps of
    0.01."""
    return next((before for before, width in pairwise(_WIDTHS) if not holds(width)), 1.0)
