"""Test trainings that end with averaged weights or weights of few bits: measurements, statistics, resumption."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.trainings import MASKED
from tests.unit.experiments.test_training import equal, experiment, noisy, plain, small_data, weights
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.training import Training
from tune_sparsity.sparsity import zeros_for

OPTIONS = {"averaging": "swa", "learning_rate": "hold", "tail": 1.0}


def start(name: str = "lpss", model: Any = noisy, **more: Any) -> Training:
    data = small_data()
    own: dict[str, Any] = {} if name == "dense" else {"final_sparsity": 0.9}
    params = {**own, **({"p": 1.3} if name == "lpss" else {}), **OPTIONS, **more}
    return Training(experiment(model), data.train, data.val, name, params, epochs=10, seed=0)


@pytest.mark.parametrize("name", MASKED)
def test_a_training_resumed_while_weights_are_averaged_equals_an_unbroken_one(name: str) -> None:
    one, other = start(name), start(name)
    for _ in range(9):
        measured = one.epoch()
    assert "val_accuracy_last" in measured
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    ends = [training.epoch() for training in (one, other)]
    assert {**ends[0], "epoch_seconds": 0} == {**ends[1], "epoch_seconds": 0}
    assert equal(weights(one), weights(other))
    zeros, prunable = one.sparse.zeros()
    assert zeros == zeros_for(0.0 if name == "dense" else 0.9, prunable)
    assert zeros == sum(int((layer.weight == 0).sum()) for layer in one.sparse.layers)


@pytest.mark.parametrize("model", [plain, noisy])
def test_each_epoch_of_the_averaging_phase_evaluates_the_averaged_weights(model: Any) -> None:
    training = start(model=model)
    own, val = training.experiment, small_data().val
    for epoch in range(1, 11):
        measured = training.epoch()
        average = training.sparse.average
        assert average is not None
        if epoch < 7:  # the mask is fixed after 7 of the 10 epochs
            assert "val_accuracy_last" not in measured
            continue
        if epoch == 7:
            continue
        assert measured["val_accuracy"] == measured["val_accuracy_at_target"]
        if epoch < 10:
            assert measured["val_accuracy_last"] == evaluate(own, training.model, val)
            before = weights(training)
            with average.swapped():
                if model is plain:
                    assert measured["val_accuracy"] == evaluate(own, training.model, val)
            assert equal(weights(training), before)
    assert average.taken
    assert measured["val_accuracy"] == evaluate(own, training.model, val)


@pytest.mark.parametrize("name", MASKED)
def test_the_last_30_percent_of_a_training_has_codes_and_resumes_bit_for_bit(name: str) -> None:
    one, other = (start(name, weight_bits=4, bits_share=0.3) for _ in range(2))
    for epoch in range(1, 9):
        measured = one.epoch()
        assert bool(one.sparse.codes()) == (epoch >= 7)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    while not one.finished:
        measured, again = one.epoch(), other.epoch()
        assert {**measured, "epoch_seconds": 0} == {**again, "epoch_seconds": 0}
    assert equal(weights(one), weights(other))
    state = weights(one)
    assert all(torch.equal(codes.weight(), state[name]) for name, codes in one.sparse.codes().items())
    assert measured["val_accuracy"] > 0.4
    assert "val_accuracy_last" not in measured


def test_measuring_does_not_change_the_trained_weights() -> None:
    one, other = start(), start()
    while not one.finished:
        one.epoch()
        other.train()
    assert equal(weights(one), weights(other))


def test_running_statistics_are_measured_with_the_averaged_weights() -> None:
    """The outputs equal those of a copy of the network, whose running statistics come from one batch of all training
    examples."""
    training = start()
    while not training.finished:
        training.train()
    data = small_data()
    fresh = copy.deepcopy(training.model)
    fresh.eval()
    fresh[1].reset_running_stats()
    fresh[1].momentum = None
    fresh[1].train()
    fresh(data.train.x)
    fresh.eval()
    training.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(training.model(data.val.x), fresh(data.val.x), rtol=1e-4, atol=1e-4)
    assert isinstance(training.model[1], nn.BatchNorm1d)
    assert training.model[1].momentum == 0.1
