"""Define experiments with spiking networks. The networks read images row by row, and DNA nucleotide by nucleotide.

The inputs of each step are real numbers, not spikes. Weights convert them to input currents of the neurons.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from tune_sparsity.experiments.base import Data, Experiment, Recipe, Split
from tune_sparsity.experiments.builtin import digits, mnist, uci
from tune_sparsity.experiments.spiking import SpikingNetwork

EXAMPLES = 10_000
"""The number of training images of MNIST and Fashion-MNIST. It is small because a spiking network trains slowly."""


def _sequences(data: Data, shape: tuple[int, int], about: dict[str, Any], examples: int | None = None) -> Data:
    """Return the same data with inputs of the shape (examples, steps, features).

    Args:
        data: the data, with inputs of the shape (examples, any).
        shape: the number of steps and the number of features in a step. If the inputs have more features in a step,
            only the first ones are used.
        about: a description of the sequence. It replaces the entry "flatten" of `Data.preprocessing`.
        examples: the number of training examples to use, from the first on. If None, all are used.
    """
    steps, features = shape

    def split(part: Split, most: int | None = None) -> Split:
        return Split(part.x[:most].unflatten(1, (steps, -1))[:, :, :features].clone(), part.y[:most].clone())

    preprocessing = {name: value for name, value in data.preprocessing.items() if name != "flatten"} | about
    return Data(split(data.train, examples), split(data.val), split(data.test), preprocessing, data.classes)


def load_digits(data_dir: Path | None = None) -> Data:
    """Load the data of the experiment digits as sequences (n, 8, 8). The 8 steps are the rows of an image from top to
    bottom."""
    data = digits.load(data_dir)
    return _sequences(data, (8, 8), {"steps": "8 rows from the top down"})


def load_rows(data_set: str, data_dir: Path | None = None, examples: int = EXAMPLES) -> Data:
    """Load MNIST or Fashion-MNIST as sequences (n, 28, 28). The 28 steps are the rows of an image from top to bottom.
    By default, only 10,000 of the 55,000 training images are used.

    Args:
        data_set: "MNIST" or "FashionMNIST".
        data_dir: the folder of the data. If None, this is the default folder.
        examples: the number of training images, at most 55,000. Each call chooses the same images.
    """
    data = mnist.load(data_set, data_dir)
    return _sequences(data, (28, 28), {"steps": "28 rows from the top down"}, examples)


def load_dna(data_dir: Path | None = None) -> Data:
    """Load the data of the experiment uci-dna as sequences (n, 60, 3). A step is one nucleotide: A, C, G, T are 100,
    010, 001, 000."""
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
