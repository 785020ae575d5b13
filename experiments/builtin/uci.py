"""Load three small data sets of the UCI Machine Learning Repository: DNA, Mushroom and Climate Model Simulation
Crashes.

The files must lie in DATA_DIR/uci, where DATA_DIR is the folder of --data-dir. They are never downloaded.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.base import Data, Experiment, Recipe, Split
from tune_sparsity.experiments.builtin.mlp import multilayer_perceptron
from tune_sparsity.experiments.data.files import default_data_dir, read_checked
from tune_sparsity.experiments.data.libsvm import parse_libsvm
from tune_sparsity.experiments.data.splits import hold_out, occurs_once

_MD5 = {
    "dna.scale": "c9b68bff3cdf6b9b02dd894f17a0b421",
    "dna.scale.t": "a9e51f9e953cb00867f977ef97eb8f7d",
    "agaricus.txt.train": "a88a94251c2969849ee603701cd4878e",
    "agaricus.txt.test": "e13c43414be35bb0c7d40b09e1ad34ad",
    "pop_failures.dat": "e71291b0c79f837d8c9b001795237c43",
}

_CLIMATE_SEARCHED = 400  # simulations


def _text(data_dir: Path | None, name: str) -> str:
    path = (data_dir or default_data_dir()) / "uci" / name
    return read_checked(path, _MD5[name], f"the file {name} of the UCI Machine Learning Repository").decode()


def _libsvm(data_dir: Path | None, name: str, features: int) -> tuple[Tensor, Tensor]:
    return parse_libsvm(_text(data_dir, name), features)


def nucleotides(x: Tensor) -> Tensor:
    """Convert DNA sequences of 60 nucleotides to a one-hot code.

    Args:
        x: shape (n, 180), three numbers for each nucleotide: A is 100, C is 010, G is 001 and T is 000. The Statlog
            files use this code.

    Returns:
        Shape (n, 240), four numbers for each nucleotide, one of which is 1.
    """
    three = x.unflatten(1, (60, 3))
    return torch.cat([three, 1 - three.sum(2, keepdim=True)], dim=2).flatten(1)


def load_dna(data_dir: Path | None = None) -> Data:
    """Load the DNA data: sequences of 60 nucleotides. The classes are exon-intron border (EI), intron-exon border (IE)
    and neither (N).

    The Statlog file dna.scale has 2,000 examples: 1,700 for the training and 300 for the validation, stratified by
    class. The 1,186 examples of dna.scale.t are for the test. A sequence that occurs more than once in dna.scale is
    never a validation example. 82 examples of dna.scale.t also occur in dna.scale. This function does not remove them.
    """
    x, y = _libsvm(data_dir, "dna.scale", 180)
    x_test, y_test = _libsvm(data_dir, "dna.scale.t", 180)
    x, x_test, y, y_test = nucleotides(x), nucleotides(x_test), y - 1, y_test - 1
    train, val = hold_out(y, 300, allowed=occurs_once(x))
    return Data(
        Split(x[train], y[train]),
        Split(x[val], y[val]),
        Split(x_test, y_test),
        {"one_hot": "60 nucleotides, each as A, C, G, T", "flatten": 240},
        ("EI", "IE", "N"),
    )


def load_mushroom(data_dir: Path | None = None) -> Data:
    """Load the Mushroom data in XGBoost's version: 22 properties as 126 zeros and ones. The classes are edible and
    poisonous.

    The training file has 5,713 examples for the training and 800 for the validation, stratified by class. The test file
    has 1,611 examples. No two examples of the two files are equal.
    """
    x, y = _libsvm(data_dir, "agaricus.txt.train", 126)
    train, val = hold_out(y, 800)
    test = Split(*_libsvm(data_dir, "agaricus.txt.test", 126))
    preprocessing = {"one_hot": "the 126 columns of XGBoost's agaricus files"}
    return Data(Split(x[train], y[train]), Split(x[val], y[val]), test, preprocessing, classes=("edible", "poisonous"))


def load_climate(data_dir: Path | None = None) -> Data:
    """Load 540 climate simulations with 18 model parameters. 46 of the simulations crashed. The classes are crash and
    success.

    The first 400 simulations of the file are 320 training and 80 validation examples, stratified by class and always
    the same. The last 140 simulations are for the test. The features are standardised with the means and standard
    deviations of the training examples.

    The paper (arXiv 2103.16013) does not say which examples are its test examples. They are probably the last 140
    simulations. The lowest accuracy in the paper is .9214 = 129/140. A network that always predicts success has this
    accuracy if 129 of 140 test examples are successes. The last 140 simulations contain 129 successes, but the test
    examples of a stratified split would contain 128.
    """
    rows = [line.split() for line in _text(data_dir, "pop_failures.dat").splitlines()]
    table = torch.tensor([[float(cell) for cell in row] for row in rows])
    x, y = table[:, 2:20], table[:, 20].long()  # the first two columns number the simulations
    train, val = hold_out(y[:_CLIMATE_SEARCHED], 80)
    test = torch.arange(_CLIMATE_SEARCHED, len(y))
    mean, std = x[train].mean(0), x[train].std(0)

    def split(part: Tensor) -> Split:
        return Split((x[part] - mean) / std, y[part])

    preprocessing = {"mean": mean.tolist(), "std": std.tolist()}
    return Data(split(train), split(val), split(test), preprocessing, ("crash", "success"))


def dna_perceptron() -> nn.Sequential:
    """Return the network for the DNA data, a perceptron with the layers 240-1024-512-256-128-3 and biases.

    It has 936,195 parameters, the number in the paper (arXiv 2103.16013). The paper does not give the sizes of the
    hidden layers. These powers of two lead to the same number, with a one-hot code of 60 x 4 inputs.
    """
    return multilayer_perceptron(240, 1024, 512, 256, 128, 3)


def small_perceptron(features: int) -> nn.Sequential:
    """Return the network for Mushroom (126 features) or Climate (18 features), a perceptron with the layers
    features-128-256-128-64-2 and biases.

    It has 90,562 parameters for Mushroom and 76,738 for Climate, the numbers in the paper (arXiv 2103.16013). The paper
    does not give the sizes of the hidden layers. The hidden layers 128-384-64 lead to the same numbers. This function
    uses four hidden layers because the network for DNA also has four, with powers of two as sizes.
    """
    return multilayer_perceptron(features, 128, 256, 128, 64, 2)


dna = Experiment("uci-dna", load_dna, dna_perceptron, Recipe(epochs=40, batch_size=64), cuda_graph=True)
mushroom = Experiment(
    "uci-mushroom", load_mushroom, partial(small_perceptron, 126), Recipe(epochs=20, batch_size=64), cuda_graph=True
)
climate = Experiment(
    "uci-climate",
    load_climate,
    partial(small_perceptron, 18),
    Recipe(epochs=20, batch_size=32),
    cuda_graph=True,
    space="lpss-few-examples",
)
