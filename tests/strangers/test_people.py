"""Test all steps of a trial, from the checks to the exported files, on networks with unusual parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.strangers.people import PEOPLE
from tests.strangers.test_gallery import EACH_METHOD, PARAMS, SPARSITY
from tests.strangers.whole_way import go_the_whole_way
from tune_sparsity.experiments import Data, Experiment, Recipe, Split


@pytest.mark.parametrize("method", EACH_METHOD)
@pytest.mark.parametrize("name", PEOPLE)
def test_an_unusual_network_passes_all_steps_of_a_trial(name: str, method: str, tmp_path: Path) -> None:
    stranger = PEOPLE[name]
    x = stranger.batch()

    def split(inputs: Tensor) -> Split:
        return Split(inputs, torch.arange(len(inputs)) % 3)

    data = Data(split(x), split(x.flip(1)), split(x.roll(1, 1)))
    experiment = Experiment(name, lambda folder: data, stranger.make, Recipe(2, 24), layers=stranger.rules)
    params = PARAMS[method] if method == "dense" else {"final_sparsity": SPARSITY, **PARAMS[method]}
    assert go_the_whole_way(experiment, method, params, tmp_path).sparse.zeros()[1] == stranger.matrices
