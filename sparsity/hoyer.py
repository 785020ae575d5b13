"""Hoyer sparsity, what the gamma hypothesis expects of it, and the p that a target sparsity suggests.

Hoyer sparsity is a measure of concentration, not the fraction of zeros: report both, under their own names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tune_sparsity.sparsity.sphere import P_MAX, P_MIN, row_norm


def hoyer(w: Tensor) -> Tensor:
    """Return Hoyer's sparsity of each row, (sqrt(n) - ||w||_1/||w||_2)/(sqrt(n) - 1).

    >>> hoyer(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 3.0, 0.0]]))
    tensor([0., 1.])

    w has the shape (..., n) with n >= 2, and the result the shape (...). It is 0 when all magnitudes are equal, and 1
    with a single non-zero weight. A row of zeros counts as 1.
    Source: Hoyer, JMLR 5 (2004).
    """
    n = w.shape[-1]
    if n < 2:
        raise ValueError("Hoyer sparsity needs rows of at least 2 weights")
    scale = w.abs().amax(-1, keepdim=True)
    w = w / torch.where(scale > 0, scale, torch.ones_like(scale))
    l1, l2 = w.abs().sum(-1), row_norm(w, 2.0).squeeze(-1)
    ratio = l1 / torch.where(l2 > 0, l2, torch.ones_like(l2))
    return ((n**0.5 - ratio) / (n**0.5 - 1)).masked_fill(l2 == 0, 1.0)


def _from_ratio(ratio: float, n: int) -> float:
    return (math.sqrt(n) - ratio) / (math.sqrt(n) - 1)


def expected_gamma(shape: float, power: float, n: int) -> float:
    """Expected Hoyer sparsity for large n when |w_i|^power ~ Gamma(shape) i.i.d.; any scale, on the sphere or off it.

    ||w||_1/||w||_2 -> sqrt(n) Gamma(a + 1/r)/sqrt(Gamma(a) Gamma(a + 2/r)), by the law of large numbers.
    """
    log = math.lgamma(shape + 1 / power) - 0.5 * (math.lgamma(shape) + math.lgamma(shape + 2 / power))
    return _from_ratio(math.sqrt(n) * math.exp(log), n)


def expected_paper(p: float, n: int) -> float:
    """Return the paper's curve over p, exact at finite n: w_i^2 ~ Gamma(k) i.i.d. with k = 0.4 (p - 1).

    The vector w/||w||_2 then has Dirichlet squares, so E ||w||_1/||w||_2 = n Gamma(k+1/2) Gamma(nk)/(Gamma(k)
    Gamma(nk+1/2)). Reconstructed from the figures of arXiv 2103.16013.
    """
    k = 0.4 * (p - 1)
    log = math.lgamma(k + 0.5) - math.lgamma(k) + math.lgamma(n * k) - math.lgamma(n * k + 0.5)
    return _from_ratio(n * math.exp(log), n)


def expected_uniform(p: float, n: int) -> float:
    """Expected Hoyer sparsity of the uniform (cone) distribution on the Lp sphere, large n: |w|^p ~ Gamma(1/p)."""
    return expected_gamma(1 / p, p, n)


def expected_gaussian_dual(p: float, n: int) -> float:
    """Expected Hoyer sparsity for large n if v is Gaussian (our hypothesis): |w|^(2(p-1)) ~ Gamma(1/2)."""
    return expected_gamma(0.5, 2 * (p - 1), n)


def expected_below(p: float, level: float = 0.2) -> float:
    """Return the fraction of weights below `level` x the neuron's mean magnitude, if v is Gaussian (our hypothesis).

    |w| = |v|^e with e = 1/(p-1), so E|w| = 2^(e/2) Gamma((e+1)/2)/sqrt(pi) and the threshold on |v| is
    t = (level E|w|)^(1/e); the fraction is erf(t/sqrt 2).
    """
    e = 1 / (p - 1)
    log_mean = (e / 2) * math.log(2) + math.lgamma((e + 1) / 2) - 0.5 * math.log(math.pi)
    return math.erf(math.exp((math.log(level) + log_mean) / e) / math.sqrt(2))


def suggest_p(target: float, *, level: float = 0.2) -> float:
    """Return the p at which a neuron with Gaussian v has the fraction `target` of its weights below `level` x its mean.

    A prior for a search, from theory: published choices lie close to it. It is no use when the sum of the learning
    rates over the steps (the travel) stays near 1, since the weights then still show their initialisation.

    >>> round(suggest_p(0.9), 2)
    1.1

    Args:
        target: sparsity in [0, 1).
        level: the threshold as a multiple of the neuron's mean `|w|`, in (0, 1); published 0.2.

    Returns:
        p in [1.02, 2], at the end of the range where the target lies beyond what p can reach.
    """
    if not 0.0 <= target < 1.0:
        raise ValueError(f"target must lie in [0, 1), got {target}")
    low, high = P_MIN, P_MAX
    if expected_below(low, level) <= target:
        return low
    if expected_below(high, level) >= target:
        return high
    for _ in range(60):  # bisection: the fraction falls monotonically in p
        middle = (low + high) / 2
        low, high = (middle, high) if expected_below(middle, level) > target else (low, middle)
    return (low + high) / 2
