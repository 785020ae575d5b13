"""Define experiments with MNIST and Fashion-MNIST. torchvision downloads missing files."""

from __future__ import annotations

import gzip
import math
import struct
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tune_sparsity.experiments.base import Data, DataUnavailable, Experiment, Recipe, Split
from tune_sparsity.experiments.builtin.mlp import lenet_5, lenet_300_100
from tune_sparsity.experiments.builtin.wide_resnet import wide_residual_net
from tune_sparsity.experiments.data.augment import Augmentation, Normalise
from tune_sparsity.experiments.data.files import check_md5, default_data_dir, downloading

_VALIDATION = 5000
_FILES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}
# MD5 of the gzip files, as torchvision lists them.
_MD5 = {
    "MNIST": {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}
_CLASSES = {
    "MNIST": tuple(str(digit) for digit in range(10)),
    "FashionMNIST": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}


def parse_idx(raw: bytes) -> Tensor:
    """Return the uint8 tensor in an IDX file. The file begins with four bytes: 0, 0, 8 (the code of the type uint8) and
    the number of dimensions. Then follow the size of each dimension, as a big-endian 32-bit integer, and the values.

    Raises:
        ValueError: if the first bytes or the length are not those of an IDX file with uint8 values.
    """
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError("not an IDX file of bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != math.prod(shape):
        raise ValueError(f"holds {body.size} bytes where its header says {math.prod(shape)}")
    return torch.from_numpy(body.reshape(shape).copy())


def _read(folder: Path, data_set: str, stem: str) -> Tensor:
    """Return the tensor in one file of the data set. The file may be gzipped. Raise DataUnavailable if the file is
    damaged.

    Args:
        folder: the folder of the file.
        data_set: "MNIST" or "FashionMNIST".
        stem: the name of the file without .gz.
    """
    plain, packed = folder / stem, folder / f"{stem}.gz"
    path = plain if plain.is_file() else packed
    try:
        raw = path.read_bytes()
        if path is packed:
            check_md5(raw, _MD5[data_set][stem])
            raw = gzip.decompress(raw)
        return parse_idx(raw)
    except (OSError, ValueError, EOFError) as error:
        raise DataUnavailable(
            f"{path} is damaged ({error}): delete it, and run the command again to download it"
        ) from error


def _present(folder: Path) -> bool:
    return all((folder / stem).is_file() or (folder / f"{stem}.gz").is_file() for stem in _FILES.values())


def _raw(data_set: str, data_dir: Path | None) -> dict[tuple[str, str], Tensor]:
    """Return the tensors of the four files, as a dict from (split, content) to the tensor. A key is, for example,
    ("train", "images"). torchvision downloads missing files.

    Raises:
        DataUnavailable: if the download fails or a file is damaged.
    """
    root = data_dir or default_data_dir()
    folder = root / data_set / "raw"
    if not _present(folder):
        import torchvision.datasets

        with downloading(data_set, root, f"{data_set}/raw"):
            getattr(torchvision.datasets, data_set)(root, download=True)
    raw = {key: _read(folder, data_set, stem) for key, stem in _FILES.items()}
    for part, count in (("train", 60000), ("test", 10000)):
        if raw[part, "images"].shape != (count, 28, 28) or raw[part, "labels"].shape != (count,):
            raise DataUnavailable(f"{folder} is damaged: the {part} set should hold {count} examples of 28x28 pixels")
    return raw


def load_images(data_set: str, normalise: Normalise, data_dir: Path | None = None) -> Data:
    """Load 55,000 training images, 5,000 validation images and 10,000 test images, as bytes of the shape (n, 1, 28,
    28). The validation images are always the same.

    The function reads the files, unpacked or gzipped, in DATA_DIR/<data set>/raw. Missing files are downloaded into
    this folder.

    Args:
        data_set: "MNIST" or "FashionMNIST".
        normalise: the conversion from the bytes to network inputs. This function does not apply the conversion. It only
            stores `normalise.description()` in `Data.preprocessing`.
        data_dir: DATA_DIR. If None, this is the default folder.
    """
    raw = _raw(data_set, data_dir)
    order = torch.randperm(60000, generator=torch.Generator().manual_seed(0))
    train, val = order[_VALIDATION:], order[:_VALIDATION]
    images, labels = raw["train", "images"].unsqueeze(1), raw["train", "labels"].long()
    return Data(
        Split(images[train], labels[train]),
        Split(images[val], labels[val]),
        Split(raw["test", "images"].unsqueeze(1), raw["test", "labels"].long()),
        normalise.description(),
        _CLASSES[data_set],
    )


def load(data_set: str, data_dir: Path | None = None) -> Data:
    """Load the images of `load_images` in the same splits, as floats of the shape (n, 784). Pixels x become (x/255 -
    mean)/std. The mean and the standard deviation are those of the training images."""
    data = load_images(data_set, Normalise((0.0,), (1.0,)), data_dir)
    train, val, test = (Split(part.x.float(), part.y) for part in (data.train, data.val, data.test))
    mean, std = float(train.x.mean()) / 255, float(train.x.std()) / 255

    def normalised(part: Split) -> Split:
        return Split(part.x.div_(255).sub_(mean).div_(std).flatten(1), part.y)

    preprocessing = {"divide": 255, "mean": mean, "std": std, "flatten": 784}
    return Data(normalised(train), normalised(val), normalised(test), preprocessing, data.classes)


_RECIPE = Recipe(epochs=20, batch_size=128)
mnist = Experiment("mnist", partial(load, "MNIST"), lenet_300_100, _RECIPE, cuda_graph=True)
mnist_lenet5 = Experiment("mnist-lenet5", partial(load, "MNIST"), lenet_5, _RECIPE, cuda_graph=True)
fashion_mnist = Experiment("fashion-mnist", partial(load, "FashionMNIST"), lenet_300_100, _RECIPE, cuda_graph=True)

# The published experiments use MNIST's normalisation for both data sets.
_NORMALISE = Normalise((0.13,), (0.31,))
mnist_wrn = Experiment(
    "mnist-wrn",
    partial(load_images, "MNIST", _NORMALISE),
    partial(wide_residual_net, (1, 2, 2), 16, channels=1, classes=10),
    Recipe(epochs=40, batch_size=256),
    prepare=_NORMALISE,
    cuda_graph=True,
)
fashion_mnist_wrn = Experiment(
    "fashion-mnist-wrn",
    partial(load_images, "FashionMNIST", _NORMALISE),
    partial(wide_residual_net, (2, 3, 3), 16, channels=1, classes=10),
    Recipe(epochs=50, batch_size=256),
    prepare=_NORMALISE,
    augment=Augmentation(pad=4, mirror=True, hole=6),
    cuda_graph=True,
)
