"""Tests the files of the best network: their content, and that a file of another network is refused."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from tune_sparsity.experiments import Data, Experiment, Recipe, Split, Training
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.training import train_whole
from tune_sparsity.tuner.results.networks import count_zeros, write_best, write_networks
from tune_sparsity.tuner.study.layout import weights_file
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.worker.weights import save_weights

TARGET = 0.8
PARAMS = {"final_sparsity": TARGET, "p": 1.3, "lr": 0.1, "threshold_interval": 5, "feedback": "pi"}
WEIGHTS = 6 * 24 + 24 * 3
ZEROS = math.ceil(TARGET * WEIGHTS)
Tensors = dict[str, np.ndarray]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))


def load(data_dir: Path | None) -> Data:
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(3, 6, generator=generator)

    def split(n: int) -> Split:
        y = torch.randint(0, 3, (n,), generator=generator)
        return Split(means[y] + torch.randn(n, 6, generator=generator), y)

    return Data(split(300), split(200), split(150), preprocessing={"mean": 0.5}, classes=("a", "b", "c"))


SMALL = Experiment("small", load, network, Recipe(epochs=4, batch_size=20))


class Trained(NamedTuple):
    """A trained network's file, and the record of its trial."""

    training: Training
    data: Data
    raw: bytes
    record: TrialRecord


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    data = load(None)
    training = train_whole(SMALL, data, "lpss", PARAMS, epochs=4, seed=0)
    path = weights_file(tmp_path_factory.mktemp("weights"), 3)
    save_weights(training, path)
    model = training.model.eval()
    with torch.no_grad():
        accuracy = float((model(data.val.x).argmax(1) == data.val.y).double().mean())
    record = TrialRecord(
        3, "lpss", PARAMS, TrialState.COMPLETED, value=accuracy, sparsity=ZEROS / WEIGHTS, sparsity_total=0.5
    )
    return Trained(training, data, path.read_bytes(), record)


@pytest.fixture
def weights(trained: Trained, tmp_path: Path) -> Path:
    """Return a copy of the file with the trial's weights. A test may change this copy."""
    path = weights_file(tmp_path / "weights", 3)
    path.parent.mkdir()
    path.write_bytes(trained.raw)
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


def test_the_network_is_written_as_it_was_trained(trained: Trained, weights: Path, study: Path) -> None:
    best = write_best(weights, study / "best", SMALL, trained.data, trained.record)
    assert sorted(path.name for path in study.rglob("*")) == ["best", "model.json", "model.safetensors"]
    assert (study / "best" / "model.safetensors").read_bytes() == trained.raw
    assert weights.read_bytes() == trained.raw
    assert (best.weights, best.zeros) == (WEIGHTS, ZEROS)
    tensors = load_file(study / "best" / "model.safetensors")
    masks = {name.removesuffix(".mask"): tensor for name, tensor in tensors.items() if name.endswith(".mask")}
    assert set(masks) == {"0.weight", "3.weight"}
    assert sum(int((tensors[name] == 0).sum()) for name in masks) == ZEROS
    for name, mask in masks.items():
        assert mask.dtype == np.bool_
        assert ((tensors[name] != 0) == mask).all()


def test_numpy_can_compute_the_reported_accuracies_from_the_weights_file(
    trained: Trained, weights: Path, study: Path
) -> None:
    best = write_best(weights, study / "best", SMALL, trained.data, trained.record)
    t = {name: tensor.astype(np.float64) for name, tensor in load_file(study / "best" / "model.safetensors").items()}

    def accuracy(split: Split) -> float:
        x = split.x.numpy() @ t["0.weight"].T + t["0.bias"]
        x = (x - t["1.running_mean"]) / np.sqrt(t["1.running_var"] + 1e-5) * t["1.weight"] + t["1.bias"]
        x = np.maximum(x, 0) @ t["3.weight"].T + t["3.bias"]
        return float((x.argmax(1) == split.y.numpy()).mean())

    assert accuracy(trained.data.test) == pytest.approx(best.test_value)
    assert accuracy(trained.data.val) == pytest.approx(trained.record.value)
    assert best.test_value > 0.8
    assert best.test_value != trained.record.value  # the accuracy on the validation data


