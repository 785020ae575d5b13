"""A cascade of two networks: each output is equal, bit for bit, to the output of one of the networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tune_sparsity.experiments.cascade import Cascade, margins


@pytest.fixture
def networks() -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    small, large = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    return small, large, torch.randn(64, 6)


def test_a_margin_is_the_difference_of_the_two_largest_probabilities() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])
    assert torch.allclose(margins(probabilities.log()), torch.tensor([0.2, 0.7, 0.0]), atol=1e-6)
    assert margins(torch.randn(5, 4).bfloat16()).dtype == torch.float32
    assert float(margins(torch.tensor([[1000.0, 0.0]]))) == 1.0


@torch.no_grad()
def test_theta_0_uses_only_the_small_network_and_theta_above_1_only_the_large(
    networks: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    small, large, x = networks
    assert torch.equal(Cascade(small, large, 0.0)(x), small(x))
    assert torch.equal(Cascade(small, large, 1.5)(x), large(x))
    assert not torch.equal(small(x), large(x))


@torch.no_grad()
def test_the_large_network_computes_only_the_examples_with_small_margins(
    networks: tuple[nn.Module, nn.Module, Tensor],
) -> None:
    small, large, x = networks
    seen = list[Tensor]()

    def watched(some: Tensor) -> Tensor:
        seen.append(some)
        return large(some)

    theta = 0.3
    outputs = Cascade(small, watched, theta)(x)
    unsure = margins(small(x)) < theta
    assert 0 < int(unsure.sum()) < len(x)
    assert torch.equal(seen[0], x[unsure])
    assert torch.equal(outputs[unsure], large(x[unsure]))
    assert torch.equal(outputs[~unsure], small(x)[~unsure])
    Cascade(small, watched, 0.0)(x)
    assert len(seen) == 1  # the large network was not called again


@torch.no_grad()
def test_nested_inputs_give_the_same_outputs_as_one_tensor(networks: tuple[nn.Module, nn.Module, Tensor]) -> None:
    small, large, x = networks
    nested = {"a": x[:, :3], "b": (x[:, 3:],)}
    group = Cascade(*(lambda n, one=one: one(torch.cat([n["a"], *n["b"]], 1)) for one in (small, large)), 0.3)
    assert torch.equal(group(nested), Cascade(small, large, 0.3)(x))
