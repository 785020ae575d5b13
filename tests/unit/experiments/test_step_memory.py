"""A training measures the largest number of bytes that tensors take during a step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from tests.helpers.problems import blobs, mlp
from tune_sparsity.experiments import Data, Experiment, Recipe, Split, Training

BATCH, SIZES = 50, (20, 300, 300, 4)
WEIGHTS = 20 * 300 + 300 * 300 + 300 * 4
X, Y = blobs(200)
DATA = Data(Split(X, Y), Split(X, Y), Split(X, Y))
EXPERIMENT = Experiment("blobs", lambda folder: DATA, partial(mlp, *SIZES), Recipe(epochs=2, batch_size=BATCH))
PARAMS: dict[str, dict[str, Any]] = {
    "binary": {},
    "dense": {},
    "gmp": {"final_sparsity": 0.5},
    "lpss": {"final_sparsity": 0.5, "p": 1.4},
    "sparse-momentum": {"final_sparsity": 0.5},
}


def training(method: str, experiment: Experiment = EXPERIMENT, **more: Any) -> Training:
    return Training(experiment, DATA.train, DATA.val, method, {**PARAMS[method], **more}, epochs=2, seed=0)


@pytest.mark.parametrize("method", PARAMS)
def test_train_bytes_are_equal_in_each_epoch_and_each_training(method: str) -> None:
    one = training(method)
    found = [one.epoch()["train_bytes"] for _ in range(2)]
    assert found[0] == found[1] == training(method).epoch()["train_bytes"]
    # The weight, its momentum and its gradient take 4 bytes each. Binary training keeps a weight and its momentum in
    # float16, and releases a gradient as soon as the weight is updated.
    least = {"binary": 4}.get(method, 12)
    assert found[0] > least * WEIGHTS


def test_a_binary_step_takes_less_memory_than_a_dense_adamw_step() -> None:
    dense = training("dense", optimizer="adamw").epoch()["train_bytes"]
    assert training("binary").epoch()["train_bytes"] < 0.6 * dense


def test_momentum_needs_memory_for_its_buffers_and_one_layers_direction() -> None:
    plain, with_momentum = (training("dense", momentum=m).epoch()["train_bytes"] for m in (0.0, 0.9))
    biases = sum(SIZES[1:])
    of_one_layer = 300 * 300  # Nesterov momentum computes a temporary direction, here for the largest layer
    assert with_momentum - plain == 4 * (WEIGHTS + biases + of_one_layer)


def test_a_resumed_training_knows_the_peak_memory() -> None:
    first = training("dense")
    known = first.epoch()["train_bytes"]
    second = training("dense")
    second.load_state_dict(first.state_dict())
    assert second.epoch()["train_bytes"] == known


def test_a_training_whose_checkpoint_lacks_train_bytes_does_not_report_them() -> None:
    first = training("dense")
    first.epoch()
    state = first.state_dict()
    del state["train_bytes"]
    second = training("dense")
    second.load_state_dict(state)
    assert "train_bytes" not in second.epoch()


def test_measuring_the_memory_does_not_change_the_weights() -> None:
    """A training without the measurement ends with the same weights."""
    one, other = training("lpss"), training("lpss")
    other._memory._step = -1
    for each in (one, other):
        metrics = each.epoch()
        assert ("train_bytes" in metrics) == (each is one)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_compiled_network_is_not_measured() -> None:
    compiled = replace(EXPERIMENT, model=lambda: torch.compile(mlp(*SIZES), backend="eager"))
    assert "train_bytes" not in training("dense", compiled).epoch()


def test_accumulated_batches_take_at_least_the_bytes_of_a_single_batch() -> None:
    """The gradients of the first batch take memory while the second batch is computed."""
    together = replace(EXPERIMENT, recipe=Recipe(epochs=2, batch_size=BATCH, accumulate=2))
    alone = training("dense").epoch()["train_bytes"]
    assert training("dense", together).epoch()["train_bytes"] >= alone