def test_neurons_without_a_connection_are_counted_in_the_masks(trained: Trained, study: Path) -> None:
    training = train_whole(SMALL, trained.data, "static", {"final_sparsity": 0.9}, epochs=1, seed=0)
    save_weights(training, file := weights_file(study, 4))
    accuracy = evaluate(SMALL, training.model, trained.data.val)
    zeros, weights = training.sparse.zeros()
    record = TrialRecord(4, "static", {}, TrialState.COMPLETED, value=accuracy, sparsity=zeros / weights)
    best = write_best(file, study / "best", SMALL, trained.data, record)
    dead = int((training.model[0].weight == 0).all(1).sum())
    assert dead > 0
    assert best.dead["0.weight"] == (dead, 24)


def test_the_description_has_what_is_needed_to_use_the_network(trained: Trained, weights: Path, study: Path) -> None:
    best = write_best(weights, study / "best", SMALL, trained.data, trained.record)
    described = json.loads((study / "best" / "model.json").read_text())
    architecture = described.pop("architecture")
    by_layer = described.pop("sparsity_by_layer")
    assert described == {
        "experiment": "small",
        "input_shape": [6],
        "preprocessing": {"mean": 0.5},
        "classes": ["a", "b", "c"],
        "trial": "t0003",
        "method": "lpss",
        "params": PARAMS,
        "metrics": {
            "val_accuracy": trained.record.value,
            "test_accuracy": best.test_value,
            "sparsity": ZEROS / WEIGHTS,
            "sparsity_total": 0.5,
            "nonzero_weights": WEIGHTS - ZEROS,
            "size_bytes": None,
            "macs": None,
            "syn_ops": None,
            "bit_ops": None,
            "weights": WEIGHTS,
        },
    }
    assert "in_features=6, out_features=24" in " ".join(architecture)
    assert by_layer["0.weight"] * 6 * 24 + by_layer["3.weight"] * 24 * 3 == pytest.approx(ZEROS)


def test_a_better_network_takes_the_place_of_the_one_before(trained: Trained, weights: Path, study: Path) -> None:
    (study / "best").mkdir()
    (study / "best" / "model.safetensors").write_text("before")
    (study / "best" / "model.json").write_text("before")
    write_best(weights, study / "best", SMALL, trained.data, trained.record)
    assert (study / "best" / "model.safetensors").read_bytes() == trained.raw
    assert sorted(path.name for path in (study / "best").iterdir()) == ["model.json", "model.safetensors"]


# Weights files that were changed after the measurement


def one_zero_more(tensors: Tensors) -> None:
    name, mask = "0.weight", tensors["0.weight.mask"]
    tensors[name][tuple(np.argwhere(mask)[0])] = 0.0


def one_zero_less(tensors: Tensors) -> None:
    tensors["3.weight"][tuple(np.argwhere(~tensors["3.weight.mask"])[0])] = 1e-30


def no_zeros_left(tensors: Tensors) -> None:
    tensors["0.weight"] += 1e-6


def signs_turned(tensors: Tensors) -> None:
    tensors["3.weight"] *= -1.0


def classes_swapped(tensors: Tensors) -> None:
    tensors["3.weight"], tensors["3.bias"] = tensors["3.weight"][::-1].copy(), tensors["3.bias"][::-1].copy()


def untrained(tensors: Tensors) -> None:
    random = np.random.default_rng(0).normal(size=tensors["0.weight"].shape).astype(np.float32)
    tensors["0.weight"] = random * tensors["0.weight.mask"]


def not_a_number(tensors: Tensors) -> None:
    tensors["3.bias"][:] = np.nan


def without_a_layer(tensors: Tensors) -> None:
    del tensors["3.bias"]


