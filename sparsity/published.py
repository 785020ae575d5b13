"""The exponents of the published recipe, where they were published and between."""

from __future__ import annotations

from tune_sparsity.sparsity.schedules import PiecewiseLinear

# Over the sparsity (arXiv 2103.16013: 1.4/1.3 for .5, 1.3/1.15 for .8, 1.2/1.07 for .9, first 4 layers/the rest);
# linear between these, and constant beyond, where nothing was published.
published_p_early = PiecewiseLinear(((0.5, 1.4), (0.8, 1.3), (0.9, 1.2)))
published_p = PiecewiseLinear(((0.5, 1.3), (0.8, 1.15), (0.9, 1.07)))
