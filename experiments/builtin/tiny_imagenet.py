"""Define the experiment with Tiny ImageNet: 200 classes of 64x64 images. The user must download and unpack the
archive."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tune_sparsity.experiments.base import Data, DataUnavailable, Experiment, Recipe, Split
from tune_sparsity.experiments.builtin.wide_resnet import wide_residual_net
from tune_sparsity.experiments.data.augment import Augmentation, Normalise
from tune_sparsity.experiments.data.files import default_data_dir
from tune_sparsity.experiments.data.splits import hold_out

_FOLDER = "tiny-imagenet-200"
_VALIDATION = 5000
_NORMALISE = Normalise((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))


def read_images(paths: list[Path], size: int = 64) -> Tensor:
    """Read image files. Return bytes of the shape (n, 3, size, size). A grey image gets three equal channels. Raise
    ValueError if a file is not an image of size x size pixels."""
    from PIL import Image

    images = np.empty((len(paths), size, size, 3), np.uint8)
    for image, path in zip(images, paths, strict=True):
        try:
            with Image.open(path) as opened:
                pixels = np.asarray(opened.convert("RGB"))
        except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for a broken header
            raise ValueError(f"{path} is no image that can be read") from error
        if pixels.shape != image.shape:
            raise ValueError(f"{path} is not {size}x{size} pixels")
        image[:] = pixels
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def image_folder(folder: Path) -> tuple[tuple[str, ...], list[Path], Tensor]:
    """Return the classes, the image files and the labels in a folder with one subfolder for each class. The function
    uses torchvision's ImageFolder.

    Returns:
        The names of the classes in alphabetical order, the files in the order of their paths, and their labels.

    Raises:
        OSError: if a class has no images.
    """
    from torchvision.datasets import ImageFolder

    listed = ImageFolder(folder)
    return tuple(listed.classes), [Path(path) for path, _ in listed.samples], torch.tensor(listed.targets)


def labelled_files(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Return the files in val/images and their labels, in the order of val/val_annotations.txt. Each line of
    val_annotations.txt begins with a file name and a class, separated by a tab. Raise ValueError for a line of another
    form or an unknown class."""
    number = {name: kind for kind, name in enumerate(classes)}
    rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    if any(len(row) < 2 or row[1] not in number for row in rows):
        raise ValueError("val_annotations.txt names a class that is not in train")
    labels = torch.tensor([number[row[1]] for row in rows], dtype=torch.int64)
    return [folder / "val" / "images" / row[0] for row in rows], labels


def judging_files(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Return the image files in the folder val, and their labels. The folder may have the published layout or one
    subfolder for each class. Raise ValueError or OSError for any other layout."""
    if (folder / "val" / "val_annotations.txt").is_file():
        return labelled_files(folder, classes)
    found, files, labels = image_folder(folder / "val")
    if found != classes:
        raise ValueError("val has neither val_annotations.txt nor the folders of train")
    return files, labels


def load(data_dir: Path | None = None) -> Data:
    """Load Tiny ImageNet: 95,000 images for the training, 5,000 for the validation and 10,000 for the test.

    The images are bytes of the shape (n, 3, 64, 64). The training and validation images come from the published
    training set. The validation images are always the same, 25 of each class. The test images are the published
    validation set, because the published test set has no labels.

    The files are read from DATA_DIR/tiny-imagenet-200, in the published layout. Instead of the published files, the
    folder val may have one subfolder for each class.

    Raises:
        DataUnavailable: if the files are missing or damaged.
    """
    folder = (data_dir or default_data_dir()) / _FOLDER
    if not (folder / "train").is_dir() or not (folder / "val").is_dir():
        raise DataUnavailable(
            f"Tiny ImageNet is not in {folder}: unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there, "
            "or give the folder that holds tiny-imagenet-200 with --data-dir"
        )
    try:
        classes, files, y = image_folder(folder / "train")
        judged, y_test = judging_files(folder, classes)
        if (len(classes), len(files), len(judged)) != (200, 100_000, 10_000):
            raise ValueError(
                f"it should hold 200 classes, 100000 images in train and 10000 in val, "
                f"but holds {len(classes)}, {len(files)} and {len(judged)}"
            )
        x, x_test = read_images(files), read_images(judged)
    except (OSError, ValueError) as error:
        raise DataUnavailable(f"{folder} is damaged: {error}") from error
    train, val = hold_out(y, _VALIDATION)
    test = Split(x_test, y_test)
    return Data(Split(x[train], y[train]), Split(x[val], y[val]), test, _NORMALISE.description(), classes)


tiny_imagenet = Experiment(
    "tiny-imagenet",
    load,
    partial(wide_residual_net, (3, 4, 3), 64, channels=3, classes=200),
    Recipe(epochs=250, batch_size=256),
    prepare=_NORMALISE,
    augment=Augmentation(pad=8, mirror=True, hole=16),
    cuda_graph=True,
)
