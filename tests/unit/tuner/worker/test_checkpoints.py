"""Tests checkpoints: their content, and how damage is detected."""

from __future__ import annotations

import errno
import math
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_sparsity.tuner.storage.places import Folder
from tune_sparsity.tuner.worker import checkpoints

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STATES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


def stored(folder: Path, number: int, epoch: int, state: Any) -> Path:
    return folder / checkpoints.write(Folder(folder), number, epoch, checkpoints.pack(state))


@given(state=STATES)
def test_a_checkpoint_is_read_back_unchanged(state: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = stored(tmp_path_factory.mktemp("state"), 1, 1, state)
    # repr also compares the types: 1 == 1.0 is true, but their texts differ.
    assert repr(checkpoints.read(Folder(path.parent), path.name)) == repr(state)


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
    state = checkpoints.read(Folder(path.parent), path.name)
    for got in (state[0]["a"], state[0]["b"], state[1][3]):
        assert got.dtype == tensor.dtype
        assert got.shape == tensor.shape
        assert (
            got.numpy(force=True).tobytes() == tensor.contiguous().numpy(force=True).tobytes()
            if (tensor.dtype is not torch.bfloat16)
            else torch.equal(got, tensor)
        )


def test_a_packed_tensor_does_not_change_with_the_original_tensor() -> None:
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
    assert list(checkpoints.newest(Folder(tmp_path), 1)) == []
    assert not (tmp_path / "ran").exists()


# Damage


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Return the files of a trial's last two checkpoints."""
    states = [{"w": torch.randn(300), "epoch": epoch} for epoch in (1, 2, 3)]
    paths = [stored(tmp_path, 7, epoch, state) for epoch, state in enumerate(states, 1)]
    assert not paths[0].exists()
    return paths[1], paths[2]


def epochs_of(folder: Path) -> list[int]:
    return [state["epoch"] for state in checkpoints.newest(Folder(folder), 7)]


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
    # The content matches the hash in the name, so the file is valid. The epoch in its state is still 2.
    two[0].rename(two[0].with_name(two[0].name.replace("-2-", "-9-")))
    assert epochs_of(tmp_path) == [2, 3]
    two[1].write_bytes(two[1].read_bytes() + b"more")
    assert epochs_of(tmp_path) == [2]


def test_checkpoints_belong_to_one_trial_and_those_of_ended_trials_are_removed(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    for number in (1, 2, 10000, 10001):
        stored(tmp_path, number, 1, number)
    assert list(checkpoints.newest(place, 1)) == [1]
    assert list(checkpoints.newest(place, 10001)) == [10001]
    checkpoints.sweep(place, {2, 10001})
    assert [list(checkpoints.newest(place, number)) for number in (1, 2, 10000, 10001)] == [[], [2], [], [10001]]


def test_a_failed_write_raises_an_error_and_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stored(tmp_path, 1, 1, "old")
    monkeypatch.setattr("os.fsync", full)
    writer = checkpoints.Writer(Folder(tmp_path))
    writer.write(1, 2, "new")
    with pytest.raises(OSError, match="No space"):
        writer.finish()
    assert list(checkpoints.newest(Folder(tmp_path), 1)) == ["old"]
    assert len(list(tmp_path.iterdir())) == 1


def test_checkpoint_writing_takes_at_most_a_fixed_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(checkpoints.EVERY_VARIABLE, raising=False)
    clock = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    slow = checkpoints.write

    def write(*args: Any) -> str:
        clock[0] += 2.0
        return slow(*args)

    monkeypatch.setattr(checkpoints, "write", write)
    writer = checkpoints.Writer(Folder(tmp_path))
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


def test_one_background_thread_writes_all_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, threads = checkpoints.write, list[threading.Thread]()

    def told(*args: Any) -> str:
        threads.append(threading.current_thread())
        return write(*args)

    monkeypatch.setattr(checkpoints, "write", told)
    writer = checkpoints.Writer(Folder(tmp_path))
    for number in range(4):
        writer.begin()
        writer.write(number, 1, {})
    writer.finish()
    assert len(threads) == 4
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
