"""Choose the weights that are not pruned: the weights with the largest scores, and a minimum number in every neuron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tune_sparsity.sparsity.distributions import layer_counts
from tune_sparsity.sparsity.layers import has_normalisation
from tune_sparsity.sparsity.masks import sparsity_with, zeros_for
from tune_sparsity.sparsity.patterns import UNSTRUCTURED, Pattern

_AFTER = 1e4  # in log2: puts every masked weight behind every active one, and keeps their order


@dataclass(frozen=True)
class Selection:
    """Chooses the weights of a network that are not pruned.

    Attributes:
        distribution: "global" chooses the largest weights of all layers together. "erk" and "uniform" choose the
            largest weights of each layer. `layer_counts` gives their number.
        a_neuron: the minimum number of weights that are chosen in every neuron. The minimum is reduced if the sparsity
            leaves too few weights for it.
        normalised: whether the network has normalisation layers. These remove the scale of a neuron, so the magnitudes
            of different neurons cannot be compared. If True, the selection therefore compares `lamp_score` instead of
            magnitudes.
        pattern: the pattern of the zeros.
    """

    distribution: str = "global"
    a_neuron: int = 0
    normalised: bool = False
    pattern: Pattern = UNSTRUCTURED

    def __call__(
        self,
        log_magnitudes: Sequence[Tensor],
        on_sphere: Sequence[bool],
        sparsity: float,
        active: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return masks of `sparsity` over all layers, or of the next higher sparsity that the pattern allows. If
        `sparsity` is below the lowest sparsity of the pattern, some weights stay although the pattern forbids them.
        When the sparsity rises, these weights are pruned first, beginning with the smallest.

        The magnitudes of layers on the sphere and off the sphere cannot be compared: with p near 1 the few large
        weights of the sphere's rows would leave almost no weight to the last layer. With the global distribution, the
        layers off the sphere therefore keep as many weights as an Erdos-Renyi-Kernel distribution gives them. The other
        layers share the rest.

        Args:
            log_magnitudes: log2 of the weights' magnitudes: one tensor for each layer, in the shape (neurons,
                fan-in...). NaN is not allowed.
            on_sphere: for each layer, whether it lies on the Lp sphere (see LpSGD).
            sparsity: in [0, 1).
            active: the current masks of the layers. Weights that are masked now are chosen last. If None, all weights
                are treated alike.
        """
        scores = [self._score(one) for one in log_magnitudes]
        if active is not None:  # every active weight comes before all masked weights, even an active weight that is 0
            pairs = zip(scores, active, strict=True)
            scores = [score.clamp_min(-_AFTER / 2) - _AFTER * (mask == 0) for score, mask in pairs]
        shared = "erk" if self.distribution == "global" else self.distribution
        scores = [self.pattern.ranked(score) for score in scores]
        shapes, most = [score.shape for score in scores], 1 - self.pattern.least
        counts = layer_counts(shapes, sparsity, shared, a_neuron=self.a_neuron, most=most)
        masks: dict[int, Tensor] = {}
        # A pattern that keeps whole blocks may give a group more or fewer weights than its share. The next groups then
        # get the rest.
        share, rest = 0, sum(counts)
        for group in sorted(self._groups(on_sphere), key=lambda group: sum(counts[index] for index in group)):
            share += sum(counts[index] for index in group)
            least = sum(self.pattern.least_weights(shapes[index]) for index in group)
            keep = min(max(share, least), rest, sum(shapes[index].numel() for index in group))
            kept = self.pattern.keep([scores[index] for index in group], keep, self.a_neuron)
            taken = sum(int(mask.count_nonzero()) for mask in kept)
            share, rest = share - taken, rest - taken
            masks.update(zip(group, kept, strict=True))
        return [masks[index] for index in range(len(scores))]

    def first(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Change the given initial masks of a training: return masks that are also zero for the weights that this
        selection never chooses. The masks have the shapes of the weights. `Selection` itself can choose every weight,
        so it returns the masks unchanged."""
        return list(masks)

    def in_whole(self, sparsity: float) -> float:
        """Return the sparsity over all weights of the layers. The argument is the sparsity over only those weights that
        this selection can choose. `Selection` itself can choose every weight, so both sparsities are equal."""
        return sparsity

    def _score(self, log_magnitude: Tensor) -> Tensor:
        return lamp_score(relative_magnitude(log_magnitude)) if self.normalised else log_magnitude

    def _groups(self, on_sphere: Sequence[bool]) -> list[list[int]]:
        """Return groups of layers, as lists of indices. The number of chosen weights is given for each group, not for
        each layer."""
        layers = range(len(on_sphere))
        if self.distribution != "global":
            return [[index] for index in layers]
        if all(on_sphere) or not any(on_sphere):
            return [list(layers)]
        return [[index for index in layers if on_sphere[index]], *([index] for index in layers if not on_sphere[index])]


def fitted(
    chosen: Callable[[float], list[Tensor]], sparsity: float, excess: Callable[[Sequence[Tensor]], int]
) -> list[Tensor]:
    """Return masks of the sparsity `sparsity`, or of a higher sparsity if the function `excess` finds that these masks
    have too few zeros. All masks together keep at least as many ones as there are masks, even if `excess` requires more
    zeros.

    Args:
        chosen: a function that returns the masks for a sparsity.
        excess: a function that takes masks and estimates how many more weights must be pruned. It returns 0 if the
            masks have enough zeros. If it estimates too many, the masks become sparser than necessary.
    """
    masks = chosen(sparsity)
    weights = sum(mask.numel() for mask in masks)
    while many := excess(masks):
        kept = sum(int(mask.count_nonzero()) for mask in masks)
        if kept <= len(masks):
            break
        masks = chosen(sparsity_with(weights - max(len(masks), kept - many), weights))
    return masks


def selection_for(
    model: nn.Module,
    distribution: str,
    pattern: Pattern = UNSTRUCTURED,
    *,
    shapes: Sequence[torch.Size] = (),
    sparsity: float = 0.0,
) -> Selection:
    """Return the selection for a network.

    The selection keeps at least one weight of each neuron. There is one exception: if the distribution is global, and a
    neuron has on average fewer than two weights at the final sparsity, neurons may lose all their weights. Such
    networks are more accurate without the minimum.

    Args:
        shapes: the shapes of the prunable weights, (neurons, fan-in...).
        sparsity: the final sparsity.
    """
    weights, neurons = sum(shape.numel() for shape in shapes), sum(shape[0] for shape in shapes)
    crowded = distribution == "global" and 2 * neurons > weights - zeros_for(sparsity, weights)
    normalised = has_normalisation(model)
    return Selection(distribution, a_neuron=0 if crowded else 1, normalised=normalised, pattern=pattern)


def relative_magnitude(log_magnitude: Tensor) -> Tensor:
    """Return log2(|w| / r) for each weight w, in the same shape, where r is the root mean square of the weight's row.
    The result does not depend on the norm of the row or on the number of its weights. Weights of zero stay -inf."""
    rows = log_magnitude.flatten(1)
    if rows.dtype != torch.float64:
        rows = rows.float()
    shifted = (rows - rows.amax(1, keepdim=True)).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    mean_square = (2 * shifted).exp2().mean(1, keepdim=True)
    return (shifted - mean_square.clamp_min(torch.finfo(rows.dtype).tiny).log2() / 2).view_as(log_magnitude)


def lamp_score(log_magnitude: Tensor) -> Tensor:
    """Return log2 of the LAMP score of each weight, in the same shape (Lee et al. 2021, arXiv 2010.07611).

    The score of a weight is its square, divided by the sum of the squares of all weights of the layer that are at least
    as large. The result is 0 for the largest weight of the layer, and -inf for a weight that is zero. If all weights of
    the layer are multiplied by a number, the result does not change."""
    squares, order = (2 * log_magnitude.flatten()).sort(descending=True, stable=True)
    shifted = (squares - squares[0]).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    scores = shifted - shifted.double().exp2().cumsum(0).clamp_min(1).log2().to(shifted)
    return torch.empty_like(scores).scatter_(0, order, scores).view_as(log_magnitude)
