"""Binary networks and their stored form compute the same. Networks that cannot be binary are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.problems import mlp
from tune_sparsity.sparsity.binary.bits import pack, signs
from tune_sparsity.sparsity.binary.blocks import BinaryBlock
from tune_sparsity.sparsity.binary.convert import as_stored, fold, make_binary


def convolutional() -> nn.Sequential:
    features = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1)),
    )
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), features, nn.Flatten(), nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 5)
    )


NETWORKS: list[Callable[[], nn.Module]] = [
    lambda: mlp(64, 33, 12, 5),
    convolutional,
    lambda: nn.Sequential(nn.Linear(64, 5)),
]


def trained(model: nn.Module, activations: str) -> list[BinaryBlock]:
    blocks = make_binary(model, activations)
    for seed in range(4):
        model(torch.rand(40, 64, generator=torch.Generator().manual_seed(seed)))
    for block in blocks:
        nn.init.normal_(block.bias, std=0.3)
    return blocks


@pytest.mark.parametrize("activations", ["binary", "real"])
@pytest.mark.parametrize("make", NETWORKS)
def test_folded_and_loaded_networks_compute_the_same_bit_for_bit(
    make: Callable[[], nn.Module], activations: str
) -> None:
    torch.manual_seed(0)
    model = make()
    trained(model, activations)
    x = torch.rand(50, 64)
    with torch.no_grad():
        before = model.eval()(x)
        layers = fold(model)
        after = model(x)
        assert torch.equal(before, after)
        other = make()
        as_stored(other, model.state_dict())
        other.load_state_dict(model.state_dict())
        assert torch.equal(other.eval()(x), after)
    assert not any(param.requires_grad for param in model.parameters())
    assert set(model.state_dict()) == {f"{name}.{own}" for name, layer in layers for own in layer.state_dict()}
    assert all(set(layer.weight.unique().tolist()) <= {-1, 1} for _, layer in layers)


def test_hidden_thresholds_are_whole_numbers_of_two_bytes() -> None:
    torch.manual_seed(0)
    model = mlp(64, 33, 12, 5)
    trained(model, "binary")
    fold(model)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items() if "weight" not in name}
    assert types == {
        "0.threshold": torch.float32,
        "2.threshold": torch.int16,
        "4.scale": torch.float32,
        "4.offset": torch.float32,
    }


@pytest.mark.parametrize("n", range(1, 131))
def test_counting_different_bits_gives_the_inner_product_of_signs(n: int) -> None:
    """The inner product of n signs x and n signs w is n - 2 popcount(x xor w), for every n."""
    generator = torch.Generator().manual_seed(n)
    x, w = (signs(torch.randn(6, n, generator=generator)) for _ in range(2))
    counted = [
        [n - 2 * sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True)) for other in pack(w > 0).tolist()]
        for one in pack(x > 0).tolist()
    ]
    assert counted == (x @ w.t()).int().tolist()


def test_a_network_that_is_not_binary_stays_as_it_is() -> None:
    model = mlp(64, 8, 5)
    before = str(model)
    as_stored(model, mlp(64, 8, 5).state_dict())
    assert str(model) == before


class OfOnesOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (OfOnesOwn(), "the method binary needs an nn.Sequential of layers, but the network is a OfOnesOwn"),
        (
            nn.Sequential(nn.Linear(4, 4), OfOnesOwn()),
            "the method binary needs an nn.Sequential of layers, but 1 is a OfOnesOwn",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), r"1 \(LayerNorm\) has no binary form"),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), r"0 \(BatchNorm1d\) has no binary form"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), r"0 \(Conv2d\) has no binary form: it must have groups=1"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2)),
            r"1 \(MaxPool2d\) has no binary form: its stride must",
        ),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), r"1 \(ReLU\) has no binary form"),
        (nn.Sequential(nn.Flatten()), "no linear layer or convolution that can be binary"),
    ],
)
def test_a_network_without_a_binary_form_is_refused_in_one_line(model: nn.Module, line: str) -> None:
    before = str(model)
    with pytest.raises(ValueError, match=line) as told:
        make_binary(model)
    assert "\n" not in str(told.value)
    assert str(model) == before
