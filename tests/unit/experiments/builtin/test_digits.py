"""Test the splits of the digits: sizes, class proportions, and no example in two splits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tune_sparsity.experiments.base import Data
from tune_sparsity.experiments.builtin.digits import digits, load
from tune_sparsity.experiments.builtin.digits import model as network


@pytest.fixture(scope="module")
def data() -> Data:
    return load()


def test_the_splits_have_the_expected_sizes_and_types(data: Data) -> None:
    assert [len(split.x) for split in (data.train, data.val, data.test)] == [1257, 180, 360]
    for split in (data.train, data.val, data.test):
        assert split.x.shape[1:] == (64,)
        assert split.y.shape == (len(split.x),)
        assert (split.x.dtype, split.y.dtype) == (torch.float32, torch.int64)


def test_splits_are_stratified(data: Data) -> None:
    whole = torch.bincount(torch.tensor(load_digits().target), minlength=10) / 1797
    for split in (data.train, data.val, data.test):
        share = torch.bincount(split.y, minlength=10) / len(split.y)
        assert (share - whole).abs().max() < 1.5 / len(split.y)


def test_no_example_is_in_two_splits_and_none_is_lost(data: Data) -> None:
    images, labels = load_digits(return_X_y=True)
    mean, std = data.preprocessing["mean"], data.preprocessing["std"]

    def examples(split: torch.Tensor, y: torch.Tensor) -> list[tuple[int, ...]]:
        pixels = ((split.double() * std + mean) * data.preprocessing["divide"]).round().int()
        return [(*row, label) for row, label in zip(pixels.tolist(), y.tolist(), strict=True)]

    ours = [one for split in (data.train, data.val, data.test) for one in examples(*split)]
    assert sorted(ours) == sorted((*map(int, x), int(y)) for x, y in zip(images, labels, strict=True))
    assert len(set(ours)) == 1797  # the data set holds no duplicates, so the splits share nothing


def test_normalisation_is_that_of_the_training_images(data: Data) -> None:
    assert data.train.x.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert data.train.x.std().item() == pytest.approx(1.0, abs=1e-4)
    assert abs(data.val.x.mean().item()) > 1e-4  # its own mean was not taken


def test_every_load_gives_the_same_split(data: Data) -> None:
    torch.manual_seed(123)
    again = load(Path("there/is/no/such/folder"))
    assert again.checksum() == data.checksum()
    assert again.preprocessing == data.preprocessing


def test_the_experiment_has_ten_classes_and_a_network_for_them(data: Data) -> None:
    assert digits.name == "digits"
    assert data.classes == tuple("0123456789")
    assert network()(data.val.x).shape == (180, 10)
    assert sum(p.numel() for p in network().parameters() if p.dim() > 1) == 64 * 300 + 300 * 100 + 100 * 10


def test_the_split_equals_that_of_scikit_learns_train_test_split(data: Data) -> None:
    images, labels = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    x, x_val, y, y_val = train_test_split(x, y, test_size=180, stratify=y, random_state=0)
    std, mean = data.preprocessing["std"], data.preprocessing["mean"]
    for split, there, classes in ((data.train, x, y), (data.val, x_val, y_val), (data.test, x_test, y_test)):
        assert split.y.tolist() == classes.tolist()
        assert torch.allclose((split.x.double() * std + mean) * 16, torch.tensor(there), atol=1e-4)


def test_the_digits_are_loaded_if_the_file_of_scikit_learn_is_not_found(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_sparsity.experiments.builtin.digits.importlib.util.find_spec", lambda name: None)
    assert load().checksum() == data.checksum()
