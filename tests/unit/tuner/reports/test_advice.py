"""Tests the report's advice: it follows from the study's records. If the records support no advice, there is none."""

from __future__ import annotations

from typing import Any

from tune_sparsity.tuner.reports.advice import advice
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.objective import Objective
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

SMALL = Goal((0.5,), max_bytes=10_000)
FRONT = Goal((0.5,), ceiling=0.99)


def trial(number: int, accuracy: float, *, bits: int | None = None, size: int = 9_000, **fields: Any) -> TrialRecord:
    given: dict[str, Any] = {"method": "lpss", "sparsity": 0.9, "macs": 1000, **fields}
    params = {} if bits is None else {"weight_bits": bits}
    return TrialRecord(number, params=params, state=TrialState.COMPLETED, value=accuracy, size_bytes=size, **given)


def test_advice_names_the_bits_with_the_highest_accuracy_within_the_size() -> None:
    records = [trial(0, 0.98, bits=4), trial(1, 0.97, bits=4), trial(2, 0.951, bits=32), trial(3, 0.9, bits=2)]
    records += [trial(4, 0.999, bits=32, size=20_000)]  # larger than the 10,000 bytes of the goal
    said = advice("s", SMALL, records, {})
    assert said == "in 10,000 bytes weights of 4 bits reach accuracy 98.00%, and weights of 32 bits 95.10%"
    assert advice("s", SMALL, [*records, trial(5, 0.985, bits=32)], {}).startswith(
        "in 10,000 bytes weights of 32 bits reach accuracy 98.50%, and weights of 4 bits 98.00%"
    )


def test_binary_weights_have_one_bit() -> None:
    records = [trial(0, 0.95, bits=4), trial(1, 0.97, method="binary")]
    assert "weights of 1 bit reach accuracy 97.00%, and weights of 4 bits 95.00%" in advice("s", SMALL, records, {})


def test_without_different_bits_there_is_no_advice() -> None:
    assert advice("s", SMALL, [trial(0, 0.98, bits=4), trial(1, 0.97, bits=4)], {}) == ""
    assert advice("s", SMALL, [], {}) == ""


def test_a_cascade_as_accurate_as_the_best_network_is_advised() -> None:
    groups = [{"name": "group-1", "share_of_best_macs": 0.1}, {"name": "group-2", "share_of_best_macs": 0.317}]
    group = {"best": "t0003", "as_good_as_best": "group-2", "groups": groups}
    said = advice("s", FRONT, [], group)
    assert "group-2 needs 32% of the multiply-adds of t0003" in said
    assert said.endswith("tune-sparsity export s --network group-2 --format onnx")
    assert advice("s", FRONT, [], {**group, "as_good_as_best": None}) == ""


def test_a_cascade_is_advised_if_a_cheap_network_is_nearly_as_accurate() -> None:
    best, cheap = trial(0, 0.98, sparsity=0.6), trial(1, 0.975, sparsity=0.9, macs=300)
    poor, dear = trial(2, 0.9, sparsity=0.99, macs=50), trial(3, 0.979, sparsity=0.7, macs=900)
    said = advice("s", FRONT, [best, cheap, poor, dear], {})
    assert said.startswith("t0001 has 30% of the multiply-adds of t0000 and loses 0.50 points: ")
    assert said.endswith("tune-sparsity resume s --group cascade")
    assert advice("s", FRONT, [best, poor, dear], {}) == ""
    assert advice("s", FRONT, [trial(0, 0.98, macs=None), cheap], {}) == ""


def test_no_cascade_is_advised_for_one_target_or_a_metric_other_than_accuracy() -> None:
    records = [trial(0, 0.98, sparsity=0.6), trial(1, 0.975, sparsity=0.9, macs=300)]
    f1 = Goal((0.5,), ceiling=0.99, objective=Objective("f1", maximize=True, percent=True))
    assert advice("s", f1, records, {}) == ""  # a group of two networks is possible only if the metric is the accuracy
    assert advice("s", Goal((0.5,)), records, {}) == ""
