"""How a network's sparsity is shared out among its layers, with the total exact to the weight."""

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
    """Return how many weights each layer keeps; in all exactly what `sparsity` leaves.

    Args:
        shapes: (neurons, fan-in...) of every layer, as (output, input, kernel...) of a convolution.
        sparsity: of the whole network, in [0, 1).
        distribution: "uniform": the same density everywhere. "erk" (Erdos-Renyi-Kernel, Evci et al. 2020, arXiv
            1911.11134): density proportional to the sum of a layer's dimensions over their product, layers that this
            would fill beyond 1 kept dense and the rest scaled anew.
        a_neuron: so many weights a neuron are every layer's least, or as many as are feasible in all. What a layer
            needs for that the others give, each in proportion to what it has beyond its own least.
        most: the largest share of its weights that a layer keeps, in (0, 1]. Where the sparsity leaves more than that
            share of all weights, every layer keeps the share that it leaves.

    Raises:
        ValueError: for a distribution that is not named above ("global" leaves the counts to chance).
    """
    sizes = [math.prod(shape) for shape in shapes]
    keep = sum(sizes) - zeros_for(sparsity, sum(sizes))
    most = max(most, keep / sum(sizes))
    if distribution == "uniform":
        densities = [keep / sum(sizes)] * len(sizes)
    elif distribution == "erk":
        densities = _erk_densities(shapes, sizes, keep, most)
    else:
        raise ValueError(f"unknown distribution {distribution!r}: uniform, erk")
    wanted = [density * size for density, size in zip(densities, sizes, strict=True)]
    floors = row_floors(shapes, keep, a_neuron)
    least = [shape[0] * floor for shape, floor in zip(shapes, floors, strict=True)]
    return rounded(_raised(wanted, least, keep), [math.ceil(most * size - 1e-6) for size in sizes], keep)


def _raised(wanted: Sequence[float], least: Sequence[int], keep: int) -> list[float]:
    """Return numbers whose sum is still `keep`, none of them below its least."""
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
    """Whole numbers near `wanted` whose sum is `keep`: the largest remainders are rounded up."""
    counts = [min(math.floor(w + 1e-9), size) for w, size in zip(wanted, sizes, strict=True)]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    while (missing := keep - sum(counts)) > 0:
        for i in by_remainder:
            if missing > 0 and counts[i] < sizes[i]:
                counts[i] += 1
                missing -= 1
    return counts


def random_masks(weights: Sequence[Tensor], sparsity: float, distribution: str, generator: Generator) -> list[Tensor]:
    """Random masks on the CPU, in each weight's dtype, with exactly the zeros that `sparsity` asks for in all.

    "global" draws over all layers at once; the others draw within each layer the number that `layer_counts` gives.

    Args:
        weights: in the shape (neurons, fan-in...).
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
