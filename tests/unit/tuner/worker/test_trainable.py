"""Tests a trial in its process: it continues from a checkpoint bit for bit, and reports its epochs and its end."""

from __future__ import annotations

import errno
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tune_sparsity.experiments import find
from tune_sparsity.tuner.storage import places
from tune_sparsity.tuner.storage.places import Folder
from tune_sparsity.tuner.study.layout import weights_file
from tune_sparsity.tuner.study.trial import Epoch
from tune_sparsity.tuner.system import files
from tune_sparsity.tuner.worker import checkpoints, trainable
from tune_sparsity.tuner.worker.report import Report, take_weights
from tune_sparsity.tuner.worker.trainable import TrialSetup, TrialTrainable, shared_arrays

EPOCHS_IN_ALL = 5
PARAMS: dict[str, dict[str, Any]] = {
    "lpss": {"p": 1.4, "lr": 0.1, "final_sparsity": 0.9},
    "rigl": {"final_sparsity": 0.9},
    "set": {"final_sparsity": 0.8},
    "sparse-momentum": {"final_sparsity": 0.9},
    "gmp": {"final_sparsity": 0.9},
    "snip": {"final_sparsity": 0.9},
}


def setup_of(folder: Path) -> tuple[TrialSetup, dict[str, Any]]:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    experiment = find("digits")
    data = experiment.load(None)
    setup = TrialSetup(
        experiment, EPOCHS_IN_ALL, 3, "cpu", folder / "weights", "digits", Folder(folder / "checkpoints")
    )
    return setup, shared_arrays(data)


