"""Tests cascades of two networks: thresholds, class pairs, how cascades are chosen, and which data this choice uses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.helpers.trainings import Watched
from tune_sparsity.experiments import Data, Experiment, NotFinite, Recipe, Split
from tune_sparsity.tuner.results.cascade import (
    QUANTILES,
    Answers,
    Group,
    answers_of,
    as_good,
    candidates,
    choose,
    chosen,
    gates,
    group_document,
    group_metrics,
    main_group,
    mcnemar,
    on_front,
    passed_pairs,
)
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

CLASSES, FEATURES = 4, 8


def answers(scores: list[float], margins: list[float]) -> Answers:
    leading = torch.tensor([[0, 1]]).repeat(len(scores), 1)
    return Answers(torch.tensor(scores, dtype=torch.float64), torch.tensor(margins), leading)


def test_thresholds_divide_sorted_margins_evenly_and_include_both_extremes() -> None:
    sure = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    found = gates(sure)
    assert (found[0], len(found)) == (0.0, QUANTILES + 2)
    assert found[-1] > 1
    shares = [float((sure < theta).double().mean()) for theta in found]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares[1:-1] == pytest.approx([k / (QUANTILES + 1) for k in range(1, QUANTILES + 1)], abs=1e-3)
    assert not set(found) & set(sure.tolist())
    assert gates(torch.full((50,), 0.25)) == [0.0, 0.25, 2.0]
    assert gates(torch.ones(1)) == [0.0, 2.0]


def test_a_cascades_cost_and_accuracy_match_a_count_by_hand() -> None:
    """The small network classifies examples 0 and 2 correctly, and the large network all except example 0. The small
    network passes examples on to the large network in the order of their margins: 1, 3, 2, 0."""
    known = {0: answers([1, 0, 1, 0], [0.9, 0.1, 0.8, 0.5]), 1: answers([0, 1, 1, 1], [0.5] * 4)}
    found = {group.passed: group for group in candidates(0, known, {0: 10, 1: 100})}
    assert {passed: (group.value, group.macs) for passed, group in found.items()} == {
        0.0: (0.5, 10.0),
        0.25: (0.75, 35.0),
        0.5: (1.0, 60.0),
        0.75: (1.0, 85.0),
        1.0: (0.75, 110.0),
    }
    assert found[0.25].theta == pytest.approx(0.3)
    assert all((one.small, one.large) == (0, 1) for one in found.values())
    assert candidates(1, known, {0: 10, 1: 100}) == []
    assert candidates(0, known, {0: 10, 1: 10}) == []


def test_cascades_that_a_network_or_another_cascade_beats_are_dropped() -> None:
    def group(macs: float, value: float) -> Group:
        return Group(0, 1, 0.5, 0.1, value, macs)

    groups = [group(20, 0.8), group(20, 0.7), group(30, 0.8), group(50, 0.9), group(60, 0.95), group(120, 0.96)]
    front = on_front(groups, [(10, 0.6), (50, 0.9), (100, 0.96)])
    assert [(one.macs, one.value) for one in front] == [(20, 0.8), (60, 0.95)]


def test_at_most_five_cascades_are_chosen_by_accuracy_and_by_cost() -> None:
    front = [Group(0, 1, 0.5, 0.1, 0.5 + place / 100, float(place)) for place in range(1, 41)]
    found = chosen(front, value=0.7, macs=40.0)
    assert [one.macs for one in found] == [5, 10, 20, 40]
    assert as_good(front, 0.7, 40.0) is front[19]
    assert [one.macs for one in chosen(front, value=0.675, macs=40.0)] == [5, 10, 18, 20, 40]
    assert as_good(front, 0.95, 40.0) is None
    assert [one.macs for one in chosen(front, value=0.95, macs=40.0)] == [5, 10, 20, 40]
    assert chosen([], 0.7, 40.0) == []
    assert chosen(front, 0.7, 0.5) == []


def test_mcnemars_test_gives_known_p_values() -> None:
    def uneven(won: int, lost: int) -> dict[str, Any]:
        one = torch.tensor([1.0] * won + [0.0] * lost + [1.0] * 3 + [0.0] * 2)
        other = torch.tensor([0.0] * won + [1.0] * lost + [1.0] * 3 + [0.0] * 2)
        return mcnemar(one, other)

    assert uneven(1, 9) == {"only_group": 1, "only_network": 9, "p": pytest.approx(22 / 1024)}
    assert uneven(8, 2)["p"] == pytest.approx(112 / 1024)
    assert uneven(3, 3)["p"] == 1.0
    assert uneven(0, 0)["p"] == 1.0
    assert 0 < uneven(0, 1000)["p"] <= 2 / 2**1000
    stats = pytest.importorskip("scipy.stats")
    assert uneven(31, 52)["p"] == pytest.approx(stats.binomtest(31, 83).pvalue)


# Networks in files


def network(width: int) -> nn.Module:
    """Return a network in which only the first `width` hidden neurons have connections."""
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    with torch.no_grad():
        model[0].weight[width:] = 0
        model[2].weight[:, width:] = 0
    return model


def trained(width: int, split: Split, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = network(width)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(split.x), split.y).backward()
        for name in ("0.weight", "2.weight"):
            weight = model.get_parameter(name)
            weight.grad *= weight != 0
        optimizer.step()
    return model


def data_of(seed: int, *, random_labels: bool = False) -> Data:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, FEATURES, generator=generator)

    def split(count: int) -> Split:
        y = torch.randint(0, CLASSES, (count,), generator=generator)
        x = means[y] + torch.randn(count, FEATURES, generator=generator)
        return Split(x, torch.randint(0, CLASSES, (count,), generator=generator) if random_labels else y)

    return Data(split(400), split(600), split(2000))


class Study:
    """Three trained networks in files, with their trials' records."""

    def __init__(self, folder: Path, data: Data) -> None:
        self.data = data
        self.experiment = Experiment("groups", lambda _: data, lambda: network(32), Recipe(epochs=1, batch_size=10))
        self.models, self.networks = dict[int, nn.Module](), dict[int, tuple[TrialRecord, Path]]()
        for number, width in enumerate((2, 5, 32)):
            model = trained(width, data.train, seed=number)
            mask = {f"{name}.mask": model.get_parameter(name) != 0 for name in ("0.weight", "2.weight")}
            save_file({**model.state_dict(), **mask}, folder / f"{number}.safetensors")
            with torch.no_grad():
                value = float((model(data.val.x).argmax(1) == data.val.y).double().mean())
            macs = sum(int(one.sum()) for one in mask.values())
            record = TrialRecord(number, "lpss", {}, TrialState.COMPLETED, value, 1 - macs / 384, macs=macs)
            self.models[number] = model
            self.networks[number] = replace(record, size_bytes=100 * (number + 1)), folder / f"{number}.safetensors"

    @property
    def macs(self) -> dict[int, int]:
        return {number: record.macs or 0 for number, (record, _) in self.networks.items()}

    @property
    def best(self) -> int:
        return max(self.networks, key=lambda number: self.networks[number][0].value or 0.0)

    def document(self) -> dict[str, Any]:
        return group_document(self.experiment, self.data, self.networks, self.best)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("groups"), data_of(0))


