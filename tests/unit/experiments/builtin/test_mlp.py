"""The built-in networks' shapes, sizes and initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tune_sparsity.experiments.builtin.mlp import lenet_300_100, multilayer_perceptron


def test_lenet_has_its_published_size() -> None:
    model = lenet_300_100()
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert weights == 784 * 300 + 300 * 100 + 100 * 10 == 266_200
    assert sum(p.numel() for p in model.parameters()) == 266_610
    assert model(torch.zeros(2, 784)).shape == (2, 10)


def test_perceptron_ends_in_logits() -> None:
    model = multilayer_perceptron(8, 6, 4)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(p.shape) for p in model.parameters()] == [(6, 8), (6,), (4, 6), (4,)]


def test_initial_weights_have_he_variance_and_initial_biases_are_zero() -> None:
    torch.manual_seed(0)
    model = lenet_300_100()
    assert model[0].weight.std().item() == pytest.approx((2 / 784) ** 0.5, rel=0.02)
    assert model[2].weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert all((layer.bias == 0).all() for layer in model if isinstance(layer, nn.Linear))
