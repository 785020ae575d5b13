"""Tests trials.csv, pareto.csv and result.json: their columns, their keys, and that programs can read them."""

from __future__ import annotations

import csv
import json
import math
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_sparsity.experiments.metrics import Metric
from tune_sparsity.sparsity import DeadNeurons, NetworkSize
from tune_sparsity.sparsity.layers import LeftDense
from tune_sparsity.tuner.results.tables import (
    StudyOutcome,
    StudySeconds,
    result_document,
    trials_csv,
    write_results,
    write_trials,
)
from tune_sparsity.tuner.study.estimate import shrunk
from tune_sparsity.tuner.study.goal import Goal, along_front, at_most, at_targets, within_bytes
from tune_sparsity.tuner.study.trial import COSTS, TrialRecord, TrialState
from tune_sparsity.tuner.system.files import plain, to_json, write_atomically


def trial(number: int, **fields: Any) -> TrialRecord:
    document = {"method": "lpss", "params": {"p": 1.1}, "state": TrialState.COMPLETED, **fields}
    return TrialRecord.from_dict({"number": number, **document})


SIZES = {"nonzero_weights": 50, "size_bytes": 1234, "macs": 56, "syn_ops": 34, "bit_ops": 12, "train_bytes": 789}
RECORDS = [
    trial(2, state=TrialState.FAILED, reason="loss is NaN,\nat epoch 3", value=math.nan, params={"rho": 0.2}),
    trial(0, value=0.1 + 0.2, sparsity=0.95, sparsity_total=0.94, hoyer=0.5, epochs=4, **SIZES),
    trial(1, value=0.9, sparsity=0.9, nonzero_weights=100, params={"p": 1.2, "lr": 1e-7}, seconds=2.5),
    trial(3, state=TrialState.PRUNED, value=0.99, sparsity=0.97),
    trial(4, state=TrialState.RUNNING),
]


def outcome(folder: Path, records: list[TrialRecord] = RECORDS, **fields: Any) -> StudyOutcome:
    return StudyOutcome("demo", at_targets(0.9), "digits", "lpss", records, folder, **fields)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def reject(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=reject)


def test_the_csv_files_have_the_documented_columns(tmp_path: Path) -> None:
    trials, pareto, _ = write_results(outcome(tmp_path))
    expected = "number,state,p,lr,rho,val_accuracy,sparsity,sparsity_matrices,sparsity_total,hoyer,nonzero_weights,"
    expected += "size_bytes,macs,syn_ops,bit_ops,train_bytes,"
    for path in (trials, pareto):
        heading = path.read_text(encoding="utf-8").splitlines()[0]
        assert heading == expected + "epochs,seconds,method,reason", "of a new column, add the name here"


@pytest.mark.parametrize("name", COSTS)
def test_a_metric_is_refused_if_a_table_column_has_its_name(name: str) -> None:
    with pytest.raises(ValueError, match="another column of the tables has this name"):
        Metric(name, torch.sub)


def test_the_sparsity_over_all_matrices_counts_those_that_stay_dense(tmp_path: Path) -> None:
    size = NetworkSize(2, 250, (LeftDense("embedding.weight", "an embedding", 150),), 450)
    trials, pareto, result = write_results(outcome(tmp_path, size=size))
    known = {row["number"]: row["sparsity_matrices"] for row in rows(trials)}
    assert known == {"0": "0.5", "1": "0.375", "2": "", "3": "", "4": ""}  # 200 and 150 zeros of 400
    assert all(row["sparsity_matrices"] == known[row["number"]] for row in rows(pareto))
    assert strict(result.read_text())["best"]["sparsity_matrices"] == 0.375


def test_trials_csv_has_one_row_per_trial_in_order_of_number(tmp_path: Path) -> None:
    trials, _ = write_trials(tmp_path, RECORDS, at_targets(0.9))
    table = rows(trials)
    assert [row["number"] for row in table] == ["0", "1", "2", "3", "4"]
    assert [row["state"] for row in table] == ["completed", "completed", "failed", "pruned", "running"]
    assert len(trials.read_text(encoding="utf-8").splitlines()) == 6
    assert table[2]["reason"] == "loss is NaN, at epoch 3"


