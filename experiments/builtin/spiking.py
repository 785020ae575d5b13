"""Small sequences for spiking networks: images row by row, and DNA place by place. Real currents, nothing drawn."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tune_sparsity.experiments.base import Data, Experiment, Recipe, Split
from tune_sparsity.experiments.builtin import digits, mnist, uci
from tune_sparsity.experiments.spiking import SpikingNetwork

EXAMPLES = 10_000
"""The number of training images of MNIST and Fashion-MNIST: a step of a spiking network takes long."""


def _sequences(data: Data, shape: tuple[int, int], about: dict[str, Any], examples: int | None = None) -> Data:
    """Return the same data as sequences.

    Args:
        shape: steps, and the features of a step: the first ones that the data have there.
        about: takes the place of "flatten" in the description of the preprocessing.
        examples: how many are trained on, the first ones; None: all.
    """
    steps, features = shape

    def split(part: Split, most: int | None = None) -> Split:
        return Split(part.x[:most].unflatten(1, (steps, -1))[:, :, :features].clone(), part.y[:most].clone())

    preprocessing = {name: value for name, value in data.preprocessing.items() if name != "flatten"} | about
    return Data(split(data.train, examples), split(data.val), split(data.test), preprocessing, data.classes)


def load_digits(data_dir: Path | None = None) -> Data:
    """Return the examples and splits of `digits`, as 8 steps of the 8 pixels of a row, from the top down."""
    data = digits.load(data_dir)
    return _sequences(data, (8, 8), {"steps": "8 rows from the top down"})


def load_rows(data_set: str, data_dir: Path | None = None, examples: int = EXAMPLES) -> Data:
    """Return the validation and test data of `mnist` or `fashion-mnist`, and some of their training data, as 28 steps
    of the 28 pixels of a row, from the top down.

    Args:
        data_set: "MNIST" or "FashionMNIST".
        examples: how many images are trained on, at most 55,000; always the same ones.
    """
    data = mnist.load(data_set, data_dir)
    return _sequences(data, (28, 28), {"steps": "28 rows from the top down"}, examples)


def load_dna(data_dir: Path | None = None) -> Data:
    """Return the examples and splits of `uci-dna`, as 60 steps of a nucleotide: A, C, G, T are 100, 010, 001, 000."""
    data = uci.load_dna(data_dir)
    return _sequences(data, (60, 3), {"one_hot": "A, C, G, T as 100, 010, 001, 000", "steps": "60 nucleotides"})


_RECIPE = Recipe(epochs=10, batch_size=64)
_rows = partial(SpikingNetwork, (28, 128, 128, 10))
digits_spiking = Experiment(
    "digits-spiking",
    load_digits,
    partial(SpikingNetwork, (8, 64, 64, 10)),
    Recipe(epochs=30, batch_size=32),
    loss=digits.smoothed_cross_entropy,
)
mnist_spiking = Experiment("mnist-spiking", partial(load_rows, "MNIST"), _rows, _RECIPE)
fashion_spiking = Experiment("fashion-spiking", partial(load_rows, "FashionMNIST"), _rows, _RECIPE)
dna_spiking = Experiment(
    "dna-spiking", load_dna, partial(SpikingNetwork, (3, 64, 64, 3)), Recipe(epochs=40, batch_size=32)
)