class Process:
    """Stands for a worker process, within the test's own process."""

    def __init__(self, folder: Path, method: str, number: int = 4) -> None:
        self.trial = object.__new__(TrialTrainable)  # the constructor of Ray's Trainable is not needed
        self.trial.setup({"number": number, "method": method, "params": PARAMS[method]}, *setup_of(folder))

    def run(self, epochs: int) -> list[Report]:
        reports = []
        for _ in range(epochs):
            told = self.trial.step()
            reports.append(Report.from_dict(told))
            if told.get("done"):  # Ray ends the trial
                break
        if self.trial._writer is not None:
            self.trial._writer.finish()
        return reports


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a trial write a checkpoint and a report after every epoch, no matter how long an epoch takes."""
    monkeypatch.setenv(checkpoints.EVERY_VARIABLE, "0")
    monkeypatch.setattr(trainable, "TOGETHER", 0.0)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)
    monkeypatch.setattr(checkpoints.Writer, "due", property(lambda self: True))


def without_seconds(reports: list[Report]) -> dict[int, dict[str, float]]:
    epochs = [epoch for report in reports for epoch in report.epochs]
    return {epoch.number: {k: v for k, v in epoch.metrics.items() if k != "epoch_seconds"} for epoch in epochs}


def numbers(report: Report) -> list[int]:
    return [epoch.number for epoch in report.epochs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[int, Any], bytes]]:
    """Return, for each method, the reports and the network of an uninterrupted trial."""
    found = {}
    for method in PARAMS:
        folder = tmp_path_factory.mktemp("whole")
        reports = Process(folder, method).run(99)
        found[method] = (without_seconds(reports), weights_file(folder / "weights", 4).read_bytes())
    return found


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("method", "broken_after"), [*((method, 3) for method in PARAMS), ("lpss", 1), ("lpss", 4)])
def test_a_trial_that_goes_on_equals_an_unbroken_one(
    method: str, broken_after: int, whole: dict[str, Any], tmp_path: Path
) -> None:
    first = Process(tmp_path, method).run(broken_after)
    second = Process(tmp_path, method).run(99)
    assert numbers(second[0]) == list(range(1, broken_after + 1))  # reported again, but not trained again
    assert second[0].epochs == tuple(epoch for report in first for epoch in report.epochs)
    assert [report.again for report in second] == [True] + [False] * (len(second) - 1)
    assert second[-1].finished
    assert without_seconds(second) == whole[method][0]
    assert weights_file(tmp_path / "weights", 4).read_bytes() == whole[method][1]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("tenths", [0, 1, 5, 9])
def test_a_damaged_checkpoint_never_gives_another_result(tenths: int, whole: dict[str, Any], tmp_path: Path) -> None:
    Process(tmp_path, "lpss").run(3)
    paths = sorted((tmp_path / "checkpoints").iterdir())
    assert len(paths) == checkpoints.KEPT
    for path in paths if tenths == 0 else paths[-1:]:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * tenths // 10])
    reports = Process(tmp_path, "lpss").run(99)
    assert len(reports[0].epochs) == (1 if tenths == 0 else 2)
    assert without_seconds(reports) == whole["lpss"][0]
    assert weights_file(tmp_path / "weights", 4).read_bytes() == whole["lpss"][1]


@pytest.mark.usefixtures("often")
def test_the_checkpoint_of_another_trial_is_not_used(whole: dict[str, Any], tmp_path: Path) -> None:
    Process(tmp_path, "rigl").run(3)  # both trials have the number 4, so their checkpoints have the same names
    assert without_seconds(Process(tmp_path, "lpss").run(99)) == whole["lpss"][0]


def test_a_worker_process_that_ends_writes_the_checkpoint_of_its_trial(whole: dict[str, Any], tmp_path: Path) -> None:
    process = Process(tmp_path, "lpss")
    process.trial._writer._next = math.inf  # type: ignore[union-attr]
    process.run(3)
    assert not list((tmp_path / "checkpoints").iterdir())
    process.trial.cleanup()
    reports = Process(tmp_path, "lpss").run(99)
    assert len(reports[0].epochs) == 3
    assert without_seconds(reports) == whole["lpss"][0]


# Several epochs a report


def test_epochs_are_reported_together_up_to_a_rung(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "TOGETHER", 3600.0)
    process = Process(tmp_path, "lpss")
    process.trial._shared = replace(process.trial._shared, rungs=(1, 3))
    reports = process.run(99)
    assert [numbers(report) for report in reports] == [[1], [2, 3], list(range(4, EPOCHS_IN_ALL + 1))]
    assert [report.finished for report in reports] == [False, False, True]
    assert without_seconds(reports) == whole["lpss"][0]


@pytest.mark.parametrize(
    ("error", "told"), [(ValueError("enough"), "ValueError: enough"), (SystemExit(3), "SystemExit: 3")]
)
def test_the_report_of_a_failure_has_the_epochs_before_it(
    error: BaseException, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable, "TOGETHER", 3600.0)
    epoch = trainable.Training.epoch

    def breaks(training: trainable.Training) -> dict[str, float]:
        if training.epochs_done == 2:
            raise error
        return epoch(training)

    monkeypatch.setattr(trainable.Training, "epoch", breaks)
    (report,) = Process(tmp_path, "lpss").run(99)
    assert report.failure == told
    assert numbers(report) == [1, 2]


# The report as Ray's dict


def test_a_report_arrives_as_it_was_sent() -> None:
    epochs = (Epoch(3, {"val_accuracy": 0.5}), Epoch(4, {"val_accuracy": 0.6}))
    for report, done in (
        (Report(epochs, again=True, final_sparsity=0.9), None),
        (Report(epochs, final_sparsity=0.9, finished=True), True),
        (Report(epochs, failure="why"), True),
        (Report(failure="why"), True),
        (Report(disk="why"), None),
    ):
        told = report.to_dict()
        assert told.get("done") == done
        assert Report.from_dict({**told, "training_iteration": 7, "pid": 1}) == report


def test_the_weights_are_removed_from_every_copy_of_a_report(whole: dict[str, Any], tmp_path: Path) -> None:
    process = Process(tmp_path, "lpss")
    process.trial._shared = replace(process.trial._shared, weights_folder=None)
    told = process.trial.step()
    while not told.get("done"):
        assert take_weights(told) is None
        told = process.trial.step()
    kept = dict(told)
    assert take_weights(told) == whole["lpss"][1]
    assert take_weights(kept) is None


# Failures


def test_out_of_memory_is_tried_once_more(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, "lpss")
    epoch, failures = trainable.Training.epoch, [torch.OutOfMemoryError("CUDA out of memory")]

    def short(training: trainable.Training) -> dict[str, float]:
        if training.epochs_done == 2 and failures:
            raise failures.pop()
        return epoch(training)

    monkeypatch.setattr(trainable.Training, "epoch", short)
    reports = process.run(99)
    assert reports[-1].finished
    assert without_seconds(reports) == whole["lpss"][0]
    failures += [MemoryError("no memory"), MemoryError("no memory")]
    last = Process(tmp_path, "lpss", number=5).run(99)[-1]
    assert last == Report(failure="MemoryError: no memory (twice)")


def test_a_trial_is_not_tried_again_after_an_exception_in_user_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(training: trainable.Training) -> dict[str, float]:
        calls.append(1)
        raise ValueError("\x1b[31mat postgresql://me:secret@host/db\nand more")

    monkeypatch.setattr(trainable.Training, "epoch", broken)
    assert Process(tmp_path, "lpss").run(99) == [Report(failure="ValueError: [31mat postgresql://***@host/db")]
    assert len(calls) == 1


@pytest.mark.parametrize("what", ["weights", "checkpoint"])
def test_a_full_disk_is_no_failure_of_the_trial(
    what: str, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_bytes
    room = [False]

    def full(path: Path, content: bytes) -> None:
        if not room[0] and (path.parent.name == "weights") == (what == "weights"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    for module in (places, files):  # `places` writes checkpoints, `files` writes networks
        monkeypatch.setattr(module, "write_bytes", full)
    process = Process(tmp_path, "lpss")
    reports = []
    for _ in range(EPOCHS_IN_ALL):
        reports.append(Report.from_dict(process.trial.step()))
        if (written := process.trial._writer._written) is not None:  # type: ignore[union-attr]
            written.result()
    told = [report for report in reports if report.disk]
    assert told
    assert "No space left on device" in told[0].disk
    assert told == [Report(disk=report.disk) for report in told]  # no other field is set, so no report ends the trial
    room[0] = True
    assert without_seconds(Process(tmp_path, "lpss").run(99)) == whole["lpss"][0]
