"""Test the UCI tables: sizes, classes, disjoint splits, errors for damaged files, and a training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tune_sparsity.experiments.base import Data, DataUnavailable, Experiment, evaluate
from tune_sparsity.experiments.builtin.uci import (
    climate,
    dna,
    dna_perceptron,
    load_climate,
    load_dna,
    load_mushroom,
    mushroom,
    nucleotides,
)
from tune_sparsity.experiments.data.libsvm import parse_libsvm
from tune_sparsity.experiments.training import train_whole
from tune_sparsity.sparsity.masks import zeros_for

FILES = {
    "dna": ["dna.scale", "dna.scale.t"],
    "mushroom": ["agaricus.txt.train", "agaricus.txt.test"],
    "climate": ["pop_failures.dat"],
}
LOADERS: dict[str, Callable[[Path | None], Data]] = {
    "dna": load_dna,
    "mushroom": load_mushroom,
    "climate": load_climate,
}
SIZES = {"dna": (1700, 300, 1186), "mushroom": (5713, 800, 1611), "climate": (320, 80, 140)}
COUNTS = {  # the number of examples of each class: in train and val together, then in test
    "dna": ([464, 485, 1051], [303, 280, 603]),
    "mushroom": ([3373, 3140], [835, 776]),
    "climate": ([35, 365], [11, 129]),
}


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> Path:
    if any(not (data_dir / "uci" / name).is_file() for names in FILES.values() for name in names):
        pytest.skip("no uci under the data folder")
    return data_dir


@pytest.fixture(scope="module", params=list(FILES))
def loaded(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Data]:
    return request.param, LOADERS[request.param](folder)


# ---- the networks


def test_networks_have_the_published_sizes() -> None:
    for experiment, parameters in ((dna, 936_195), (mushroom, 90_562), (climate, 76_738)):
        assert sum(p.numel() for p in experiment.model().parameters()) == parameters
    assert dna_perceptron()(torch.zeros(2, 240)).shape == (2, 3)
    assert mushroom.model()(torch.zeros(2, 126)).shape == (2, 2)
    assert climate.model()(torch.zeros(2, 18)).shape == (2, 2)


def test_recipes_have_the_published_numbers_of_epochs() -> None:
    assert [one.recipe.epochs for one in (dna, mushroom, climate)] == [40, 20, 20]


# ---- the data


def test_the_splits_have_the_expected_sizes_types_and_class_counts(loaded: tuple[str, Data]) -> None:
    name, data = loaded
    splits = (data.train, data.val, data.test)
    assert tuple(len(split.x) for split in splits) == SIZES[name]
    assert {split.x.dtype for split in splits} == {torch.float32}
    assert {split.y.dtype for split in splits} == {torch.int64}
    classes = len(data.classes)
    searched = torch.bincount(data.train.y, minlength=classes) + torch.bincount(data.val.y, minlength=classes)
    assert (searched.tolist(), torch.bincount(data.test.y).tolist()) == COUNTS[name]
    shares = [torch.bincount(split.y) / len(split.y) for split in (data.train, data.val)]
    assert (shares[0] - shares[1]).abs().max() < 0.01  # stratified


def test_no_validation_example_is_trained_on(loaded: tuple[str, Data]) -> None:
    _, data = loaded
    trained = {tuple(row) for row in data.train.x.tolist()}
    validated = [tuple(row) for row in data.val.x.tolist()]
    assert not trained & set(validated)
    assert len(set(validated)) == len(validated)


def test_every_load_gives_the_same_split(
    loaded: tuple[str, Data], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = loaded
    torch.manual_seed(1)
    monkeypatch.setenv("TUNE_SPARSITY_DATA", str(folder))
    assert LOADERS[name](None).checksum() == data.checksum()


@pytest.mark.parametrize(("name", "features"), [("dna", 180), ("mushroom", 126)])
def test_the_splits_have_exactly_the_examples_of_their_files(name: str, features: int, folder: Path) -> None:
    data = LOADERS[name](folder)

    def examples(x: torch.Tensor, y: torch.Tensor) -> list[tuple[float, ...]]:
        return sorted((*row, label) for row, label in zip(x.tolist(), y.tolist(), strict=True))

    for file, splits in zip(FILES[name], ([data.train, data.val], [data.test]), strict=True):
        x, y = parse_libsvm((folder / "uci" / file).read_text(), features)
        if name == "dna":
            x, y = nucleotides(x), y - 1
        assert examples(x, y) == examples(
            torch.cat([part.x for part in splits]), torch.cat([part.y for part in splits])
        )


def test_the_climate_splits_have_exactly_the_examples_of_their_file(folder: Path) -> None:
    data = load_climate(folder)
    rows = [line.split() for line in (folder / "uci" / "pop_failures.dat").read_text().splitlines()]
    expected = sorted(tuple(round(float(cell), 4) for cell in row[2:]) for row in rows)
    assert data.test.y.tolist() == [int(row[-1]) for row in rows[400:]]
    mean, std = (torch.tensor(data.preprocessing[key]) for key in ("mean", "std"))
    ours = [
        (*(round(cell, 4) for cell in row), label)
        for split in (data.train, data.val, data.test)
        for row, label in zip((split.x.double() * std + mean).tolist(), split.y.tolist(), strict=True)
    ]
    assert torch.tensor(sorted(ours)).sub(torch.tensor(expected)).abs().max() < 2e-4
    assert data.train.x.mean(0).abs().max() < 1e-5
    assert (data.train.x.std(0) - 1).abs().max() < 1e-5


def test_nucleotides_are_one_hot(folder: Path) -> None:
    x = load_dna(folder).train.x.view(-1, 60, 4)
    assert (x.sum(2) == 1).all()
    assert ((x == 0) | (x == 1)).all()
    code = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0] + [0] * 168])
    assert nucleotides(code).view(60, 4)[:5].argmax(1).tolist() == [0, 1, 2, 3, 3]  # A, C, G, T, T


# ---- files that are not there, or not whole


@pytest.mark.parametrize("name", list(FILES))
def test_missing_files_are_told_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable) as error:
        LOADERS[name](tmp_path)
    message = str(error.value)
    assert str(tmp_path / "uci" / FILES[name][0]) in message
    assert "UCI Machine Learning Repository" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", list(FILES))
def test_damaged_files_are_told_in_one_line(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "uci").mkdir()
    for file in FILES[name]:
        (tmp_path / "uci" / file).write_bytes((folder / "uci" / file).read_bytes())
    last = tmp_path / "uci" / FILES[name][-1]
    raw = bytearray(last.read_bytes())
    raw[len(raw) // 2] ^= 1
    last.write_bytes(raw)
    with pytest.raises(DataUnavailable, match=rf"{last.name} is damaged \(its MD5") as error:
        LOADERS[name](tmp_path)
    assert "\n" not in str(error.value)


# ---- training


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "epochs", "least"), [(climate, 1, 0.9), (mushroom, 2, 0.95)])
def test_the_uci_tables_are_learnt_at_ninety_percent_sparsity(
    experiment: Experiment, epochs: int, least: float, folder: Path
) -> None:
    data = experiment.load(folder)
    training = train_whole(experiment, data, "lpss", {"p": 1.4, "final_sparsity": 0.9}, epochs=epochs, seed=0)
    zeros, weights = training.sparse.zeros()
    assert zeros == zeros_for(0.9, weights)
    assert evaluate(experiment, training.model, data.val) > least
