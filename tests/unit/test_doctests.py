"""Run the examples in the docstrings of public names."""

from __future__ import annotations

import doctest
import sys

import pytest
import torch
from torch import nn

import tune_sparsity

WITH_EXAMPLES = ["Metric", "Normalise", "PiecewiseLinear", "Schedule", "Split", "hoyer", "lpss", "suggest_p"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_example_in_a_docstring_prints_the_result_it_shows(name: str) -> None:
    public = getattr(tune_sparsity, name)
    names = {**vars(sys.modules[public.__module__]), **vars(tune_sparsity), name: public, "torch": torch, "nn": nn}
    found = doctest.DocTestFinder(recurse=False).find(public, name, globs=names)
    examples = [test for test in found if test.examples]
    assert examples
    torch.manual_seed(0)
    for test in examples:
        said: list[str] = []
        outcome = doctest.DocTestRunner().run(test, out=said.append)
        assert outcome.failed == 0, "".join(said)


@pytest.mark.parametrize("name", sorted(tune_sparsity.__all__))
def test_a_public_name_has_a_docstring(name: str) -> None:
    public = getattr(tune_sparsity, name)
    assert isinstance(public, dict) or len((public.__doc__ or "").split()) >= 10
