"""The built-in networks."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def multilayer_perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers of the given sizes, input first, with ReLU between them; takes inputs (batch, sizes[0])."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet_300_100() -> nn.Sequential:
    """LeNet-300-100 for 28x28 images as (batch, 784): 266,200 weights."""
    return multilayer_perceptron(784, 300, 100, 10)