def test_floats_read_back_as_the_same_number_and_what_is_missing_is_empty(tmp_path: Path) -> None:
    table = rows(write_trials(tmp_path, RECORDS, at_targets(0.9))[0])
    assert float(table[0]["val_accuracy"]) == 0.1 + 0.2
    assert float(table[1]["lr"]) == 1e-7
    assert (table[0]["lr"], table[0]["rho"], table[2]["val_accuracy"], table[4]["sparsity"]) == ("", "", "", "")


def test_pandas_reads_the_table_with_its_types(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = write_trials(tmp_path, RECORDS, at_targets(0.9))[0]
    table = pandas.read_csv(path, float_precision="round_trip")  # pandas 2 rounds the last digit otherwise
    assert table["val_accuracy"][0] == 0.1 + 0.2
    assert table["epochs"].tolist() == [4, 0, 0, 0, 0]
    assert table["val_accuracy"].isna().tolist() == [False, False, True, False, True]


def test_pareto_csv_has_rows_of_trials_csv_in_order_of_sparsity(tmp_path: Path) -> None:
    trials, pareto = write_trials(tmp_path, RECORDS, at_targets(0.9))
    assert [row["number"] for row in rows(pareto)] == ["1", "0"]
    lines = trials.read_text(encoding="utf-8").splitlines()
    assert set(pareto.read_text(encoding="utf-8").splitlines()) < set(lines)


def test_a_parameter_that_is_called_like_another_column_is_renamed() -> None:
    header, row = csv.reader(trials_csv([trial(0, params={"epochs": 7, "p": 1.1}, epochs=3)]).splitlines())
    assert len(set(header)) == len(header)
    assert dict(zip(header, row, strict=True))["param.epochs"] == "7"
    assert dict(zip(header, row, strict=True))["epochs"] == "3"


def test_parameters_of_every_type_are_written_as_text_cells() -> None:
    params = {"flag": True, "name": 'a,"b"\nc', "knots": (0.1, 2), "none": None, "odd": {"k": math.inf}}
    header, row = csv.reader(trials_csv([trial(0, params=params)]).splitlines())
    cells = dict(zip(header, row, strict=True))
    assert [cells[name] for name in params] == ["True", 'a,"b" c', "[0.1, 2]", "", '{"k": null}']


def test_a_lone_surrogate_in_a_reason_is_written_escaped(tmp_path: Path) -> None:
    path = write_trials(tmp_path, [trial(0, state=TrialState.FAILED, reason="file \udc80")], at_targets(0.9))[0]
    assert rows(path)[0]["reason"] == "file \\udc80"


def test_numpy_numbers_are_written_as_numbers() -> None:
    np = pytest.importorskip("numpy")
    numbers = {"a": np.float64(0.1), "b": np.int64(3), "c": np.float32("nan"), "d": np.array([1, 2]), "e": np.bool_(1)}
    assert strict(to_json(numbers)) == {"a": 0.1, "b": 3, "c": None, "d": [1, 2], "e": True}
    assert trials_csv([trial(0, params=numbers)]).splitlines()[1].startswith('0,completed,0.1,3,,"[1, 2]",True,')


def test_result_json_has_the_documented_keys(tmp_path: Path) -> None:
    seconds = StudySeconds(total=10.0, startup=0.25, training=6.0, sampling=1.0, tracking=0.5, finishing=0.5)
    size = NetworkSize(2, 1000, (LeftDense("embedding.weight", "an embedding", 250),), 1300)
    found = outcome(tmp_path, seconds=seconds, test_values={1: 0.88}, weights=1000, size=size)
    found = replace(found, dead_neurons={"0.weight": DeadNeurons(2, 40)})
    path = write_results(replace(found, mlflow_experiment_id="3", mlflow_run_id="abc"))[2]
    document = strict(path.read_text(encoding="utf-8"))
    members = {"method": "lpss"}
    best = {"trial": "t0001", "params": {"p": 1.2, "lr": 1e-7}, "val_accuracy": 0.9, "sparsity": 0.9} | members
    best |= {"sparsity_total": None, "nonzero_weights": 100, "size_bytes": None}
    best |= {"macs": None, "syn_ops": None, "bit_ops": None, "train_bytes": None}
    other = {"trial": "t0000", "params": {"p": 1.1}, "val_accuracy": 0.1 + 0.2, "sparsity": 0.95} | members
    other |= {"sparsity_total": 0.94, **SIZES}
    assert document == {
        "study": "demo",
        "target": 0.9,
        "metric": {"name": "accuracy", "direction": "maximize"},
        "experiment": "digits",
        "method": "lpss",
        "states": {"completed": 2, "pruned": 1, "failed": 1},
        "best": best | {"test_accuracy": 0.88, "weights": 1000, "sparsity_matrices": 900 / 1250},
        "dense_weights": {"embedding.weight": 250},
        "dense_share": {"embedding.weight": 0.2},
        "dead_neurons": {"0.weight": {"dead": 2, "neurons": 40}},
        "pareto": [best, other],
        "seconds": {
            **{"total": 10.0, "startup": 0.25, "training": 6.0, "sampling": 1.0},
            **{"tracking": 0.5, "finishing": 0.5, "other": 1.75},
        },
        "mlflow": {"experiment_id": "3", "run_id": "abc"},
    }


def test_a_study_without_a_feasible_trial_has_no_best(tmp_path: Path) -> None:
    document = result_document(outcome(tmp_path, records=[]))
    assert document["best"] is None
    assert document["pareto"] == []
    assert document["states"] == {"completed": 0, "pruned": 0, "failed": 0}
    _, pareto, result = write_results(outcome(tmp_path, records=RECORDS[:1]))
    assert rows(pareto) == []
    assert strict(result.read_text(encoding="utf-8"))["best"] is None


def test_the_json_never_contains_nan(tmp_path: Path) -> None:
    record = trial(0, value=0.9, sparsity=0.9, sparsity_total=math.nan, params={"x": math.inf, "y": [math.nan]})
    document = strict(to_json(result_document(outcome(tmp_path, records=[record]))))
    assert document["best"]["sparsity_total"] is None
    assert document["best"]["params"] == {"x": None, "y": [None]}


def test_the_seconds_of_other_work_are_never_negative() -> None:
    assert StudySeconds(total=1.0, training=1.0, sampling=1e-9).other == 0.0


@given(st.lists(st.floats(0, 1e4), min_size=5, max_size=5), st.floats(0, 1e4))
def test_parts_of_the_seconds_sum_to_the_total(parts: list[float], idle: float) -> None:
    startup, sampling, tracking, finishing, training = parts
    # The driver waits for `idle` seconds. `training` may be longer, because trials also train while the driver works.
    total = startup + sampling + tracking + finishing + idle
    seconds = StudySeconds(total, startup, training, sampling, tracking, finishing).without_overlap().to_dict()
    assert min(seconds.values()) >= 0
    assert sum(seconds.values()) - seconds["total"] == pytest.approx(total, abs=1e-6)
    assert seconds["training"] <= training


def test_the_function_plain_converts_paths_enums_and_tuples_to_json_types() -> None:
    assert plain({1: Path("a"), "s": TrialState.FAILED, "t": (1, None)}) == {"1": "a", "s": "failed", "t": [1, None]}


def test_writing_makes_the_folder_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "demo"
    write_results(outcome(folder))
    write_results(outcome(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["pareto.csv", "result.json", "trials.csv"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trials.csv"
    write_atomically(path, "old\n")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new\n")
    assert path.read_text(encoding="utf-8") == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lone_surrogate_does_not_stop_the_writing_of_a_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "caf\u00e9 \udc80")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "caf\u00e9 \\udc80"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX systems")
def test_written_files_have_the_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    write_atomically(tmp_path / "ours", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "ours")}
    assert len(modes) == 1


# Goals other than one target

FRONT = [
    trial(0, value=0.97, sparsity=0.8, nonzero_weights=200),
    trial(1, value=0.96, sparsity=0.9, nonzero_weights=100),
    trial(2, value=0.90, sparsity=0.95, nonzero_weights=50),
]


def document(goal: Goal, records: list[TrialRecord], folder: Path) -> dict[str, Any]:
    found = StudyOutcome("demo", goal, "digits", "lpss", records, folder, test_values={0: 0.95, 1: 0.94}, weights=1000)
    return dict(strict(to_json(result_document(found))))


def test_with_one_target_the_document_has_no_keys_of_other_goals(tmp_path: Path) -> None:
    assert not {"targets", "front", "max_nonzero", "max_bytes"} & set(document(at_targets(0.9), FRONT, tmp_path))


def test_each_target_has_a_best_trial_and_best_is_that_of_the_lowest_target(tmp_path: Path) -> None:
    found = document(at_targets(0.8, 0.85, 0.99), FRONT, tmp_path)
    assert found["target"] == 0.8
    assert [(one["target"], one["best"] and one["best"]["trial"]) for one in found["targets"]] == [
        (0.8, "t0000"),
        (0.85, "t0001"),
        (0.99, None),
    ]
    assert found["best"] == found["targets"][0]["best"]
    assert [one["best"]["test_accuracy"] for one in found["targets"][:2]] == [0.95, 0.94]
    assert [one["trial"] for one in found["pareto"]] == ["t0000", "t0001", "t0002"]


def test_the_best_at_each_target_has_an_estimate_from_the_trials_at_the_target(tmp_path: Path) -> None:
    values = {0.8: (0.97, 0.96, 0.95, 0.94), 0.9: (0.93, 0.92, 0.91, 0.90)}
    pairs = [(value, sparsity) for sparsity, some in values.items() for value in some]
    records = [trial(number, value=value, sparsity=sparsity) for number, (value, sparsity) in enumerate(pairs)]
    found = StudyOutcome("demo", at_targets(0.8, 0.9), "digits", "lpss", records, tmp_path, examples=200)
    document = result_document(found)
    for one, compared in zip(document["targets"], ([*values[0.8], *values[0.9]], values[0.9]), strict=True):
        estimate = one["best"]["estimated_accuracy"], one["best"]["estimated_accuracy_error"]
        assert estimate == shrunk(one["best"]["val_accuracy"], compared, 200)
    assert document["best"] == document["targets"][0]["best"]
    assert all("estimated_accuracy" not in one for one in document["pareto"])


def test_no_accuracy_is_estimated_outside_0_to_1_or_without_examples(tmp_path: Path) -> None:
    wrong = [trial(number, value=1.5 + number, sparsity=0.9) for number in range(5)]
    for found in (outcome(tmp_path), outcome(tmp_path, records=wrong, examples=200)):
        assert "estimated_accuracy" not in result_document(found)["best"]


def test_the_document_of_a_front_has_its_hypervolume_and_mean_accuracy(tmp_path: Path) -> None:
    found = document(along_front(0.8, 0.9), FRONT, tmp_path)
    assert found["front"]["reference"] == [0.8, 0.0]
    # Trial 1 covers the whole range. Trial 0 has the sparsity of the reference, so its area has no width. Trial 2 is
    # less accurate than trial 1.
    assert found["front"]["hypervolume"] == pytest.approx(0.1 * 0.96)
    assert found["front"]["mean_accuracy"] == pytest.approx(0.96)
    assert [one["test_accuracy"] for one in found["front"]["networks"]] == [0.95, 0.94, None]
    assert (found["front"]["from"], found["front"]["to"], found["target"]) == (0.8, 0.9, 0.8)


def test_the_result_document_has_the_size_limit_and_its_target_sparsity(tmp_path: Path) -> None:
    records = [trial(0, value=0.97, sparsity=0.9, size_bytes=1001), trial(1, value=0.9, sparsity=0.8, size_bytes=999)]
    found = document(within_bytes(1000, 100, 1000), records, tmp_path)
    assert (found["max_bytes"], found["target"], found["best"]["trial"]) == (1000, 0.9, "t0001")
    assert found["best"]["size_bytes"] == 999


def test_the_result_document_has_the_nonzero_limit_and_its_target_sparsity(tmp_path: Path) -> None:
    found = document(at_most(100, 1000), FRONT, tmp_path)
    assert (found["max_nonzero"], found["target"], found["best"]["trial"]) == (100, 0.9, "t0001")
