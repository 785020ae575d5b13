"""Distribute a network's sparsity over its layers. The total number of zeros is exactly the number that `zeros_for`
requires."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from tune_sparsity.sparsity.masks import row_floors, zeros_for

DISTRIBUTIONS = ("uniform", "erk", "global")


def layer_counts(
    shapes: Sequence[torch.Size], sparsity: float, distribution: str, *, a_neuron: int = 0, most: float = 1.0
) -> list[int]:
    """Return the number of nonzero weights for each layer. The layers together have exactly as many zeros as `sparsity`
    requires (see `zeros_for`).

    Args:
        shapes: the shape (neurons, fan-in...) of every layer. For a convolution it is (output, input, kernel...).
        sparsity: the sparsity of the whole network, in [0, 1).
        distribution: "uniform" gives all layers the same density (fraction of nonzero weights). "erk"
            (Erdos-Renyi-Kernel, Evci et al. 2020, arXiv 1911.11134) makes the density of a layer proportional to (sum
            of its dimensions) / (product of its dimensions). If a density would exceed `most`, it becomes `most`, and
            the densities of the other layers are scaled again.
        a_neuron: the minimum number of nonzero weights in each neuron. It is reduced as far as necessary if the network
            has too few nonzero weights for it. If the distribution gives a layer too few weights for the minimum of its
            neurons, the layer gets exactly the weights for this minimum. The other layers then give up weights, but
            keep the minimum, too: each loses the same fraction of the weights that it has above its minimum.
        most: the largest density of a layer, in (0, 1]. If the density of the whole network is above `most`, it
            replaces `most`, so that every layer gets this density.

    Raises:
        ValueError: if the distribution is neither "uniform" nor "erk". "global" is not accepted, because it does not
            fix the number of weights of a layer.
    """
    sizes = [math.prod(shape) for shape in shapes]
    keep = sum(sizes) - zeros_for(sparsity, sum(sizes))
    most = max(most, keep / sum(sizes))
    if distribution == "uniform":
        densities = [keep / sum(sizes)] * len(sizes)
    elif distribution == "erk":
        densities = _erk_densities(shapes, sizes, keep, most)
    else:
        raise ValueError(f"unknown distribution {distribution!r}: choose uniform or erk")
    wanted = [density * size for density, size in zip(densities, sizes, strict=True)]
    floors = row_floors(shapes, keep, a_neuron)
    least = [shape[0] * floor for shape, floor in zip(shapes, floors, strict=True)]
    return rounded(_raised(wanted, least, keep), [math.ceil(most * size - 1e-6) for size in sizes], keep)


def _raised(wanted: Sequence[float], least: Sequence[int], keep: int) -> list[float]:
    """Raise the numbers in `wanted` to their minimums in `least`, and lower the other numbers. The sum stays `keep`."""
    if all(number >= floor - 1e-9 for number, floor in zip(wanted, least, strict=True)):
        return list(wanted)
    excess = [max(0.0, number - floor) for number, floor in zip(wanted, least, strict=True)]
    share = (keep - sum(least)) / sum(excess)
    return [floor + share * beyond for floor, beyond in zip(least, excess, strict=True)]


def _erk_densities(shapes: Sequence[torch.Size], sizes: Sequence[int], keep: int, most: float) -> list[float]:
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    full: set[int] = set()
    while True:
        rest = [i for i in range(len(sizes)) if i not in full]
        left = keep - most * sum(sizes[i] for i in full)
        scale = left / sum(raw[i] * sizes[i] for i in rest) if rest else 0.0
        over = {i for i in rest if scale * raw[i] > most}
        if not over:
            return [most if i in full else scale * raw[i] for i in range(len(sizes))]
        full |= over


def rounded(wanted: Sequence[float], sizes: Sequence[int], keep: int) -> list[int]:
    """Round the numbers in `wanted` up or down, so that the sum of the results is `keep`. The numbers with the largest
    fractional parts are rounded up. No result becomes larger than its entry in `sizes`."""
    counts = [min(math.floor(w + 1e-9), size) for w, size in zip(wanted, sizes, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    while (missing := keep - sum(counts)) > 0:
        for i in by_remainder:
            if missing > 0 and counts[i] < sizes[i]:
                counts[i] += 1
                missing -= 1
    return counts


def random_masks(weights: Sequence[Tensor], sparsity: float, distribution: str, generator: Generator) -> list[Tensor]:
    """Return one random mask for each tensor in `weights`, on the CPU, in the shape and dtype of this tensor. All masks
    together have exactly the number of zeros that `sparsity` requires (see `zeros_for`).

    The distribution "global" draws the positions of the ones over all layers at once. With "uniform" and "erk",
    `layer_counts` gives the number of ones in each mask, and the positions are drawn within the mask.

    Args:
        weights: the weight tensors of the layers, each of the shape (neurons, fan-in...).
    """
    shapes = [weight.shape for weight in weights]
    sizes = [weight.numel() for weight in weights]
    if distribution == "global":
        flat = _with_ones(sum(sizes), sum(sizes) - zeros_for(sparsity, sum(sizes)), generator)
        parts = flat.split(sizes)
    else:
        counts = layer_counts(shapes, sparsity, distribution)
        parts = tuple(_with_ones(size, count, generator) for size, count in zip(sizes, counts, strict=True))
    return [part.view(weight.shape).to(weight.dtype) for part, weight in zip(parts, weights, strict=True)]


def _with_ones(size: int, ones: int, generator: Generator) -> Tensor:
    mask = torch.zeros(size)
    mask[torch.randperm(size, generator=generator)[:ones]] = 1.0
    return mask
