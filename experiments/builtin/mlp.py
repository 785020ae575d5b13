"""Build multilayer perceptrons and LeNets for the built-in experiments."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def multilayer_perceptron(*sizes: int) -> nn.Sequential:
    """Return a multilayer perceptron with ReLU between its linear layers, for inputs of the shape (n, sizes[0]).

    Args:
        sizes: the number of inputs, then the number of neurons in each layer. The last number is that of the outputs.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet_5() -> nn.Sequential:
    """Return LeNet-5 as Caffe defines it, for 28x28 images of the shape (n, 784). It has 430,500 weights and 580
    biases. Max pooling, without ReLU, follows each convolution."""
    network = nn.Sequential(
        *(nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10)),
    )
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network


def lenet_300_100() -> nn.Sequential:
    """Return LeNet-300-100, a multilayer perceptron, for 28x28 images of the shape (n, 784). It has 266,200 weights."""
    return multilayer_perceptron(784, 300, 100, 10)
