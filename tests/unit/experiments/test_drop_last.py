"""With drop_last, an epoch skips its last batch if this batch is smaller than the others."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.experiments.test_training import PARAMS, equal, experiment, noisy, plain, small_data, weights
from tune_sparsity.experiments import Recipe, Split
from tune_sparsity.experiments.training import Training


@pytest.mark.parametrize("model", [plain, noisy])
def test_epochs_with_drop_last_skip_different_examples_and_resume_bit_for_bit(model: Any) -> None:
    seen: list[list[int]] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(targets.tolist())
        return F.cross_entropy(outputs, targets % 3)

    data = small_data(97)  # six batches of 16 examples, and one more example
    train = Split(data.train.x, torch.arange(97))
    which = replace(experiment(model, loss=loss), recipe=Recipe(3, 16, drop_last=True))

    def begin(seed: int) -> Training:
        return Training(which, train, data.val, "lpss", PARAMS, epochs=3, seed=seed)

    unbroken = begin(0)
    unbroken.epoch()
    state = copy.deepcopy(unbroken.state_dict())
    while not unbroken.finished:
        unbroken.epoch()
    assert [len(batch) for batch in seen] == [16] * 18
    epochs = [[*chain(*seen[i : i + 6])] for i in (0, 6, 12)]
    assert all(len(set(epoch)) == 96 for epoch in epochs)
    assert len({*range(97)} - set.intersection(*map(set, epochs))) > 1  # epochs leave out different examples
    resumed = begin(9)
    resumed.load_state_dict(state)
    while not resumed.finished:
        resumed.epoch()
    assert seen[18:] == seen[6:18]
    assert equal(weights(resumed), weights(unbroken))
