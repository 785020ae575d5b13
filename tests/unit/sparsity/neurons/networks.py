"""Networks whose neurons the tests remove: common architectures, and randomly generated networks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, 4))


def lenet() -> nn.Module:
    """Return a LeNet. Each channel of its last convolution has 16 values, which are 16 inputs of the first linear
    layer."""
    features = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(256, 30), nn.ReLU(), nn.Linear(30, 10))


class Residual(nn.Module):
    """A block that adds the outputs of its layers to its inputs, or to a projection of its inputs."""

    def __init__(self, inputs: int, outputs: int, width: int, groups: int = 1) -> None:
        super().__init__()
        layers = [nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, outputs, 1))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Dense(nn.Module):
    """A block that concatenates its inputs and the outputs of its convolution along the channels."""

    def __init__(self, inputs: int, more: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, more, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.norm(x).relu())], 1)


def resnet() -> nn.Module:
    blocks = [nn.Conv2d(3, 8, 3), Residual(8, 8, 12), Residual(8, 16, 12), Residual(16, 16, 8)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def densenet() -> nn.Module:
    blocks = [nn.Conv2d(3, 8, 3), Dense(8, 6), Dense(14, 6), nn.BatchNorm2d(20), nn.Conv2d(20, 10, 1), Dense(10, 6)]
    return nn.Sequential(*blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def grouped() -> nn.Module:
    """Return a network with a depthwise convolution, a convolution with 16 groups, and a convolution with 2 groups."""
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=16), nn.PReLU(16)]
    layers += [nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 48, 3, groups=16), nn.ReLU(), nn.Conv2d(48, 24, 1)]
    layers += [nn.ReLU(), nn.Conv2d(24, 36, 1, groups=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(36, 5))


def transposed() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, stride=2), nn.InstanceNorm2d(12, affine=True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(12, 18, 3, groups=2), nn.ReLU(), nn.Conv2d(18, 3, 1))


class Attention(nn.Module):
    """Attention with several heads, which is made of two linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, places, width = x.shape
        parts = self.qkv(x).reshape(batch, places, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return self.out(mixed.transpose(1, 2).reshape(batch, places, width))


class Block(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Vit(nn.Module):
    """A small vision transformer with a learned class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 16, 4, stride=4), nn.Sequential(Block(16), Block(16))
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 10, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
    return nn.Sequential(nn.Linear(6, 12), layer, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.gru = nn.Linear(6, 8), nn.GRU(8, 10, batch_first=True)
        self.after, self.head = nn.Linear(10, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(self.before(x).relu())
        return self.head(self.after(states[:, -1]).relu())


class Computed(nn.Module):
    """A network that applies a function to the outputs of its hidden layer. The head reads the result."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.function, self.hidden, self.head = function, nn.Linear(6, 8), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.hidden(x)))


def generated(seed: int) -> nn.Module:
    """Return a network of random blocks for images of 3 x 8 x 8: residual, `Dense`, grouped, plain and transposed
    blocks."""
    draw, width, blocks = random.Random(seed), 8, list[nn.Module]([nn.Conv2d(3, 8, 3, padding=1)])
    for _ in range(draw.randint(1, 4)):
        kind = draw.choice(["residual", "projection", "dense", "grouped", "depthwise", "plain", "transposed"])
        outputs = draw.choice([4, 8, 12]) if kind in ("projection", "plain", "transposed") else width
        if kind in ("residual", "projection"):
            blocks.append(Residual(width, outputs, 8, draw.choice([1, 2, 4, 8])))
        elif kind == "dense":
            blocks.append(Dense(width, 4))
            outputs = width + 4
        elif kind == "grouped":
            blocks.append(nn.Conv2d(width, 2 * width, 3, padding=1, groups=draw.choice([2, 4])))
            outputs = 2 * width
        elif kind == "depthwise":
            blocks.append(nn.Conv2d(width, width, 3, padding=1, groups=width))
        elif kind == "plain":
            blocks.append(nn.Conv2d(width, outputs, 3, padding=1, bias=draw.random() < 0.5))
        else:
            blocks.append(nn.ConvTranspose2d(width, outputs, 3, padding=1))
        width = outputs
        blocks.append(draw.choice([nn.Identity(), nn.ReLU(), nn.Sigmoid(), nn.BatchNorm2d(width), nn.PReLU(width)]))
    # torch-pruning cannot follow concatenated channels (Dense) through Flatten if each channel has several places.
    places = 1 if any(isinstance(block, Dense) for block in blocks) else draw.choice([1, 2])
    head: Sequence[nn.Module] = [nn.AdaptiveAvgPool2d(places), nn.Flatten(), nn.LazyLinear(16), nn.ReLU()]
    network = nn.Sequential(*blocks, *head, nn.Linear(16, 5))
    network(torch.zeros(2, 3, 8, 8))
    return network