def answered(study: Study, split: Split, small: int, large: int, theta: float) -> tuple[Tensor, float]:
    """Return the classes that the cascade predicts and the share of examples that it passes on, computed
    independently of the tested code."""
    with torch.no_grad():
        one, other = (study.models[number](split.x) for number in (small, large))
        ordered = one.softmax(1).sort(1).values
        unsure = ordered[:, -1] - ordered[:, -2] < theta
        return torch.where(unsure, other.argmax(1), one.argmax(1)), float(unsure.double().mean())


def test_reported_accuracies_match_the_answers_of_the_networks_in_a_cascade(study: Study) -> None:
    document = study.document()
    assert document["kind"] == "cascade"
    assert (document["networks"], document["pairs"]) == (3, 3)
    assert 1 <= len(document["groups"]) <= 5
    for group in document["groups"]:
        small, large = (int(group[name][1:]) for name in ("small", "large"))
        assert study.macs[small] < study.macs[large]
        for split, value, passed in (
            (study.data.val, "val_accuracy", "passed_on"),
            (study.data.test, "test_accuracy", "test_passed_on"),
        ):
            classes, share = answered(study, split, small, large, group["theta"])
            assert group[value] == pytest.approx(float((classes == split.y).double().mean()), abs=1e-12)
            assert group[passed] == pytest.approx(share, abs=1e-12)
            assert 0 < share < 1
        assert group["expected_macs"] == pytest.approx(study.macs[small] + group["passed_on"] * study.macs[large])
        assert group["worst_macs"] == study.macs[small] + study.macs[large]
        assert group["size_bytes"] == 100 * (small + large + 2)
        assert group["share_of_best_macs"] == pytest.approx(group["expected_macs"] / study.macs[study.best])
    macs = [group["expected_macs"] for group in document["groups"]]
    values = [group["val_accuracy"] for group in document["groups"]]
    assert macs == sorted(macs)
    assert values == sorted(values)
    best = study.networks[study.best][0]
    for group in document["groups"]:
        if group["name"] == document["as_good_as_best"]:
            assert group["val_accuracy"] >= best.value
            assert group["expected_macs"] < best.macs


def test_examples_sent_to_the_large_network_are_counted_by_their_class_pair() -> None:
    """Examples 0, 1 and 3 are passed on. For two of them, the two most probable classes are 1 and 2, in either order.
    For the third, these are 0 and 2."""
    sure = torch.tensor([0.2, 0.1, 0.9, 0.1, 0.8])
    leading = torch.tensor([[1, 2], [2, 1], [1, 2], [2, 0], [0, 2]])
    small = Answers(torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64), sure, leading)
    large = Answers(torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64), torch.ones(5), leading)
    first = {"classes": ["dog", "fox"], "examples": 2, "small": 1, "large": 2, "shown": [1, 0]}
    second = {"classes": ["cat", "fox"], "examples": 1, "small": 0, "large": 0, "shown": [3]}
    assert passed_pairs(small, large, 0.5, ("cat", "dog", "fox")) == [first, second]
    assert passed_pairs(small, large, 0.0, ()) == []
    assert passed_pairs(small, large, 0.5, ())[0]["classes"] == ["1", "2"]


