"""Build wide residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEM = 16  # channels


def _convolution(fan_in: int, fan_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(fan_in, fan_out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class BasicBlock(nn.Module):
    """Computes a residual block: two 3x3 convolutions with batch normalisation, and a shortcut. ReLU is applied to the
    sum of the convolutions' result and the shortcut's result.

    The block maps (n, fan_in, h, w) to (n, fan_out, ceil(h/stride), ceil(w/stride)). If `stride` is 1 and fan_in equals
    fan_out, the shortcut is the identity. Otherwise, it is a 1x1 convolution with batch normalisation.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(fan_in, fan_out, 3, stride), nn.BatchNorm2d(fan_out)
        self.conv2, self.norm2 = _convolution(fan_out, fan_out, 3), nn.BatchNorm2d(fan_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or fan_in != fan_out:
            self.shortcut = nn.Sequential(_convolution(fan_in, fan_out, 1, stride), nn.BatchNorm2d(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def wide_residual_net(blocks: Sequence[int], width: int, channels: int, classes: int) -> nn.Sequential:
    """Return a wide residual network for images (n, channels, h, w) of any size. Each block is a BasicBlock.

    The network begins with a 3x3 convolution with 16 output channels. The stages of blocks follow. The first stage has
    `width` channels and the stride 1. Each later stage has twice as many channels as the stage before it, and the
    stride 2. The network ends with global average pooling and one linear layer. Convolutions have no bias and use He's
    initialisation by fan-out. The linear layer uses torch's default initialisation. The numbers of channels come from
    S. Zagoruyko, N. Komodakis, "Wide Residual Networks", BMVC 2016. The order of operations in a block comes from K. He
    et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    Args:
        blocks: the number of blocks in each stage. The network has 2 + 2 sum(blocks) layers, without the shortcuts.
        width: the number of channels of the first stage.
        channels: the number of channels of the images.
        classes: the number of classes.
    """
    widths = [_STEM] + [width << stage for stage in range(len(blocks))]
    layers: list[nn.Module] = [_convolution(channels, _STEM, 3), nn.BatchNorm2d(_STEM), nn.ReLU()]
    for stage, (count, (fan_in, fan_out)) in enumerate(zip(blocks, pairwise(widths), strict=True)):
        stride = 1 if stage == 0 else 2
        layers += [BasicBlock(fan_in, fan_out, stride)]
        layers += [BasicBlock(fan_out, fan_out, 1) for _ in range(count - 1)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    # Convolutions take a quarter less time in this memory format, on CPUs and on GPUs.
    return network.to(memory_format=torch.channels_last)
