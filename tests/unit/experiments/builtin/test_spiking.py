"""Test the built-in data sets of sequences: their examples, their splits, and the order of time and features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tune_sparsity.experiments import Data, find
from tune_sparsity.experiments.builtin import digits, mnist, uci
from tune_sparsity.experiments.builtin.spiking import load_digits, load_dna, load_rows
from tune_sparsity.experiments.checks import Level, assert_sound, inspect
from tune_sparsity.experiments.training import train_whole


def check(ours: Data, flat: Data, steps: int, examples: int, features: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert len(ours.train.x) == examples
    assert ours.classes == flat.classes
    assert "flatten" not in ours.preprocessing
    for name, most in (("train", examples), ("val", None), ("test", None)):
        one, other = getattr(ours, name), getattr(flat, name)
        assert torch.equal(one.y, other.y[:most])
        for t in range(steps):
            assert torch.equal(one.x[:, t], features(other.x[:most].view(len(one.x), steps, -1)[:, t]))
        assert one.x.is_contiguous()
        assert one.x.untyped_storage().nbytes() == one.x.numel() * 4  # no memory for examples that were left out


def test_digits_come_row_by_row() -> None:
    data = load_digits()
    check(data, digits.load(), 8, 1257, lambda row: row)
    # The outer columns of digits are empty, but hardly any row is: so a step is a row, not a column.
    dark = data.train.x.min()
    assert (data.train.x[:, :, 0] == dark).float().mean() > 0.95
    assert (data.train.x == dark).all(2).float().mean() < 0.01


@pytest.mark.parametrize(("name", "data_set"), [("mnist-spiking", "MNIST"), ("fashion-spiking", "FashionMNIST")])
def test_images_come_row_by_row(name: str, data_set: str, data_dir: Path) -> None:
    flat = mnist.load(data_set, data_dir)
    check(find(name).load(data_dir), flat, 28, 10_000, lambda row: row)
    check(load_rows(data_set, data_dir, examples=55_000), flat, 28, 55_000, lambda row: row)


def test_dna_comes_nucleotide_by_nucleotide(data_dir: Path) -> None:
    data = load_dna(data_dir)
    check(data, uci.load_dna(data_dir), 60, 1700, lambda place: place[:, :3])
    assert data.train.x.unique().tolist() == [0, 1]
    assert (data.train.x.sum(2) <= 1).all()


def test_digits_spiking_passes_all_checks_without_a_warning() -> None:
    assert {finding.level for finding in inspect(find("digits-spiking"))} == {Level.OK}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist-spiking", "fashion-spiking", "dna-spiking"])
def test_the_other_spiking_experiments_fail_no_check(name: str, data_dir: Path) -> None:
    assert_sound(find(name), data_dir)


def test_digits_are_learned_row_by_row() -> None:
    experiment = find("digits-spiking")
    data = experiment.load(None)
    training = train_whole(experiment, data, "gmp", {"final_sparsity": 0.5, "lr": 0.1}, epochs=12, seed=0)
    accuracy = experiment.tested(training.model, data)
    assert accuracy is not None
    assert accuracy > 0.75
