"""Test wide residual networks: published sizes, shapes, the outputs of a block, and initial weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_sparsity.experiments.builtin.wide_resnet import BasicBlock, wide_residual_net


@pytest.mark.parametrize(
    ("blocks", "width", "channels", "classes", "size", "parameters"),
    [
        ((1, 2, 2), 16, 1, 10, 28, 170_298),  # MNIST
        ((2, 3, 3), 16, 1, 10, 28, 267_514),  # Fashion-MNIST
        ((3, 4, 3), 32, 3, 10, 32, 1_154_074),  # WRN-22-2, CIFAR-10
        ((3, 4, 3), 64, 3, 200, 64, 4_644_120),  # WRN-22-4, Tiny ImageNet
    ],
)
def test_the_networks_have_their_published_sizes(
    blocks: Sequence[int], width: int, channels: int, classes: int, size: int, parameters: int
) -> None:
    model = wide_residual_net(blocks, width, channels, classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)
    main_path = [layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and "cut" not in name]
    assert len(main_path) + 1 == 2 + 2 * sum(blocks)  # 12, 18, 22 and 22 layers


def test_stages_halve_the_image_and_double_the_channels() -> None:
    model = wide_residual_net((1, 2, 2), 16, 1, 10)
    shapes: list[tuple[int, ...]] = []
    x = torch.randn(2, 1, 28, 28)
    for layer in model:
        x = layer(x)
        if isinstance(layer, BasicBlock):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 28, 28), (32, 14, 14), (32, 14, 14), (64, 7, 7), (64, 7, 7)]


@pytest.mark.parametrize(("fan_in", "fan_out", "stride"), [(4, 4, 1), (4, 8, 1), (4, 8, 2), (4, 4, 2)])
def test_a_residual_block_equals_separate_convolutions_and_normalisations(
    fan_in: int, fan_out: int, stride: int
) -> None:
    torch.manual_seed(0)
    block = BasicBlock(fan_in, fan_out, stride).eval()
    x = torch.randn(3, fan_in, 9, 9)

    def normalised(y: Tensor) -> Tensor:
        return y / (1 + 1e-5) ** 0.5  # fresh running statistics: mean 0, variance 1

    inner = normalised(F.conv2d(x, block.conv1.weight, stride=stride, padding=1)).clamp(min=0)
    inner = normalised(F.conv2d(inner, block.conv2.weight, padding=1))
    side = x
    if isinstance(block.shortcut, nn.Sequential):
        side = normalised(
            torch.einsum("oi,nihw->nohw", block.shortcut[0].weight[:, :, 0, 0], x[..., ::stride, ::stride])
        )
    assert isinstance(block.shortcut, nn.Identity) == (stride == 1 and fan_in == fan_out)
    torch.testing.assert_close(block(x), (inner + side).clamp(min=0))


def test_convolutions_have_no_bias_and_initial_weights_with_he_variance() -> None:
    torch.manual_seed(0)
    model = wide_residual_net((3, 4, 3), 32, 3, 10)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is None
            fan_out = layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1]
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_weights_come_from_the_global_generator() -> None:
    torch.manual_seed(3)
    one = wide_residual_net((1, 1), 4, 1, 2)
    torch.manual_seed(3)
    other = wide_residual_net((1, 1), 4, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
