"""Tests networks that are trained again on hard examples. A network that was not trained on an example predicts how
hard it is. A new cascade is kept only if it is better."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.helpers.trainings import Watched
from tune_sparsity.experiments import Data, Experiment, Loaded, Recipe, Split
from tune_sparsity.experiments.cascade import Cascade
from tune_sparsity.sparsity import prunable_layers
from tune_sparsity.sparsity.cost.multiply_adds import count_uses
from tune_sparsity.tuner.results.cascade import Answers, group_document, main_group
from tune_sparsity.tuner.results.networks import split_masks, write_best
from tune_sparsity.tuner.results.reflection import (
    FOLDS,
    StudyRecipe,
    folds,
    out_of_fold,
    probabilities,
    reflect,
    repeated,
    some,
    with_reflection,
    within,
)
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.worker.weights import save_weights

CLASSES, FEATURES = 4, 8


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, CLASSES))


def data_of(seed: int, *, random_labels: bool = False, examples: int = 300) -> Data:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, FEATURES, generator=generator)

    def split(count: int) -> Split:
        y = torch.randint(0, CLASSES, (count,), generator=generator)
        x = means[y] + torch.randn(count, FEATURES, generator=generator)
        return Split(x, torch.randint(0, CLASSES, (count,), generator=generator) if random_labels else y)

    return Data(split(examples), split(400), split(2000))


def recipe_of(data: Data, epochs: int = 4) -> StudyRecipe:
    experiment = Experiment("reflected", lambda _: data, network, Recipe(epochs=epochs, batch_size=20))
    model = network()
    uses = count_uses(model, prunable_layers(model), data.val.x[:2])
    return StudyRecipe(experiment, data, epochs, 0, "cpu", uses)


def networks_of(recipe: StudyRecipe, folder: Path) -> dict[str, tuple[TrialRecord, Path]]:
    """A sparse and a less sparse network of a study, with their records."""
    found = {}
    for number, sparsity in enumerate((0.9, 0.5)):
        trial = TrialRecord(number, "gmp", {"final_sparsity": sparsity, "lr": 0.2})
        training = recipe.train(trial, recipe.data.train)
        record = TrialRecord.from_dict(recipe.record(trial, training).to_dict())
        save_weights(training, folder / f"{number}.safetensors")
        found[record.name] = record, folder / f"{number}.safetensors"
    return found


def document_of(recipe: StudyRecipe, networks: dict[str, tuple[TrialRecord, Path]]) -> dict[str, Any]:
    numbered = {record.number: (record, file) for record, file in networks.values()}
    best = max(numbered, key=lambda number: numbered[number][0].value or 0.0)
    return group_document(recipe.experiment, recipe.data, numbered, best)


def with_value(document: dict[str, Any], value: float) -> dict[str, Any]:
    """Return a copy of the document in which all groups of networks have this accuracy on the validation data."""
    return {**document, "groups": [{**group, "val_accuracy": value} for group in document["groups"]]}


def test_each_example_is_predicted_by_a_network_not_trained_on_it() -> None:
    seen_by_judge = []

    def judge(seen: Tensor, asked: Tensor) -> Tensor:
        assert not set(seen.tolist()) & set(asked.tolist())
        assert set(seen.tolist()) | set(asked.tolist()) == set(range(103))
        seen_by_judge.append(asked)
        return 10.0 * asked.double()

    assert out_of_fold(103, 0, judge).tolist() == [10.0 * number for number in range(103)]
    assert sorted(torch.cat(seen_by_judge).tolist()) == list(range(103))
    assert sorted(map(len, seen_by_judge)) == [20, 20, 21, 21, 21]
    assert len(seen_by_judge) == FOLDS
    assert any(not torch.equal(one, other) for one, other in zip(folds(103, 0), folds(103, 1), strict=True))


def test_hard_examples_are_repeated_more_often_than_easy_ones() -> None:
    sure = torch.tensor([1.0, 0.5, 0.0]).double().repeat_interleave(10_000)
    sure = torch.cat([sure, torch.full((10_000,), 0.9).double()])
    counts = torch.bincount(repeated(sure, 0), minlength=40_000)
    assert counts[:10_000].eq(1).all()
    assert counts[10_000:20_000].eq(3).all()
    assert counts[20_000:30_000].eq(5).all()
    assert set(counts[30_000:].tolist()) == {1, 2}
    assert float(counts[30_000:].double().mean()) == pytest.approx(1.4, abs=0.03)


def test_a_dataset_and_tensors_return_the_same_examples_for_indices() -> None:
    x, y = torch.randn(9, 3), torch.arange(9)
    numbers = torch.tensor([4, 0, 4, 7])
    loaded = some(Loaded(TensorDataset(x, y)), numbers)
    held = some(Split(x, y), numbers)
    assert loaded.examples == held.examples == 4
    (batch,) = loaded.batches(10)
    assert torch.equal(batch.x, held.x)
    assert batch.y.tolist() == held.y.tolist() == [4, 0, 4, 7]


def test_memorised_random_labels_have_chance_probability_out_of_fold() -> None:
    """Labels are drawn at random. A network memorises the labels of its training data and cannot predict others."""
    recipe = recipe_of(data_of(0, random_labels=True, examples=120), epochs=150)
    record = TrialRecord(0, "dense", {"lr": 0.1})
    sure = reflect(recipe, record, record).sure
    known = recipe.train(record, recipe.data.train).model
    own = probabilities(recipe.experiment, known, recipe.data.train)
    guessed = 1 / CLASSES
    assert float((own > 0.5).double().mean()) > 0.9
    assert float((sure > 0.5).double().mean()) < guessed + 4 * math.sqrt(guessed * (1 - guessed) / len(sure))


def test_random_labels_give_chance_test_accuracy_after_reflection(tmp_path: Path) -> None:
    for seed in range(4, 20):  # with random labels, many seeds have no group that is better than the small network
        recipe = recipe_of(data_of(seed, random_labels=True))
        networks = networks_of(recipe, tmp_path)
        plain = document_of(recipe, networks)
        if plain["groups"]:
            break
    document, made = with_reflection(recipe, with_value(plain, 0.0), networks)
    assert made is not None
    error = math.sqrt(0.25 * 0.75 / 2000)
    assert abs(document["groups"][-1]["test_accuracy"] - 1 / CLASSES) < 4 * error


@pytest.fixture(scope="module")
def recipe() -> StudyRecipe:
    return recipe_of(data_of(2))


@pytest.fixture(scope="module")
def networks(recipe: StudyRecipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrialRecord, Path]]:
    return networks_of(recipe, tmp_path_factory.mktemp("networks"))


@torch.no_grad()
def test_the_reported_numbers_of_a_better_cascade_match_its_networks(
    recipe: StudyRecipe, networks: dict[str, tuple[TrialRecord, Path]], tmp_path: Path
) -> None:
    plain = with_value(document_of(recipe, networks), 0.0)
    with torch.enable_grad():
        document, made = with_reflection(recipe, plain, networks)
    assert made is not None
    about, row = document["reflection"], document["groups"][-1]
    assert document["kind"] == "reflect"
    assert about["kept"] is True
    assert about["against"] == main_group(plain)["name"]  # type: ignore[index]
    assert about["out_of_fold_probability"] == pytest.approx(float(made.sure.mean()))
    assert about["examples_an_epoch"] == len(made.examples) > recipe.data.train.examples
    assert (row["name"], row["small"], row["large"]) == ("group-reflected", "t0000", "t0001-reflected")
    assert document["groups"][:-1] == plain["groups"]
    small = networks["t0000"][0]
    first = recipe.experiment.network_with(split_masks(load_file(networks["t0000"][1]))[0])
    group = Cascade(first, made.training.model.eval(), row["theta"])
    for split, value in ((recipe.data.val, "val_accuracy"), (recipe.data.test, "test_accuracy")):
        right = float((group(split.x).argmax(1) == split.y).double().mean())
        assert row[value] == pytest.approx(right, abs=1e-12)
    assert row["expected_macs"] == pytest.approx((small.macs or 0) + row["passed_on"] * (made.record.macs or 0))
    assert row["expected_macs"] <= main_group(plain)["expected_macs"]  # type: ignore[index]
    assert made.record.macs == networks["t0001"][0].macs
    assert row["size_bytes"] == (small.size_bytes or 0) + (made.record.size_bytes or 0)
    # `write_best` checks the network of the reflection against its record.
    save_weights(made.training, tmp_path / "again.safetensors")
    best = write_best(tmp_path / "again.safetensors", tmp_path / "x", recipe.experiment, recipe.data, made.record)
    assert best.problem == ""


def test_a_cascade_that_is_not_better_is_dropped_without_use_of_test_data(
    recipe: StudyRecipe, networks: dict[str, tuple[TrialRecord, Path]]
) -> None:
    plain = with_value(document_of(recipe, networks), 1.0)
    watched: Any = Watched(recipe.data)
    document, made = with_reflection(replace(recipe, data=watched), plain, networks)
    assert made is None
    assert watched.asked == 0
    assert document["groups"] == plain["groups"]
    assert document["reflection"]["kept"] is False
    assert 0.5 < document["reflection"]["val_accuracy"] < 1.0


def test_without_a_recommended_cascade_no_network_is_trained(recipe: StudyRecipe) -> None:
    document, made = with_reflection(recipe, {"kind": "cascade", "as_good_as_best": None, "groups": []}, {})
    assert (document["kind"], made) == ("reflect", None)
    assert "reflection" not in document


def test_a_retrained_cascade_stays_within_the_original_bytes_and_macs() -> None:
    """The small network classifies two of four examples correctly and has its smallest margins for the other two. The
    large network classifies the other two correctly."""
    leading = torch.tensor([[0, 1]]).repeat(4, 1)
    small = Answers(torch.tensor([1.0, 0, 1, 0]).double(), torch.tensor([0.9, 0.1, 0.8, 0.5]), leading)
    large = Answers(torch.tensor([0.0, 1, 1, 1]).double(), torch.full((4,), 0.5), leading)
    records = tuple(
        TrialRecord(number, "gmp", {}, TrialState.COMPLETED, macs=macs, size_bytes=100)
        for number, macs in enumerate((10, 100))
    )
    plain = {"expected_macs": 60.0, "size_bytes": 200, "val_accuracy": 0.75}

    def found(**other: Any) -> tuple[float, float] | None:
        group = within({**plain, **other}, (small, large), records)  # type: ignore[arg-type]
        return None if group is None else (group.value, group.macs)

    assert found() == (1.0, 60.0)
    assert found(expected_macs=59.0) == (0.75, 35.0)
    assert found(expected_macs=9.0) is None
    assert found(size_bytes=199) == (1.0, 60.0)
    assert found(size_bytes=198) is None
    assert found(size_bytes=None) is None