def of_another_shape(tensors: Tensors) -> None:
    tensors["0.bias"] = tensors["0.bias"][:-1].copy()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_zero_more, rf"t0003 reported sparsity .* its file has {ZEROS + 1}/{WEIGHTS} zeros"),
        (one_zero_less, rf"its file has {ZEROS - 1}/{WEIGHTS} zeros"),
        (no_zeros_left, rf"its file has \d+/{WEIGHTS} zeros"),
        (signs_turned, "t0003 reported accuracy"),
        (classes_swapped, "not where its masks say"),
        (untrained, "reported accuracy"),
        (not_a_number, "reported accuracy"),
        (without_a_layer, r"3\.bias"),
        (of_another_shape, r"0\.bias"),
    ],
)
def test_a_file_whose_weights_differ_from_the_measured_ones_is_refused(
    change: Callable[[Tensors], None], said: str, trained: Trained, weights: Path, study: Path
) -> None:
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    with pytest.raises(RuntimeError, match=said):
        write_best(weights, study / "best", SMALL, trained.data, trained.record)
    assert list(study.iterdir()) == []


@pytest.mark.parametrize(
    "claim", [{"sparsity": (ZEROS + 1) / WEIGHTS}, {"sparsity": None}, {"value": 0.999}, {"value": None}]
)
def test_a_record_whose_metric_or_sparsity_differs_from_the_file_is_refused(
    claim: dict[str, float | None], trained: Trained, weights: Path, study: Path
) -> None:
    record = TrialRecord.from_dict({**trained.record.to_dict(), **claim})
    with pytest.raises(RuntimeError, match="t0003 reported"):
        write_best(weights, study / "best", SMALL, trained.data, record)
    assert list(study.iterdir()) == []


def test_a_file_may_be_smaller_than_its_recorded_size_but_never_larger(
    trained: Trained, weights: Path, study: Path
) -> None:
    write_best(weights, study / "best", SMALL, trained.data, replace(trained.record, size_bytes=10_000))
    with pytest.raises(RuntimeError, match="t0003 reported 100 bytes, its packed file has"):
        write_best(weights, study / "best", SMALL, trained.data, replace(trained.record, size_bytes=100))


def test_zeros_are_counted_only_in_tensors_that_have_a_mask() -> None:
    tensors = {"a": torch.tensor([0.0, -0.0, 1.0, 1e-38]), "b": torch.zeros(7), "c": torch.ones(2, 2)}
    masks = {"a": torch.ones(4, dtype=torch.bool), "c": torch.zeros(2, 2, dtype=torch.bool)}
    assert count_zeros(tensors, masks) == (2, 8)


# The trial's own file


def test_saving_weights_leaves_no_temporary_file(trained: Trained, tmp_path: Path) -> None:
    path = weights_file(tmp_path / "new" / "folder", 12)
    for _ in range(2):
        save_weights(trained.training, path)
        assert [p.name for p in path.parent.iterdir()] == ["12.safetensors"]
        assert path.read_bytes() == trained.raw


