"""Checkpoints: what they hold, what is noticed when they are damaged, and that a trial goes on from one bit for bit."""

from __future__ import annotations

import errno
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments import find
from tuner import checkpoints, files, trial
from tuner.trial import DISK, EPOCHS, FAILURE, FINAL, TrialSetup, TrialTrainable, shared_arrays, weights_file

EPOCHS_IN_ALL = 5
PARAMS: dict[str, dict[str, Any]] = {
    "lpss": {"p": 1.4, "lr": 0.1, "final_sparsity": 0.9},
    "rigl": {"final_sparsity": 0.9},
    "set": {"final_sparsity": 0.8},
    "sparse-momentum": {"final_sparsity": 0.9},
    "gmp": {"final_sparsity": 0.9},
    "snip": {"final_sparsity": 0.9},
}

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STATES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


def stored(folder: Path, number: int, epoch: int, state: Any) -> Path:
    return folder / checkpoints.write(folder, number, epoch, checkpoints.pack(state))


@given(state=STATES)
def test_what_is_read_is_what_was_written(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = stored(tmp_path_factory.mktemp("state"), 1, 1, state)
    assert repr(checkpoints.read(path.parent, path.name)) == repr(state)  # repr: a tuple is no list, 1 is not 1.0


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(4, 3).t(),
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.tensor([math.nan, math.inf, -0.0]),
        torch.randn(3).half(),
        torch.randn(3).bfloat16(),
        torch.randn(3).double(),
        torch.arange(5),
        torch.tensor(True),
        torch.zeros(0, 3),
        torch.get_rng_state(),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}{tensor.dtype}",
)
def test_tensors_keep_every_bit(tensor: torch.Tensor, tmp_path: Path) -> None:
    shared = OrderedDict(a=tensor, b=tensor)
    path = stored(tmp_path, 1, 1, [shared, {3: tensor}])
    state = checkpoints.read(path.parent, path.name)
    for got in (state[0]["a"], state[0]["b"], state[1][3]):
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert (
            got.numpy(force=True).tobytes() == tensor.contiguous().numpy(force=True).tobytes()
            if (tensor.dtype is not torch.bfloat16)
            else torch.equal(got, tensor)
        )


def test_what_is_packed_does_not_change_any_more() -> None:
    tensor = torch.ones(3)
    tensors, _ = checkpoints.pack({"a": tensor})
    tensor.zero_()
    assert tensors["0"].tolist() == [1, 1, 1]


def test_code_and_other_objects_are_refused() -> None:
    for thing in (print, object(), {1, 2}, b"bytes", Path("x")):
        with pytest.raises(TypeError, match="cannot hold"):
            checkpoints.pack({"a": [thing]})


def test_a_file_of_pickled_code_is_not_run(tmp_path: Path) -> None:
    import hashlib
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    content = pickle.dumps(Evil())
    path = tmp_path / f"t0001-1-{hashlib.sha256(content).hexdigest()}.safetensors"
    path.write_bytes(content)
    assert list(checkpoints.newest(tmp_path, 1)) == []
    assert not (tmp_path / "ran").exists()


# Damage


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The files of a trial's last two checkpoints."""
    states = [{"w": torch.randn(300), "epoch": epoch} for epoch in (1, 2, 3)]
    paths = [stored(tmp_path, 7, epoch, state) for epoch, state in enumerate(states, 1)]
    assert not paths[0].exists()
    return paths[1], paths[2]


def epochs_of(folder: Path) -> list[int]:
    return [state["epoch"] for state in checkpoints.newest(folder, 7)]


