"""Products that are computed by counting bits equal the products of the numbers exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.problems import mlp
from tune_sparsity.sparsity.binary import popcount
from tune_sparsity.sparsity.binary.bits import signs
from tune_sparsity.sparsity.binary.convert import fold, make_binary
from tune_sparsity.sparsity.binary.inference import Kind, SignLayer, whole_threshold
from tune_sparsity.sparsity.binary.popcount import PopcountLayer, counting_bits, to_words
from tune_sparsity.sparsity.binary.products import LinearProduct

pytestmark = pytest.mark.skipif(
    not popcount.available(),
    reason="the compiled bit operations are missing: apt-get install gcc libc6-dev, then make compile",
)


def random_signs(seed: int, *shape: int) -> Tensor:
    return signs(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def layer(rows: int, fan_in: int, kind: Kind) -> SignLayer:
    weight = random_signs(rows, rows, fan_in).to(torch.int8)
    constants = {
        "threshold": whole_threshold(2 * torch.randn(rows) * fan_in**0.5, fan_in),
        "scale": torch.rand(rows) + 0.1,
        "offset": torch.randn(rows),
    }
    return SignLayer(weight, LinearProduct(), kind, constants)


@pytest.mark.parametrize("fan_in", [*range(1, 131), 255, 256, 257, 1000, 1024])
def test_popcount_layers_equal_sign_layers_for_every_fan_in(fan_in: int) -> None:
    for rows in (1, 7, 64, 65, 130):
        x = random_signs(fan_in, 3, fan_in)
        for kind in ("none", "relu", "sign"):
            one = layer(rows, fan_in, kind)  # type: ignore[arg-type]
            counted = PopcountLayer(one)
            expected = one(x)
            assert torch.equal(counted(x), expected)
            assert torch.equal(counted(to_words(x >= 0)), expected)
        counted.packs = True  # the last layer of the loop has the kind "sign": only signs can be packed
        assert torch.equal(counted(x), to_words(expected >= 0))


def test_thresholds_beyond_all_products_give_constant_signs() -> None:
    one = layer(4, 20, "sign")
    one.threshold = whole_threshold(torch.tensor([-1e9, -20.0, 20.0, 1e9]), 20)
    one.weight.data[:] = 1
    x = torch.stack([torch.ones(20), -torch.ones(20)])
    assert one(x).tolist() == [[1, 1, 1, -1], [1, 1, -1, -1]]
    assert torch.equal(PopcountLayer(one)(x), one(x))


@pytest.mark.parametrize("batch", [1, 33])
def test_a_network_with_popcount_layers_computes_the_same_outputs(batch: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 8, 3), nn.ReLU())
    for model in (mlp(36, 70, 65, 12, 5), nn.Sequential(convolution, nn.Flatten(), *mlp(128, 30, 9, 4))):
        make_binary(model)
        for _ in range(3):
            model(torch.rand(50, 36))
        fold(model.eval())
        quick = counting_bits(model)
        assert sum(isinstance(one, PopcountLayer) for one in quick.modules()) == 3
        x = torch.rand(batch, 36)
        assert torch.equal(quick(x), model(x))
        assert not any(isinstance(one, PopcountLayer) for one in model.modules())


def test_inputs_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 100 signs"):
        PopcountLayer(layer(3, 100, "none"))(torch.ones(2, 20))
