"""Compute Hoyer sparsity, its expected value for several distributions of the weights, and an exponent p of the Lp
sphere for a target sparsity.

Hoyer sparsity measures how much a row is concentrated on few weights. It is not the fraction of zeros. Report the two
numbers under different names.
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

    The result is 0 if all magnitudes are equal, and 1 if a single weight is nonzero. For a row of zeros, the result is
    also 1. Source: Hoyer, JMLR 5 (2004).

    Args:
        w: weights of the shape (..., n) with n >= 2.

    Returns:
        Values in [0, 1] of the shape (...).

    Raises:
        ValueError: if n < 2.
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
    """Return the expected Hoyer sparsity of a row of n weights w_i, for large n. The function assumes that the numbers
    |w_i|^`power` are independent and have a gamma distribution. The argument `shape` is the shape parameter of this
    distribution. Its scale parameter has no effect.

    By the law of large numbers, ||w||_1/||w||_2 approaches
    sqrt(n) G(shape + 1/power)/sqrt(G(shape) G(shape + 2/power)), where G is the gamma function.
    """
    log = math.lgamma(shape + 1 / power) - 0.5 * (math.lgamma(shape) + math.lgamma(shape + 2 / power))
    return _from_ratio(math.sqrt(n) * math.exp(log), n)


def expected_paper(p: float, n: int) -> float:
    """Return the expected Hoyer sparsity of a row of n weights w_i that were trained on the Lp sphere, as in the LpSS
    paper (arXiv 2103.16013). The function assumes that the numbers w_i^2 are independent and have a gamma distribution
    with the shape k = 0.4 (p - 1). If this is true, the result is exact for every n.

    The squares of w/||w||_2 then have a Dirichlet distribution. The mean of ||w||_1/||w||_2 is therefore
    n G(k + 1/2) G(n k)/(G(k) G(n k + 1/2)), where G is the gamma function. The formula was reconstructed from the
    figures of the paper.
    """
    k = 0.4 * (p - 1)
    log = math.lgamma(k + 0.5) - math.lgamma(k) + math.lgamma(n * k) - math.lgamma(n * k + 0.5)
    return _from_ratio(n * math.exp(log), n)


def expected_uniform(p: float, n: int) -> float:
    """Return the expected Hoyer sparsity of a row of n weights, for large n, if the row has a uniform distribution on
    the Lp sphere (the cone measure). Such a row is a row of independent numbers g_i divided by their Lp norm, and
    |g_i|^p has a gamma distribution with the shape 1/p."""
    return expected_gamma(1 / p, p, n)


def expected_gaussian_dual(p: float, n: int) -> float:
    """Return the expected Hoyer sparsity of a row of n weights w, for large n, if the numbers v = sign(w)|w|^(p-1) (the
    dual image of w) are Gaussian with the mean 0. This distribution is a hypothesis of this project. The numbers
    |w|^(2(p-1)) then have a gamma distribution with the shape 1/2."""
    return expected_gamma(0.5, 2 * (p - 1), n)


def expected_below(p: float, level: float = 0.2) -> float:
    """Return the fraction of a neuron's weights w whose magnitude is below `level` times the neuron's mean magnitude.
    The function assumes that the numbers v = sign(w)|w|^(p-1) (the dual image of w) are Gaussian with the mean 0. This
    distribution is a hypothesis of this project.

    The variance of v has no effect, so let it be 1. Then |w| = |v|^e with e = 1/(p-1), and
    E|w| = 2^(e/2) G((e+1)/2)/sqrt(pi), where G is the gamma function. The threshold for |v| is t = (level E|w|)^(1/e),
    and the fraction is erf(t/sqrt 2).
    """
    e = 1 / (p - 1)
    log_mean = (e / 2) * math.log(2) + math.lgamma((e + 1) / 2) - 0.5 * math.log(math.pi)
    return math.erf(math.exp((math.log(level) + log_mean) / e) / math.sqrt(2))


def suggest_p(target: float, *, level: float = 0.2) -> float:
    """Return the exponent p of the Lp sphere for a target sparsity. With this p, the fraction `target` of a neuron's
    weights w has a magnitude below `level` times the neuron's mean `|w|`, if the numbers v = sign(w)|w|^(p-1) (the dual
    image of w) are Gaussian.

    Use the result as the first guess in a search for the best p. The values of p in the LpSS paper (arXiv 2103.16013)
    lie near it. The result is not useful if the sum of the learning rates over all steps (the metric `travel`) is not
    far above 1, because the trained weights then depend on their initialisation.

    >>> round(suggest_p(0.9), 2)
    1.1

    Args:
        target: sparsity in [0, 1).
        level: the threshold as a multiple of the neuron's mean `|w|`, in (0, 1). The value in the paper is 0.2.

    Returns:
        p in [1.02, 2]. If no p in this range gives the target, p is the nearest end of the range.

    Raises:
        ValueError: if the target is out of range.
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