@pytest.mark.parametrize("tenths", range(10))
def test_a_checkpoint_that_was_cut_short_is_noticed(tenths: int, two: tuple[Path, Path], tmp_path: Path) -> None:
    content = two[1].read_bytes()
    two[1].write_bytes(content[: len(content) * tenths // 10])
    assert epochs_of(tmp_path) == [2]
    assert not two[1].exists()
    content = two[0].read_bytes()
    two[0].write_bytes(content[: len(content) * tenths // 10])
    assert epochs_of(tmp_path) == []


@pytest.mark.parametrize("place", [0, 7, 8, 20, 100, 0.25, 0.5, 0.75, -1])
def test_a_flipped_bit_is_noticed(place: float, two: tuple[Path, Path], tmp_path: Path) -> None:
    content = bytearray(two[1].read_bytes())
    content[int(place * len(content)) if 0 < place < 1 else int(place)] ^= 1
    two[1].write_bytes(content)
    assert epochs_of(tmp_path) == [2]


def test_a_longer_or_renamed_file_is_noticed(two: tuple[Path, Path], tmp_path: Path) -> None:
    two[0].rename(two[0].with_name(two[0].name.replace("-2-", "-9-")))  # the same bytes: the state says its epoch
    assert epochs_of(tmp_path) == [2, 3]
    two[1].write_bytes(two[1].read_bytes() + b"more")
    assert epochs_of(tmp_path) == [2]


def test_trials_are_told_apart_and_ended_ones_are_swept(tmp_path: Path) -> None:
    for number in (1, 2, 10000, 10001):
        stored(tmp_path, number, 1, number)
    assert list(checkpoints.newest(tmp_path, 1)) == [1]
    assert list(checkpoints.newest(tmp_path, 10001)) == [10001]
    checkpoints.sweep(tmp_path, {2, 10001})
    assert [list(checkpoints.newest(tmp_path, number)) for number in (1, 2, 10000, 10001)] == [[], [2], [], [10001]]


def test_a_write_that_fails_leaves_nothing_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stored(tmp_path, 1, 1, "old")
    monkeypatch.setattr("os.fsync", full)
    writer = checkpoints.Writer(tmp_path)
    writer.write(1, 2, "new")
    with pytest.raises(OSError, match="No space"):
        writer.finish()
    assert list(checkpoints.newest(tmp_path, 1)) == ["old"]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_writer_takes_no_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(checkpoints.EVERY_VARIABLE)
    clock = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    slow = checkpoints.write

    def write(*args: Any) -> str:
        clock[0] += 2.0
        return slow(*args)

    monkeypatch.setattr(checkpoints, "write", write)
    writer = checkpoints.Writer(tmp_path)
    assert not writer.due
    clock[0] += checkpoints.EVERY
    assert writer.due
    writer.write(1, 1, {})
    writer.finish()
    assert not writer.due
    clock[0] += 0.99 * 2.0 / checkpoints.SHARE
    assert not writer.due
    clock[0] += 0.02 * 2.0 / checkpoints.SHARE
    assert writer.due


def test_one_thread_writes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, threads = checkpoints.write, list[threading.Thread]()

    def told(*args: Any) -> str:
        threads.append(threading.current_thread())
        return write(*args)

    monkeypatch.setattr(checkpoints, "write", told)
    writer = checkpoints.Writer(tmp_path)
    for number in range(4):
        writer.begin()
        writer.write(number, 1, {})
    writer.finish()
    assert len(threads) == 4
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()


# Trials


def setup_of(folder: Path) -> tuple[TrialSetup, dict[str, Any]]:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    experiment = find("digits")
    data = experiment.load(None)
    setup = TrialSetup(experiment, EPOCHS_IN_ALL, 3, "cpu", folder / "weights", "digits", folder / "checkpoints")
    return setup, shared_arrays(data)


class Process:
    """A worker process, but for the process."""

    def __init__(self, folder: Path, method: str, number: int = 4) -> None:
        self.trial = object.__new__(TrialTrainable)  # Ray's own part of a Trainable is not needed
        self.trial.setup({"number": number, "method": method, "params": PARAMS[method]}, *setup_of(folder))

    def run(self, epochs: int) -> list[dict[str, Any]]:
        reports = []
        while epochs > 0 and not (reports and reports[-1].get("done")):
            reports.append(self.trial.step())
            epochs -= 1
        if self.trial._writer is not None:
            self.trial._writer.finish()
        return reports


@pytest.fixture(autouse=True, scope="module")
def as_before() -> Iterator[None]:
    """The processor's setting, which a worker changes for good, is this process's own again."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint and a report after every epoch, however long it takes."""
    monkeypatch.setenv(checkpoints.EVERY_VARIABLE, "0")
    monkeypatch.setattr(trial, "TOGETHER", 0.0)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "SHARE", math.inf)
    monkeypatch.setattr(checkpoints.Writer, "due", property(lambda self: True))


def without_seconds(reports: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    epochs = [pair for report in reports for pair in report[EPOCHS]]
    return {epoch: {k: v for k, v in metrics.items() if k != "epoch_seconds"} for epoch, metrics in epochs}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[int, Any], bytes]]:
    """What unbroken trials report, and the networks that they leave."""
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
    assert [epoch for epoch, _ in second[0][EPOCHS]] == list(range(1, broken_after + 1))  # told again, not trained
    assert second[0][EPOCHS] == [pair for report in first for pair in report[EPOCHS]]
    assert second[-1][FINAL]
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
    assert len(reports[0][EPOCHS]) == (1 if tenths == 0 else 2)
    assert without_seconds(reports) == whole["lpss"][0]
    assert weights_file(tmp_path / "weights", 4).read_bytes() == whole["lpss"][1]


@pytest.mark.usefixtures("often")
def test_another_trials_checkpoint_is_not_used(whole: dict[str, Any], tmp_path: Path) -> None:
    Process(tmp_path, "rigl").run(3)  # the same number
    assert without_seconds(Process(tmp_path, "lpss").run(99)) == whole["lpss"][0]


def test_a_process_that_is_ended_keeps_its_trial(whole: dict[str, Any], tmp_path: Path) -> None:
    process = Process(tmp_path, "lpss")
    process.trial._writer._next = math.inf  # type: ignore[union-attr]
    process.run(3)
    assert not list((tmp_path / "checkpoints").iterdir())
    process.trial.cleanup()
    reports = Process(tmp_path, "lpss").run(99)
    assert len(reports[0][EPOCHS]) == 3
    assert without_seconds(reports) == whole["lpss"][0]


# Several epochs a report


def test_epochs_are_reported_together_up_to_a_rung(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "TOGETHER", 3600.0)
    process = Process(tmp_path, "lpss")
    process.trial._shared = replace(process.trial._shared, rungs=(1, 3))
    reports = process.run(99)
    assert [[epoch for epoch, _ in report[EPOCHS]] for report in reports[:2]] == [[1], [2, 3]]
    assert [epoch for epoch, _ in reports[-1][EPOCHS]] == list(range(4, EPOCHS_IN_ALL + 1))
    assert [report.get(FINAL) for report in reports] == [None, None, True]
    assert without_seconds(reports) == whole["lpss"][0]


def test_what_was_trained_before_a_failure_is_reported_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TOGETHER", 3600.0)
    epoch = trial.Training.epoch

    def breaks(training: trial.Training) -> dict[str, float]:
        if training.epochs_done == 2:
            raise ValueError("enough")
        return epoch(training)

    monkeypatch.setattr(trial.Training, "epoch", breaks)
    (report,) = Process(tmp_path, "lpss").run(99)
    assert report[FAILURE] == "ValueError: enough"
    assert report["done"]
    assert [at for at, _ in report[EPOCHS]] == [1, 2]


# Failures


def test_out_of_memory_is_tried_once_more(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, "lpss")
    epoch, failures = trial.Training.epoch, [torch.OutOfMemoryError("CUDA out of memory")]

    def short(training: trial.Training) -> dict[str, float]:
        if training.epochs_done == 2 and failures:
            raise failures.pop()
        return epoch(training)

    monkeypatch.setattr(trial.Training, "epoch", short)
    reports = process.run(99)
    assert reports[-1][FINAL]
    assert without_seconds(reports) == whole["lpss"][0]
    failures += [MemoryError("no memory"), MemoryError("no memory")]
    last = Process(tmp_path, "lpss", number=5).run(99)[-1]
    assert last == {FAILURE: "MemoryError: no memory (twice)", "done": True}


def test_an_exception_of_the_users_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(training: trial.Training) -> dict[str, float]:
        calls.append(1)
        raise ValueError("at postgresql://me:secret@host/db\nand more")

    monkeypatch.setattr(trial.Training, "epoch", broken)
    assert Process(tmp_path, "lpss").run(99) == [{FAILURE: "ValueError: at postgresql://***@host/db", "done": True}]
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

    monkeypatch.setattr(files, "write_bytes", full)
    process = Process(tmp_path, "lpss")
    reports = []
    for _ in range(EPOCHS_IN_ALL):
        reports.append(process.trial.step())
        if (written := process.trial._writer._written) is not None:  # type: ignore[union-attr]
            written.result()
    told = [report for report in reports if DISK in report]
    assert told
    assert "No space left on device" in told[0][DISK]
    assert not any(report.get("done") for report in told)
    room[0] = True
    assert without_seconds(Process(tmp_path, "lpss").run(99)) == whole["lpss"][0]
