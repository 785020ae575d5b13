"""A small MobileNet-like network, with depthwise and pointwise convolutions, on 3,000 images of Fashion-MNIST."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from tune_sparsity.experiments import Data, Experiment, Recipe, find
from tune_sparsity.experiments.base import Split

CHANNELS = ((16, 32, 1), (32, 64, 2), (64, 128, 1), (128, 128, 1))
IMAGES = 3000


def network() -> nn.Module:
    """A stem, four blocks of a depthwise and a pointwise convolution, and a linear layer: 30,720 weights."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, outputs, stride in CHANNELS:
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
        ]
        layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def load(data_dir: Path | None) -> Data:
    data = find("fashion-mnist-wrn").load(data_dir)
    return replace(data, train=Split(*(part[:IMAGES] for part in data.train)))


mobile = Experiment("mobile", load, network, Recipe(epochs=3, batch_size=64), prepare=find("fashion-mnist-wrn").prepare)