def test_a_full_disk_keeps_the_earlier_file_and_leaves_no_partial_file(
    trained: Trained, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(descriptor: int) -> None:
        os.ftruncate(descriptor, len(trained.raw) // 2)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", half)
    with pytest.raises(OSError, match="No space"):
        save_weights(trained.training, weights)
    assert weights.read_bytes() == trained.raw
    with pytest.raises(OSError, match="No space"):
        save_weights(trained.training, weights_file(weights.parent, 4))
    assert not weights_file(weights.parent, 4).exists()


def test_a_reader_never_sees_half_a_file(trained: Trained, weights: Path) -> None:
    done = threading.Event()
    sizes: set[int] = set()

    def read() -> None:
        while not done.is_set():
            sizes.add(len(weights.read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        save_weights(trained.training, weights)
    done.set()
    reader.join()
    assert sizes == {len(trained.raw)}


def test_networks_that_share_a_tensor_can_be_saved(trained: Trained, tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = nn.Linear(6, 3)
            self.first_again = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first_again(self.first(x).relu()).relu())

    tied = Experiment("tied", load, Tied, SMALL.recipe)
    training = train_whole(tied, trained.data, "lpss", PARAMS, epochs=2, seed=0)
    path = weights_file(tmp_path, 0)
    save_weights(training, path)
    tensors = load_file(path)
    assert (tensors["first.weight"] == tensors["first_again.weight"]).all()
    zeros, total = training.sparse.zeros()
    assert sum(int((~t).sum()) for name, t in tensors.items() if name.endswith(".mask")) == zeros
    assert zeros == math.ceil(TARGET * total)


# Several networks of one study


def test_a_network_in_two_folders_is_measured_once(trained: Trained, weights: Path, study: Path) -> None:
    folders = {"best": trained.record, "best-0.5": trained.record, "front/t0003": trained.record}
    measured = write_networks(folders, lambda record: weights, study, SMALL, trained.data).networks
    assert list(measured) == [3]
    for name in folders:
        assert (study / name / "model.safetensors").read_bytes() == trained.raw
        described = json.loads((study / name / "model.json").read_text())
        assert described["metrics"]["test_accuracy"] == measured[3].test_value


def test_a_resumed_study_reads_networks_from_the_folders_it_wrote(trained: Trained, weights: Path, study: Path) -> None:
    before = {"best": trained.record, "best-0.5": trained.record, "front/t0003": trained.record}
    write_networks(before, lambda record: weights, study, SMALL, trained.data)
    weights.unlink()
    after = {"best": trained.record, "front/t0003": trained.record}
    measured = write_networks(after, lambda record: weights, study, SMALL, trained.data).networks
    assert set(measured) == {3}
    assert (study / "best" / "model.safetensors").read_bytes() == trained.raw
    assert not (study / "best-0.5").exists()  # the study no longer reports a best network for the target 0.5
    other = replace(trained.record, number=4)
    found = write_networks({"best": other}, lambda record: weights, study, SMALL, trained.data)
    assert found.problems == [f"the network of t0004 was not written: {weights} was removed"]
    assert not found.networks
    assert not (study / "best").exists()  # the folder held another trial's network


def test_a_mismatched_network_is_skipped_and_the_others_are_written(
    trained: Trained, weights: Path, study: Path
) -> None:
    liar = replace(trained.record, number=4, value=0.999)
    folders = {"best": liar, "front/t0003": trained.record, "front/t0004": liar}
    found = write_networks(folders, lambda record: weights, study, SMALL, trained.data)
    assert list(found.networks) == [3]
    (problem,) = found.problems
    assert problem.startswith("the network of t0004 was not written: ")
    assert "t0004 reported accuracy 0.999" in problem
    assert [path.parent.name for path in study.rglob("model.safetensors")] == ["t0003"]


def test_a_network_that_cannot_be_measured_is_written(trained: Trained, weights: Path, study: Path) -> None:
    class NotOnTest(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) == len(trained.data.test.x):
                raise KeyError("no")
            return super().forward(x)

    fails = replace(SMALL, model=lambda: NotOnTest(*network()))
    found = write_networks({"best": trained.record}, lambda record: weights, study, fails, trained.data)
    assert found.problems == ["the test accuracy of t0003 was not measured: KeyError: 'no'"]
    assert (found.networks[3].weights, found.networks[3].zeros) == (WEIGHTS, ZEROS)
    assert (study / "best" / "model.safetensors").read_bytes() == trained.raw
    metrics = json.loads((study / "best" / "model.json").read_text())["metrics"]
    assert metrics["test_accuracy"] is None
    assert metrics["val_accuracy"] == trained.record.value
    again = write_networks({"best": trained.record}, lambda record: weights, study, SMALL, trained.data)
    assert again.problems == []
    assert again.networks[3].test_value > 0.8
