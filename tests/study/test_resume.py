"""Test interrupted studies: the record after a resume, the lock of a study, and that no password is stored."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from optuna.storages.journal import _file

from tests.helpers.command import run_command
from tests.helpers.examples import thinned
from tests.helpers.outcome import mlflow_runs, trials_of
from tune_sparsity.search_spaces import load_space
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.listeners import SweepCheckpoints
from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.search.asha import Halving
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.storage.lock import lock_study, tidy
from tune_sparsity.tuner.storage.places import Folder
from tune_sparsity.tuner.storage.study_storage import LocalStorage
from tune_sparsity.tuner.study.goal import at_targets
from tune_sparsity.tuner.study.trial import Epoch, TrialState

METRICS = {"train_loss": 0.5, "sparsity": 0.9, "sparsity_total": 0.8, "hoyer": 0.5, "epoch_seconds": 2.0}


def measured(accuracy: float) -> dict[str, float]:
    return {**METRICS, "val_accuracy": accuracy, "val_accuracy_at_target": accuracy, "nonzero_weights": 10.0}


def study_in(folder: Path, clock: Any = time.monotonic, sampler: str = "tpe") -> StudyRun:
    config = make_config({"target": 0.9, "trials": 8, "storage": folder, "study": "s"})
    (folder / "s" / ".checkpoints").mkdir(parents=True, exist_ok=True)
    searcher = OptunaSearcher([load_space("lpss", 0.9)], 0.9, journal=folder / "s" / "optuna.journal", sampler=sampler)
    listeners = [SweepCheckpoints(Folder(folder / "s" / ".checkpoints"))]
    return StudyRun(config, at_targets(0.9), searcher, listeners, Halving((2, 4), target=0.9), clock)


def accuracy(number: int) -> float:
    return (number * 37 % 11) / 11


def train(study: StudyRun, number: int, first: int, last: int, past: int = 0) -> bool:
    """Report the epochs of a trial to the study, as a worker does. Return False if the study stops the trial."""
    epochs = [Epoch(at, measured(accuracy(number) * at / 6)) for at in range(1, max(past, last) + 1)]
    if past:
        study.epochs(number, epochs[:past], again=True)
        for epoch in epochs[: past - 1]:
            study.passed(number, epoch, 0.9)
    for epoch in epochs[first - 1 : last]:
        if epoch.number > past:
            study.epochs(number, [epoch])
        if not study.goes_on(number, epoch, 0.9):
            return False
    return True


def finish(study: StudyRun, number: int, first: int = 1, past: int = 0) -> None:
    goes_on = train(study, number, first, 6, past)
    study.end(number, TrialState.COMPLETED if goes_on else TrialState.PRUNED)


def told(study: StudyRun) -> list[dict[str, Any]]:
    ignored = ("seconds", "ended", "elapsed")
    return [
        {name: value for name, value in record.to_dict().items() if name not in ignored}
        for _, record in sorted(study.records.items())
    ]


CUT = list(product(["tpe", "random"], [0, 3, 6], [(1, 0), (2, 2), (3, 2), (5, 5), (5, 3)]))


@pytest.mark.parametrize(("sampler", "trial", "epochs"), thinned(CUT, 4))
def test_a_killed_and_resumed_study_has_the_record_of_an_uninterrupted_one(
    sampler: str, trial: int, epochs: tuple[int, int], tmp_path: Path
) -> None:
    epoch, kept = epochs
    whole = study_in(tmp_path / "whole", sampler=sampler)
    while (asked := whole.ask()) is not None:
        finish(whole, asked.number)
    broken = study_in(tmp_path / "broken", sampler=sampler)
    while (asked := broken.ask()) is not None and asked.number < trial:
        finish(broken, asked.number)
    assert asked is not None
    train(broken, trial, 1, epoch)  # the process is now killed; its last checkpoint has `kept` epochs
    kept = min(kept, broken.records[trial].epochs)  # the trial may have been stopped early, after fewer epochs
    resumed = study_in(tmp_path / "broken", sampler=sampler)
    assert resumed.ask() == asked
    finish(resumed, trial, max(kept, 1), kept)
    while (asked := resumed.ask()) is not None:
        finish(resumed, asked.number)
    assert told(resumed) == told(whole)
    assert set(resumed.searcher.states().values()) <= {"COMPLETE", "PRUNED", "WAITING"}


def test_repeated_epochs_of_a_restarted_trial_do_not_change_the_record(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    asked = study.ask()
    assert asked is not None
    train(study, asked.number, 1, 5)
    before = told(study)
    study.epochs(asked.number, [Epoch(at, measured(0.1)) for at in range(1, 4)], again=True)
    study.epochs(asked.number, [Epoch(4, measured(0.1))])
    assert told(study) == before
    assert study.training_seconds == 5 * METRICS["epoch_seconds"]


def test_a_resumed_study_continues_the_count_of_its_seconds(tmp_path: Path) -> None:
    now = [100.0]
    first = study_in(tmp_path, lambda: now[0])
    asked = first.ask()
    assert asked is not None
    now[0] += 30
    finish(first, asked.number)
    now[0] = 5.0  # another process, another clock
    second = study_in(tmp_path, lambda: now[0])
    assert second.elapsed_before == 30
    asked = second.ask()
    assert asked is not None
    train(second, asked.number, 4, 5, past=3)
    now[0] += 10
    second.end(asked.number, TrialState.FAILED, "why")
    assert second.records[asked.number].seconds == 3 * METRICS["epoch_seconds"] + 10
    assert study_in(tmp_path).elapsed_before == 40


def test_the_checkpoints_of_trials_that_wait_for_a_restart_are_kept(tmp_path: Path) -> None:
    from tune_sparsity.tuner.worker import checkpoints

    first = study_in(tmp_path)
    numbers = [asked.number for _ in range(3) if (asked := first.ask()) is not None]
    folder = Folder(tmp_path / "s" / ".checkpoints")
    for number in numbers:
        checkpoints.write(folder, number, 1, checkpoints.pack({}))
    second = study_in(tmp_path)
    asked = second.ask()
    assert asked is not None
    finish(second, asked.number)
    assert [len(list(checkpoints.newest(folder, number))) for number in numbers] == [0, 1, 1]


# One process at a time, and what a killed one leaves


def test_a_study_is_run_by_one_process_at_a_time(tmp_path: Path) -> None:
    with lock_study(tmp_path):
        code = "import sys, pathlib; from tune_sparsity.tuner.storage.lock import lock_study\n"
        code += "lock_study(pathlib.Path(sys.argv[1])).__enter__()"
        command = [sys.executable, "-c", code, str(tmp_path)]
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "is being run by another process" in other.stderr
    with lock_study(tmp_path):
        pass


def test_tidy_removes_only_the_temporary_files_of_a_killed_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = ["optuna.journal", "study.yaml", "best/model.safetensors", ".checkpoints/t0001-1-aa.safetensors", "tmp"]
    gone = [".trials.csv.abc.tmp", "best/.model.safetensors.tmp", ".checkpoints/.t0001.tmp", ".ray/trials/x"]
    for name in (*keep, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    os.symlink("optuna.journal", tmp_path / "optuna.journal.lock")
    tidy(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir()} == set(keep)
    (tmp_path / "optuna.journal").unlink()
    monkeypatch.setattr(_file.time, "sleep", lambda seconds: pytest.fail("the killed process's lock is waited for"))
    OptunaSearcher([load_space("lpss", 0.9)], 0.9, journal=tmp_path / "optuna.journal")


# A disk without room


def test_after_a_disk_error_nothing_is_written_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tune_sparsity.tuner.driver.ray_tune import StopWhen

    study, stop = study_in(tmp_path), StopWhen(None)
    asked = stop.unless_disk_full(study.ask)
    assert asked is not None
    journal = tmp_path / "s" / "optuna.journal"
    before, write = journal.read_bytes(), study.searcher.tell

    def torn(record: Any) -> None:
        with journal.open("ab") as file:
            file.write(b'{"op_code": 6, "torn')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(study.searcher, "tell", torn)
    stop.unless_disk_full(finish, study, asked.number)
    assert stop.stop_all()
    assert "No space left" in stop.disk
    monkeypatch.setattr(study.searcher, "tell", write)
    assert stop.unless_disk_full(study.ask) is None
    assert journal.read_bytes().startswith(before)
    assert study_in(tmp_path).ask() == asked
    with pytest.raises(OSError, match="other"):
        StopWhen(None).unless_disk_full(lambda: (_ for _ in ()).throw(OSError(errno.ENOENT, "other")))


# Secrets

SECRET = "postgresql://me:hunter2@db.example/mlflow"


def test_study_yaml_has_no_password_and_resume_asks_for_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tune_sparsity.tuner.config.files import check_withheld, read_study, write_study_yaml

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = make_config({"target": 0.9, "study": "s", "storage": tmp_path, "tracking_uri": SECRET}).resolved()
    from tune_sparsity.experiments import find

    experiment = find("digits")
    epochs, checksum = experiment.recipe.epochs, experiment.load(None).checksum()
    write_study_yaml(config, epochs=epochs, checksum=checksum, device="cpu")
    text = (tmp_path / "s" / "study.yaml").read_text()
    assert "hunter2" not in text
    assert "db.example" in text
    assert main(["resume", "s", "--storage", "."]) == 2
    said = capsys.readouterr().err
    assert "db.example" in said
    assert "MLFLOW_TRACKING_URI" in said
    again = read_study("s", LocalStorage(tmp_path), {"tracking_uri": SECRET})
    check_withheld(again)
    assert again.tracking_uri == SECRET
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET)
    check_withheld(read_study("s", LocalStorage(tmp_path), {}))


def test_a_later_resume_keeps_the_new_number_of_trials(tmp_path: Path) -> None:
    from tune_sparsity.tuner.config.files import keep_extent, read_study, write_study_yaml

    config = make_config({"target": 0.9, "study": "s", "storage": tmp_path, "tracking_uri": SECRET}).resolved()
    write_study_yaml(config, epochs=3, checksum="00", device="cpu")
    before = (tmp_path / "s" / "study.yaml").read_text()
    keep_extent(read_study("s", LocalStorage(tmp_path), {"trials": 50}))
    assert read_study("s", LocalStorage(tmp_path), {}).trials == 50
    assert (tmp_path / "s" / "study.yaml").read_text() == before.replace("trials: 32", "trials: 50")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/etc", "~", "a\\b", "x\n", ".x", "a" * 101, "x\0"])
def test_a_studys_name_is_never_a_path(name: str) -> None:
    with pytest.raises(UsageError):
        make_config({"target": 0.9, "study": name})


def test_a_yaml_file_cannot_run_python_code(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    evil = f"target: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{tmp_path}/ran']]"
    (tmp_path / "s" / "study.yaml").write_text(evil)
    assert main(["resume", "s", "--storage", str(tmp_path)]) == 2
    assert main(["--config", str(tmp_path / "s" / "study.yaml")]) == 2
    assert not (tmp_path / "ran").exists()
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(evil)


ENDS = [
    ([signal.SIGINT], 130),
    ([signal.SIGTERM], 130),
    ([signal.SIGINT, signal.SIGINT], 130),
    ([signal.SIGKILL], -signal.SIGKILL),
    ([], 1),  # no signal to the command: Ray is killed instead
]


def run_until_ended(arguments: list[str], cwd: Path, signals: list[signal.Signals]) -> tuple[int, str]:
    """Run a command until trials.csv has two new rows, and end the command with `signals`. Without signals, kill Ray's
    raylet. Return the exit code and the output on stderr."""
    table = cwd / "studies" / "s" / "trials.csv"
    before = len(rows_of(table))
    command = [sys.executable, "-m", "tune_sparsity", *arguments]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(rows_of(table)) < before + 2 and process.poll() is None:
        time.sleep(0.05)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.3)
    if not signals:
        (raylet,) = (one for one in psutil.Process(process.pid).children(recursive=True) if one.name() == "raylet")
        raylet.kill()
    _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    return {row["number"]: row for row in trials_of(table.parent)} if table.exists() else {}


@pytest.mark.slow
def test_a_study_can_be_resumed_after_every_kind_of_interruption(experiment_file: Path, tmp_path: Path) -> None:
    study = ["--target", "0.5", "--experiment", f"{experiment_file}:slow", "--trials", "1000", "--concurrency", "1"]
    folder = tmp_path / "studies" / "s"
    arguments, kept = [*study, "--study", "s"], dict[str, dict[str, str]]()
    for signals, expected in ENDS:
        code, stderr = run_until_ended(arguments, tmp_path, signals)
        assert code == expected, (signals, stderr)
        if signals != [signal.SIGKILL]:
            assert ("Ray died" in stderr) is not bool(signals)
            assert f"tune-sparsity resume s --storage {tmp_path / 'studies'}" in stderr
            assert "Traceback" not in stderr
        found = rows_of(folder / "trials.csv")
        assert len(kept) + 2 <= len(found) < 1000
        # Parameters that only later trials have make columns, which are empty for the earlier ones.
        assert {number: {name: found[number][name] for name in row} for number, row in kept.items()} == kept
        arguments, kept = ["resume", "s"], found
    trials = len(kept) + 4
    for options in (["--trials", str(trials)], []):
        resumed = run_command(["resume", "s", *options, "--json"], tmp_path)
        assert resumed.code == 0, resumed.stderr
        assert sum(resumed.result()["states"].values()) == trials
        assert f"{trials}/{trials} trials" in resumed.stderr
    found = rows_of(folder / "trials.csv")
    assert {number: {name: found[number][name] for name in row} for number, row in kept.items()} == kept
    assert not list(folder.glob(".*"))
    parents, children = mlflow_runs(tmp_path, resumed.result())
    assert (len(parents), len(children)) == (1, trials)
    assert not [run for run in parents + children if run.info.status == "RUNNING"]
