"""Test CIFAR-10: the splits of the data set in torchvision, the small subset, and one-line errors for missing data."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets

from tune_sparsity.experiments.base import Data, DataUnavailable
from tune_sparsity.experiments.builtin.cifar import cifar10, cifar10_subset, load, load_subset

SUBSET = "cifar10_subset.npz"


class FakeCifar10:
    """A stand-in for torchvision's class. The pixels of each image encode the image's number."""

    sizes = (50000, 10000)

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        assert download
        print("Files already downloaded and verified")
        n = self.sizes[0] if train else self.sizes[1]
        self.targets = [(k * 7 + train) % 10 for k in range(n)]
        number = np.arange(n, dtype="<u4").view(np.uint8).reshape(n, 1, 1, 4)
        self.data = np.ascontiguousarray(np.broadcast_to(number[..., :3], (n, 32, 32, 3)))


def numbers(data: torch.Tensor) -> torch.Tensor:
    return (data[:, :, 0, 0].long() * torch.tensor([1, 256, 65536])).sum(1)


@pytest.mark.slow
def test_the_splits_have_the_images_and_labels_of_torchvision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar10)
    data = load(tmp_path)
    assert capsys.readouterr().out == ""
    assert [tuple(split.x.shape) for split in (data.train, data.val, data.test)] == [
        (45000, 3, 32, 32),
        (5000, 3, 32, 32),
        (10000, 3, 32, 32),
    ]
    for split, first in ((data.train, 1), (data.val, 1), (data.test, 0)):
        assert split.x.dtype == torch.uint8
        assert torch.equal(split.y, (numbers(split.x) * 7 + first) % 10)
    assert torch.bincount(data.val.y).tolist() == [500] * 10
    assert sorted([*numbers(data.train.x).tolist(), *numbers(data.val.x).tolist()]) == list(range(50000))
    assert data.classes[3] == "cat"


def test_an_incomplete_data_set_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar10)
    monkeypatch.setattr(FakeCifar10, "sizes", (4000, 1000))
    with pytest.raises(DataUnavailable, match="should hold 50000"):
        load(tmp_path)


def test_missing_data_without_internet_access_give_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(DataUnavailable) as error:
        load(tmp_path / "not" / "there")
    message = str(error.value)
    assert "\n" not in message
    for part in ("CIFAR-10", str(tmp_path / "not" / "there"), "--data-dir", "cifar-10-batches-py"):
        assert part in message
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


# ---- the subset


@pytest.fixture(scope="module")
def subset(data_dir: Path) -> Data:
    if not (data_dir / SUBSET).is_file():
        pytest.skip(f"no {SUBSET} in the data folder")
    return load_subset(data_dir)


def test_the_subset_has_exactly_the_examples_of_its_file(subset: Data, data_dir: Path) -> None:
    assert [tuple(split.x.shape) for split in (subset.train, subset.val, subset.test)] == [
        (3500, 3, 32, 32),
        (500, 3, 32, 32),
        (1000, 3, 32, 32),
    ]
    assert [torch.bincount(split.y).tolist() for split in (subset.train, subset.val, subset.test)] == [
        [350] * 10,
        [50] * 10,
        [100] * 10,
    ]
    arrays = np.load(data_dir / SUBSET)
    assert np.array_equal(subset.test.x.permute(0, 2, 3, 1).numpy(), arrays["x_test"])
    assert np.array_equal(subset.test.y.numpy(), arrays["y_test"])

    def examples(x: np.ndarray, y: np.ndarray) -> list[tuple[bytes, int]]:
        return sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))

    x, y = (torch.cat(parts).numpy() for parts in zip(subset.train, subset.val, strict=True))
    assert examples(x.transpose(0, 2, 3, 1), y) == examples(arrays["x_train"], arrays["y_train"])


def test_every_load_of_the_subset_gives_the_same_split(subset: Data, data_dir: Path) -> None:
    torch.manual_seed(8)
    assert load_subset(data_dir).checksum() == subset.checksum()


def test_a_missing_or_damaged_subset_file_raises_data_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="is missing") as error:
        load_subset(tmp_path)
    assert str(tmp_path / SUBSET) in str(error.value)
    (tmp_path / SUBSET).write_bytes(b"PK")
    with pytest.raises(DataUnavailable, match="is damaged") as error:
        load_subset(tmp_path)
    assert "\n" not in str(error.value)


# ---- the experiments


def test_the_experiments_train_a_wide_resnet_22_2_on_augmented_byte_images(subset: Data) -> None:
    assert (cifar10.recipe.epochs, cifar10.name, cifar10_subset.name) == (250, "cifar10", "cifar10-subset")
    for experiment in (cifar10, cifar10_subset):
        model = experiment.model()
        assert sum(p.numel() for p in model.parameters()) == 1_154_074
        assert experiment.augment is not None
        x = experiment.augment(subset.train.x[:4], torch.Generator().manual_seed(0))
        assert x.dtype == torch.uint8
        assert model(experiment.prepare(x)).shape == (4, 10)