def test_each_example_sent_to_the_large_network_counts_in_one_class_pair(study: Study) -> None:
    for group in study.document()["groups"]:
        passed = round(group["passed_on"] * len(study.data.val.y))
        assert sum(pair["examples"] for pair in group["passed_pairs"]) == passed  # six pairs of four classes
        assert all(0 <= pair[one] <= pair["examples"] for pair in group["passed_pairs"] for one in ("small", "large"))


def test_the_extreme_thresholds_give_the_accuracies_of_the_single_networks(study: Study) -> None:
    known = {number: answers_of(study.experiment, file, study.data.val) for number, (_, file) in study.networks.items()}
    values = {number: record.value for number, (record, _) in study.networks.items()}
    for group in candidates(0, known, study.macs):
        if group.theta == 0.0:
            assert (group.value, group.macs, group.passed) == (values[0], study.macs[0], 0.0)
        if group.theta > 1:
            assert (group.value, group.passed) == (values[group.large], 1.0)
            assert group.macs == study.macs[0] + study.macs[group.large]


def test_cascades_are_chosen_without_any_test_data(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    import tune_sparsity.tuner.results.cascade as module

    data: Any = Watched(study.data)
    asked = list[int]()

    def watched(*args: Any) -> Any:
        choice = choose(*args)
        asked.append(data.asked)
        return choice

    with monkeypatch.context() as patch:
        patch.setattr(module, "choose", watched)
        document = group_document(study.experiment, data, study.networks, study.best)
    assert asked == [0]
    assert data.asked > 0
    assert document == study.document()
    # With other test data, only the metrics on the test data change.
    other = Data(study.data.train, study.data.val, Split(study.data.test.x, (study.data.test.y + 1) % CLASSES))
    again = group_document(study.experiment, other, study.networks, study.best)
    kept = ("name", "small", "large", "theta", "val_accuracy", "passed_on", "expected_macs")
    assert [[g[k] for k in kept] for g in again["groups"]] == [[g[k] for k in kept] for g in document["groups"]]
    assert [g["test_accuracy"] for g in again["groups"]] != [g["test_accuracy"] for g in document["groups"]]


def test_each_reported_network_is_evaluated_once_on_the_test_data(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tune_sparsity.tuner.results.cascade as module

    read = list[tuple[str, int]]()

    def watched(experiment: Experiment, file: Path, split: Split, device: str = "cpu") -> Answers:
        read.append((file.name, split.examples))
        return answers_of(experiment, file, split, device)

    monkeypatch.setattr(module, "answers_of", watched)
    document = study.document()
    tested = [name for name, examples in read if examples == 2000]
    named = {f"{int(group[part][1:])}.safetensors" for group in document["groups"] for part in ("small", "large")}
    assert sorted(tested) == sorted({*named, f"{study.best}.safetensors"})


def test_random_labels_give_chance_accuracy_on_the_test_data(tmp_path: Path) -> None:
    study = Study(tmp_path, data_of(1, random_labels=True))
    chance, error = 1 / CLASSES, math.sqrt(0.25 * 0.75 / 2000)
    document = study.document()
    assert document["groups"], "chance on the validation data always finds some"
    for group in document["groups"]:
        assert abs(group["test_accuracy"] - chance) < 4 * error


def test_networks_of_equal_cost_form_no_cascade(study: Study) -> None:
    alike = {number: (replace(record, macs=7), file) for number, (record, file) in study.networks.items()}
    with pytest.raises(ValueError, match="networks with different numbers of multiply-adds"):
        group_document(study.experiment, study.data, alike, study.best)
    alone = {study.best: study.networks[study.best]}
    with pytest.raises(ValueError, match="networks with different numbers of multiply-adds"):
        group_document(study.experiment, study.data, alone, study.best)


def test_nan_outputs_raise_an_error(study: Study, tmp_path: Path) -> None:
    state = {name: one.clone() for name, one in study.models[0].state_dict().items()}
    state["2.bias"][0] = math.nan
    save_file(state, tmp_path / "nan")
    with pytest.raises(NotFinite, match="600 of 600"):
        answers_of(study.experiment, tmp_path / "nan", study.data.val)


def test_the_last_cascade_is_recommended_if_none_equals_the_best_network() -> None:
    groups = [{"name": "group-1", "macs": 1.5}, {"name": "group-2", "macs": 2.5}]
    assert main_group({"as_good_as_best": "group-1", "groups": groups}) is groups[0]
    assert main_group({"as_good_as_best": None, "groups": groups}) is groups[1]
    assert main_group({"as_good_as_best": None, "groups": []}) is None
    assert main_group({}) is None


def test_mlflow_records_the_numeric_fields_of_a_cascade(study: Study) -> None:
    group = study.document()["groups"][0]
    told = group_metrics(group)
    assert told["expected_macs"] == group["expected_macs"]
    assert told["mcnemar_against_best_p"] == group["mcnemar_against_best"]["p"]
    assert "small" not in told
