"""How much a group of neurons counts: by the norms of its rows and of the columns that read it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VARIANT = "product"


def importance(
    log_magnitudes: Sequence[Tensor], sides: Sequence[tuple[tuple[Tensor, bool], ...]], count: int
) -> Tensor:
    """Return the importance of each group, float64, on the CPU.

    Args:
        log_magnitudes: log2 of the weights, one tensor a layer in the weight's shape; not NaN.
        sides: of each layer, for its first and second dimension: the group of each index, and whether the dimension is
            that of the outputs.
        count: the number of groups.
    """
    norms = [mean_squares(log, dim) for log in log_magnitudes for dim in (0, 1)]
    parts = torch.cat(norms).cpu().split([len(norm) for norm in norms])
    sums, members = torch.zeros(2, 2, count + 1, dtype=torch.float64)
    for part, (ids, outputs) in zip(parts, (side for layer in sides for side in layer), strict=True):
        sums[int(outputs)].index_add_(0, ids % (count + 1), part)
        members[int(outputs)].index_add_(0, ids % (count + 1), torch.ones_like(part))
    if VARIANT == "mean":
        return (sums.sum(0) / members.sum(0).clamp_min(1))[:count]
    read, made = (sums / members.clamp_min(1))[:, :count]
    if VARIANT == "rows":
        return made
    if VARIANT == "columns":
        return read
    return made * read


def mean_squares(log_magnitude: Tensor, dim: int) -> Tensor:
    """Return the mean square of the weights of each index of a dimension, over the mean of all weights; float64."""
    others = [other for other in range(log_magnitude.dim()) if other != dim]
    shifted = (log_magnitude - log_magnitude.amax()).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    means = (2 * shifted.float()).exp2().mean(others).double()
    return means / means.mean().clamp_min(torch.finfo(torch.float64).tiny)
