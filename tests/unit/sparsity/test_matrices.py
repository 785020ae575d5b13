"""Which parameters are weight matrices, in networks that are put together in unusual ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from tune_sparsity.sparsity import left_dense, prunable_layers


def names(model: nn.Module) -> list[str]:
    return [layer.name for layer in prunable_layers(model)]


def test_layers_without_inputs_or_outputs_have_no_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(0, 3), nn.Linear(3, 0), nn.Conv1d(0, 3, 1))
    assert names(model) == ["0.weight"]
    assert left_dense(model) == []


def test_a_lazy_layer_is_refused_until_it_has_weights() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match=r"0\.weight belongs to a lazy layer, which has no weights yet: .* call the net"
    ):
        prunable_layers(model)
    model(torch.ones(2, 5))
    assert names(model) == ["0.weight", "1.weight"]


def test_complex_weights_stay_dense() -> None:
    model = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64), nn.Linear(3, 2))
    assert names(model) == ["1.weight"]
    assert left_dense(model) == [("0.weight", "not floating-point", 12)]


def test_a_weight_masked_by_torch_prune_stays_dense_until_its_mask_is_removed() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    prune.l1_unstructured(model[0], "weight", 0.5)
    (dense,) = left_dense(model)
    assert (dense.name, dense.size) == ("0.weight", 12)
    assert dense.reason == "masked by torch.nn.utils.prune, whose remove() makes it an ordinary weight"
    prune.remove(model[0], "weight")
    assert names(model) == ["0.weight", "1.weight"]


def test_weight_norm_on_one_weight_of_an_lstm_leaves_its_other_weights_prunable() -> None:
    model = nn.utils.weight_norm(nn.LSTM(4, 3, bidirectional=True), "weight_ih_l0")
    assert names(model) == ["weight_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"]
    assert left_dense(model) == [("weight_ih_l0", "computed from other parameters", 48)]
