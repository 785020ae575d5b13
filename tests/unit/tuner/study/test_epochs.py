"""Tests epochs.csv: each epoch is read as it was written, even after a crash and a restart."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tune_sparsity.tuner.study.epochs import EpochLog, columns, read_epochs
from tune_sparsity.tuner.study.objective import ACCURACY

numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.dictionaries(st.sampled_from(columns(ACCURACY)), numbers, min_size=2), min_size=1, max_size=6))
def test_every_epoch_reads_back_to_the_bit(epochs: list[dict[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = EpochLog(Path(folder) / "epochs.csv")
        for i, metrics in enumerate(epochs):
            log.add(3, i + 1, metrics)
            log.add(4, i + 1, {"sparsity": 0.5, "hoyer": 0.25, "not a column": 1.0})
        read = read_epochs(Path(folder) / "epochs.csv")
    assert read[3] == [{"epoch": i + 1.0, **metrics} for i, metrics in enumerate(epochs)]
    assert read[4] == [{"epoch": i + 1.0, "sparsity": 0.5, "hoyer": 0.25} for i in range(len(epochs))]


def test_a_file_of_an_earlier_version_goes_on_with_its_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "epochs.csv"
    path.write_text("number,epoch,train_loss,sparsity\n0,1,0.5,0.25\n")
    EpochLog(path).add(0, 2, {"train_loss": 0.75, "sparsity": 0.5, "size_bytes": 100.0})
    assert [one["sparsity"] for one in read_epochs(path)[0]] == [0.25, 0.5]
    assert path.read_text().splitlines()[2] == "0,2,0.75,0.5"


def test_a_trial_that_began_again_has_each_epoch_once(tmp_path: Path) -> None:
    log = EpochLog(tmp_path / "epochs.csv")
    for epoch, accuracy in ((1, 0.1), (2, 0.2), (3, 0.3), (1, 0.15), (2, 0.25)):
        log.add(0, epoch, {"val_accuracy": accuracy, "sparsity": 0.0})
    assert [(one["epoch"], one["val_accuracy"]) for one in read_epochs(tmp_path / "epochs.csv")[0]] == [
        (1, 0.15),
        (2, 0.25),
    ]


def test_rows_that_a_process_died_in_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "epochs.csv"
    EpochLog(path).add(0, 1, {"val_accuracy": 0.5, "sparsity": 0.1})
    path.write_text(path.read_text() + "0,2,0.1")
    EpochLog(path).add(1, 1, {"val_accuracy": 0.5, "sparsity": 0.1})  # continues the torn row, so both rows are lost
    EpochLog(path).add(1, 2, {"val_accuracy": 0.6, "sparsity": 0.2})
    read = read_epochs(path)
    assert [one["epoch"] for one in read[0]] == [1]
    assert [one["epoch"] for one in read[1]] == [2]


def test_missing_files_and_folders_of_epochs_raise_no_error(tmp_path: Path) -> None:
    assert read_epochs(tmp_path / "none") == {}
    EpochLog(tmp_path / "gone" / "epochs.csv").add(0, 1, {"sparsity": 0.5})
