"""Test the networks with which self-recurrent spiking networks are compared."""

from __future__ import annotations

import torch

from benchmarks.training.spiking import SIZES, FullNetwork, network, rows_of
from tune_sparsity.experiments.spiking import SpikingNetwork
from tune_sparsity.sparsity import network_size


def test_a_diagonal_recurrent_matrix_computes_the_same_as_self_recurrence() -> None:
    torch.manual_seed(0)
    sizes = (4, 9, 7, 3)
    full, own = FullNetwork(sizes), SpikingNetwork(sizes, skip=False)
    state = {name: tensor for name, tensor in full.state_dict().items() if "recurrent" not in name}
    with torch.no_grad():
        for one, other in zip(full.hidden, own.hidden, strict=True):
            v = torch.randn(one.recurrent.in_features)
            one.recurrent.weight.copy_(torch.diag(v))
            other.self_weight.copy_(v)
    own.load_state_dict(state, strict=False)
    x = torch.randn(6, 8, 4)
    assert torch.allclose(full.eval()(x), own.eval()(x), atol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(full.spikes(x), own.spikes(x), strict=True))
    assert [len(found) for _, found in full.readers()] == [2, 2]


def test_networks_are_compared_at_equal_numbers_of_weights() -> None:
    for name, sizes in SIZES.items():
        weights = {
            kind: network_size(network(kind, sizes)).prunable for kind in ("self", "feed-forward", "full", "wide")
        }
        assert weights["wide"] <= weights["full"] < 1.03 * weights["wide"]
        rows = [row for row in rows_of(name) if row.kind in weights and row.method in ("dense", "gmp")]
        left = [(row.kind, round((1 - row.sparsity) * weights[row.kind])) for row in rows]
        for most in (weights["feed-forward"], round(0.1 * weights["self"])):
            assert {kind for kind, count in left if count == most} == weights.keys()
