"""How a network's sparsity is shared out among its layers, with the total exact to the weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from tune_sparsity.sparsity.masks import keep_largest, zeros_for

DISTRIBUTIONS = ("uniform", "erk", "global")


def layer_counts(shapes: Sequence[torch.Size], sparsity: float, distribution: str) -> list[int]:
    """How many weights each layer keeps; in all exactly what `sparsity` leaves.

    Args:
        shapes: (neurons, fan-in...) of every layer, as (output, input, kernel...) of a convolution.
        sparsity: of the whole network, in [0, 1).
        distribution: "uniform": the same density everywhere. "erk" (Erdos-Renyi-Kernel, Evci et al. 2020, arXiv
            1911.11134): density proportional to the sum of a layer's dimensions over their product, layers that this
            would fill beyond 1 kept dense and the rest scaled anew.

    Raises:
        ValueError: for a distribution that is not named above ("global" leaves the counts to chance).
    """
    sizes = [math.prod(shape) for shape in shapes]
    keep = sum(sizes) - zeros_for(sparsity, sum(sizes))
    if distribution == "uniform":
        densities = [keep / sum(sizes)] * len(sizes)
    elif distribution == "erk":
        densities = _erk_densities(shapes, sizes, keep)
    else:
        raise ValueError(f"unknown distribution {distribution!r}: uniform, erk")
    return rounded([density * size for density, size in zip(densities, sizes, strict=True)], sizes, keep)


def _erk_densities(shapes: Sequence[torch.Size], sizes: Sequence[int], keep: int) -> list[float]:
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(sizes)) if i not in dense]
        left = keep - sum(sizes[i] for i in dense)
        scale = left / sum(raw[i] * sizes[i] for i in rest) if rest else 0.0
        over = {i for i in rest if scale * raw[i] > 1.0}
        if not over:
            return [1.0 if i in dense else scale * raw[i] for i in range(len(sizes))]
        dense |= over


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


def keep_largest_magnitude(scores: Sequence[Tensor], on_sphere: Sequence[bool], sparsity: float) -> list[Tensor]:
    """Masks of exactly `sparsity` over all layers that keep the largest scores, wherever they are.

    Where some layers lie on the sphere and others do not, magnitudes do not compare: with p near 1 the few large
    weights of the sphere's rows would leave the last layer next to nothing. Those off the sphere then keep what an
    Erdos-Renyi-Kernel distribution gives them, and the others share the rest.

    Args:
        scores: one tensor a layer, in the shape (neurons, fan-in...); not NaN.
        on_sphere: whether each layer lies on the sphere.
        sparsity: in [0, 1).
    """
    weights = sum(score.numel() for score in scores)
    if all(on_sphere) or not any(on_sphere):
        return keep_largest(scores, weights - zeros_for(sparsity, weights))
    counts = layer_counts([score.shape for score in scores], sparsity, "erk")
    shared = sum(count for count, sphere in zip(counts, on_sphere, strict=True) if sphere)
    kept = iter(keep_largest([s for s, sphere in zip(scores, on_sphere, strict=True) if sphere], shared))
    return [
        next(kept) if sphere else keep_largest([score], count)[0]
        for score, sphere, count in zip(scores, on_sphere, counts, strict=True)
    ]


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
