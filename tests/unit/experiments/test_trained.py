"""If an experiment's network is already trained, its first epoch also measures its accuracy with the first masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.problems import accuracy, batches, blobs, mlp
from tune_sparsity.experiments.base import Data, Experiment, Recipe, Split
from tune_sparsity.experiments.checks.network import seeded
from tune_sparsity.experiments.checks.suite import Subject
from tune_sparsity.experiments.training import Training

X, Y = blobs(600)
TRAIN, VAL = Split(X[:400], Y[:400]), Split(X[400:], Y[400:])
PARAMS: dict[str, dict[str, Any]] = {
    "lpss": {"final_sparsity": 0.9, "p": 1.4, "initial_sparsity": 0.3},
    "dense": {},
    **{name: {"final_sparsity": 0.9} for name in ("rigl", "set", "sparse-momentum", "static", "snip", "gmp")},
}


def trained(norm: bool = False) -> nn.Sequential:
    """Return the same trained network at every call."""
    model = mlp(20, 12, 8, 4, norm=norm)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y in batches(*TRAIN, 60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def experiment(model: Any = trained, **options: Any) -> Experiment:
    return Experiment("trained", lambda folder: Data(TRAIN, VAL, VAL), model, Recipe(2, 50), **options)


def start(method: str, model: Any = trained, **options: Any) -> Training:
    return Training(experiment(model, **options), TRAIN, VAL, method, PARAMS[method], epochs=2, seed=0)


@pytest.mark.parametrize("method", ["rigl", "set", "sparse-momentum", "static", "snip"])
def test_val_accuracy_first_mask_is_measured_with_the_masked_trained_weights(method: str) -> None:
    training = start(method, trained=True)
    measured = training.epoch()  # the epoch has too few steps for an update of the masks
    model = trained()
    with torch.no_grad():
        for layer, mask in zip(training.sparse.layers, training.sparse.masks, strict=True):
            model.get_parameter(layer.name).mul_(mask)
    assert training.sparse.zeros() == (332, 368)
    assert measured["val_accuracy_first_mask"] == accuracy(model, *VAL) < accuracy(trained(), *VAL)
    assert "val_accuracy_first_mask" not in training.epoch()


def test_running_statistics_are_measured_anew_under_the_first_masks() -> None:
    training = start("static", lambda: trained(norm=True), trained=True)
    statistics = {name: value.clone() for name, value in trained(norm=True).named_buffers()}
    assert all(torch.equal(value, statistics[name]) for name, value in training.model.named_buffers())
    model = trained(norm=True)
    with torch.no_grad():
        for layer, mask in zip(training.sparse.layers, training.sparse.masks, strict=True):
            model.get_parameter(layer.name).mul_(mask)
    by_old_statistics = accuracy(model, *VAL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
            module.momentum = None
    model.train()(TRAIN.x)
    assert training.epoch()["val_accuracy_first_mask"] == pytest.approx(accuracy(model, *VAL), abs=0.02)
    assert abs(accuracy(model, *VAL) - by_old_statistics) > 0.04


@pytest.mark.parametrize("method", ["lpss", "gmp", "dense"])
def test_methods_that_begin_dense_have_no_first_mask(method: str) -> None:
    training = start(method, trained=True)
    assert training.sparse.zeros()[0] == 0
    assert all(torch.equal(value, trained().state_dict()[name]) for name, value in training.model.state_dict().items())
    assert "val_accuracy_first_mask" not in training.epoch()


def test_untrained_networks_have_no_val_accuracy_first_mask() -> None:
    training = start("static")
    assert "val_accuracy_first_mask" not in training.epoch()


def test_only_a_trained_network_may_have_the_same_weights_under_every_seed() -> None:
    assert list(seeded(Subject(experiment(trained=True)))) == []
    assert [problem.text.partition(":")[0] for problem in seeded(Subject(experiment()))] == [
        "model() gives the same weights under every seed"
    ]


@pytest.mark.parametrize("method", PARAMS)
def test_a_trained_network_goes_on_from_its_checkpoint_bit_for_bit(method: str) -> None:
    unbroken, broken = start(method, trained=True), start(method, trained=True)
    unbroken.epoch()
    broken.epoch()
    resumed = start(method, trained=True)
    resumed.load_state_dict(broken.state_dict())
    first, second = unbroken.epoch(), resumed.epoch()
    assert first | {"epoch_seconds": 0} == second | {"epoch_seconds": 0}
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in unbroken.model.state_dict().items())
