"""Define experiments with CIFAR-10 and with a small part of CIFAR-10. torchvision reads or downloads CIFAR-10. The
small part has its own file, which is never downloaded."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tune_sparsity.experiments.base import Data, DataUnavailable, Experiment, Recipe, Split
from tune_sparsity.experiments.builtin.wide_resnet import wide_residual_net
from tune_sparsity.experiments.data.augment import Augmentation, Normalise
from tune_sparsity.experiments.data.files import default_data_dir, downloading, read_checked
from tune_sparsity.experiments.data.splits import hold_out

_FOLDER = "cifar-10-batches-py"
_SUBSET, _SUBSET_MD5 = "cifar10_subset.npz", "56cd74c20ccc8a8b1c42ed1c424ef32b"
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NORMALISE = Normalise((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # of all training images


def _data(images: np.ndarray, labels: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, validation: int) -> Data:
    """Convert arrays of images to Data. Choose the validation examples among the training examples, stratified by
    class.

    Args:
        images, x_test: training and test images, bytes of the shape (n, 32, 32, 3).
        labels, y_test: their classes.
        validation: the number of validation examples.
    """
    x, y = _channels_first(images), torch.tensor(labels, dtype=torch.int64)
    train, val = hold_out(y, validation)
    test = Split(_channels_first(x_test), torch.tensor(y_test, dtype=torch.int64))
    return Data(Split(x[train], y[train]), Split(x[val], y[val]), test, _NORMALISE.description(), _CLASSES)


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def load(data_dir: Path | None = None) -> Data:
    """Load CIFAR-10: 45,000 images for the training, 5,000 for the validation and 10,000 for the test.

    The images are bytes of the shape (n, 3, 32, 32). The validation images are always the same, 500 of each class.
    torchvision reads DATA_DIR/cifar-10-batches-py or DATA_DIR/cifar-10-python.tar.gz. If neither exists, torchvision
    downloads the files into DATA_DIR.

    Raises:
        DataUnavailable: if the download fails or the files are damaged.
    """
    import torchvision.datasets

    root = data_dir or default_data_dir()
    with downloading("CIFAR-10", root, _FOLDER):
        train, test = (torchvision.datasets.CIFAR10(root, train=part, download=True) for part in (True, False))
    if train.data.shape != (50000, 32, 32, 3) or test.data.shape != (10000, 32, 32, 3):
        raise DataUnavailable(f"{root / _FOLDER} is damaged: it should hold 50000 and 10000 images of 32x32 pixels")
    return _data(train.data, np.array(train.targets), test.data, np.array(test.targets), validation=5000)


def load_subset(data_dir: Path | None = None) -> Data:
    """Load 5,000 of CIFAR-10's 60,000 images, from one file. Accuracies with this part cannot be compared with those
    published for CIFAR-10.

    DATA_DIR/cifar10_subset.npz holds the first 400 training images and the first 100 test images of each class. The
    4,000 training images are divided into 3,500 for the training and 500 for the validation. The 1,000 test images are
    for the test.

    Raises:
        DataUnavailable: if the file is missing or damaged.
    """
    path = (data_dir or default_data_dir()) / _SUBSET
    raw = read_checked(path, _SUBSET_MD5, "the file of 4000 + 1000 images")
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        return _data(arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"], validation=500)


_AUGMENT = Augmentation(pad=4, mirror=True, hole=8)
_wrn_22_2 = partial(wide_residual_net, (3, 4, 3), 32, channels=3, classes=10)
cifar10 = Experiment(
    "cifar10",
    load,
    _wrn_22_2,
    Recipe(epochs=250, batch_size=256),
    prepare=_NORMALISE,
    augment=_AUGMENT,
    cuda_graph=True,
)
cifar10_subset = replace(cifar10, name="cifar10-subset", load=load_subset, recipe=Recipe(epochs=100, batch_size=64))
