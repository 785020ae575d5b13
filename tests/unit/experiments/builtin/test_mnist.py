"""Test the parser of IDX files, the one-line errors for damaged files, and the real data sets."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import struct
import urllib.request
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tune_sparsity.experiments.base import Data, DataUnavailable, Recipe, Split
from tune_sparsity.experiments.builtin.mnist import (
    fashion_mnist,
    fashion_mnist_wrn,
    load,
    load_images,
    mnist,
    mnist_wrn,
    parse_idx,
)
from tune_sparsity.experiments.data.augment import Augmentation, Normalise
from tune_sparsity.experiments.data.files import default_data_dir
from tune_sparsity.experiments.training import Training

FILES = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
]

arrays = npst.arrays(np.uint8, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))


def idx(array: np.ndarray) -> bytes:
    """Return the bytes of an IDX file, written without the tested code."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


# ---- the parser


@given(arrays)
def test_parse_idx_returns_the_array_of_a_file(array: np.ndarray) -> None:
    tensor = parse_idx(idx(array))
    assert tensor.dtype == torch.uint8
    assert tuple(tensor.shape) == array.shape
    assert np.array_equal(tensor.numpy(), array)


def test_parse_idx_reads_known_bytes() -> None:
    raw = bytes.fromhex("000008020000000200000003") + bytes([1, 2, 3, 4, 5, 255])
    assert parse_idx(raw).tolist() == [[1, 2, 3], [4, 5, 255]]


@given(arrays, st.data())
def test_truncated_files_are_refused(array: np.ndarray, data: st.DataObject) -> None:
    raw = idx(array)
    keep = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(ValueError, match=r"^(not an IDX file of bytes|holds \d+ bytes where its header says \d+)$"):
        parse_idx(raw[:keep])


@given(arrays, st.binary(min_size=1, max_size=20))
def test_files_with_too_many_bytes_are_refused(array: np.ndarray, more: bytes) -> None:
    with pytest.raises(ValueError, match="bytes where its header says"):
        parse_idx(idx(array) + more)


@given(st.binary(max_size=200), st.booleans())
@example(b"\0\0\x08\x03" + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1), False)  # 0 images, each too large for numpy
@example(b"\0\0\x08\x46" + struct.pack(">70I", *[1] * 70) + b"x", False)  # more dimensions than numpy has
@example(b"\0\0\x08\x02" + struct.pack(">2I", 2**31, 2**31), False)
def test_random_bytes_are_refused_unless_they_are_a_valid_idx_file(raw: bytes, prefixed: bool) -> None:
    raw = b"\0\0\x08" + raw if prefixed else raw
    try:
        tensor = parse_idx(raw)
    except ValueError:
        return
    assert raw == idx(tensor.numpy())


@pytest.mark.parametrize("kind", [0x09, 0x0B, 0x0C, 0x0D, 0x0E])
def test_files_of_other_number_types_are_refused(kind: int) -> None:
    with pytest.raises(ValueError, match="not an IDX file of bytes"):
        parse_idx(bytes([0, 0, kind, 1]) + struct.pack(">I", 4) + bytes(4))


# ---- folders


def test_the_default_folder_follows_the_environment_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNE_SPARSITY_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("TUNE_SPARSITY_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "tune-sparsity" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".cache" / "tune-sparsity" / "data"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of all attempted downloads. Every download fails."""
    tried: list[str] = []

    def fail(request: Any, *args: Any, **kwargs: Any) -> NoReturn:
        tried.append(request if isinstance(request, str) else request.full_url)
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    return tried


@pytest.mark.parametrize("data_set", ["MNIST", "FashionMNIST"])
def test_missing_data_without_internet_access_give_a_one_line_error(
    data_set: str, offline: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "not" / "there"
    with pytest.raises(DataUnavailable) as error:
        load(data_set, root)
    message = str(error.value)
    assert offline
    assert "\n" not in message
    for part in (data_set, str(root), "--data-dir", "Error downloading"):
        assert part in message
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_failed_download_keeps_the_earlier_files_and_folders(offline: list[str], tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataUnavailable):
        load("MNIST", tmp_path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "MNIST", raw, tmp_path / "empty"]
    (raw / FILES[0]).write_bytes(b"a part")
    with pytest.raises(DataUnavailable):
        load("MNIST", tmp_path)
    assert (raw / FILES[0]).read_bytes() == b"a part"
    assert offline


def test_a_folder_that_cannot_be_written_gives_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataUnavailable) as error:
        load("MNIST", tmp_path / "file")
    assert "\n" not in str(error.value)


# ---- damage


def damaged(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "flipped":
        raw[len(raw) // 2] ^= 1
    elif how == "cut":
        del raw[len(raw) // 2 :]
    elif how == "empty":
        raw.clear()
    else:
        raw = bytearray(b"<html>not found</html>")
    path.unlink()
    path.write_bytes(raw)


@pytest.fixture
def linked(data_dir: Path, tmp_path: Path) -> Path:
    """A data folder for one test, with links to the real files of MNIST."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).symlink_to(data_dir / "MNIST" / "raw" / name)
    return tmp_path


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "replaced"])
@pytest.mark.parametrize("name", [FILES[0], FILES[3]])
def test_a_damaged_archive_gives_a_one_line_error(linked: Path, name: str, how: str) -> None:
    damaged(linked / "MNIST" / "raw" / name, how)
    with pytest.raises(DataUnavailable, match=r"is damaged \(its MD5 checksum") as error:
        load("MNIST", linked)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["cut", "empty", "replaced"])
def test_a_damaged_unpacked_file_gives_a_one_line_error(linked: Path, how: str) -> None:
    raw = linked / "MNIST" / "raw"
    plain = raw / FILES[3].removesuffix(".gz")
    plain.write_bytes(gzip.decompress((raw / FILES[3]).read_bytes()))
    damaged(plain, how)
    with pytest.raises(DataUnavailable, match="is damaged") as error:
        load("MNIST", linked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(9999,), (10000, 1), ()])
def test_files_of_another_shape_are_refused(linked: Path, shape: tuple[int, ...]) -> None:
    plain = linked / "MNIST" / "raw" / FILES[3].removesuffix(".gz")
    plain.write_bytes(idx(np.zeros(shape, np.uint8)))
    with pytest.raises(DataUnavailable, match="the test set should hold 10000 examples"):
        load("MNIST", linked)


# ---- the real data

COUNTS = {  # the number of examples of each class in the whole training set
    "MNIST": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "FashionMNIST": [6000] * 10,
}
TEST_COUNTS = {
    "MNIST": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    "FashionMNIST": [1000] * 10,
}


@pytest.fixture(scope="module", params=["MNIST", "FashionMNIST"])
def real(request: pytest.FixtureRequest, data_dir: Path) -> tuple[str, Data]:
    if not (data_dir / request.param / "raw" / FILES[0]).is_file():
        pytest.skip(f"no {request.param}/raw under the data folder")
    return request.param, load(request.param, data_dir)


@pytest.mark.slow
def test_the_real_data_have_the_published_sizes_and_statistics(real: tuple[str, Data]) -> None:
    name, data = real
    assert [tuple(split.x.shape) for split in (data.train, data.val, data.test)] == [
        (55000, 784),
        (5000, 784),
        (10000, 784),
    ]
    together = torch.bincount(data.train.y) + torch.bincount(data.val.y)
    assert together.tolist() == COUNTS[name]
    assert torch.bincount(data.test.y).tolist() == TEST_COUNTS[name]
    assert torch.bincount(data.val.y).min() > 350  # the examples are drawn at random, so every class has some
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64
    assert data.train.x.double().mean().item() == pytest.approx(0.0, abs=1e-4)
    assert data.train.x.double().std().item() == pytest.approx(1.0, abs=1e-4)
    published = {"MNIST": (0.1307, 0.3081), "FashionMNIST": (0.2860, 0.3530)}[name]
    assert (data.preprocessing["mean"], data.preprocessing["std"]) == pytest.approx(published, abs=5e-4)
    assert len(data.classes) == 10


@pytest.mark.slow
def test_the_test_images_have_the_pixels_of_the_real_file(real: tuple[str, Data], data_dir: Path) -> None:
    name, data = real
    raw = gzip.decompress((data_dir / name / "raw" / FILES[2]).read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(10000, 784)
    back = data.test.x.numpy().astype(np.float64) * data.preprocessing["std"] + data.preprocessing["mean"]
    assert np.array_equal((back * 255).round().astype(np.uint8), pixels)


@pytest.mark.slow
def test_data_set_can_be_read_unpacked_and_after_a_download(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = data_dir / "MNIST" / "raw"

    def download(root: Path, download: bool) -> None:
        assert download
        print("Downloading")  # as torchvision has done: it must not get into a result on standard output
        target = root / "MNIST" / "raw"
        target.mkdir(parents=True)
        for name in FILES:
            shutil.copy(source / name, target)
        (target / FILES[3].removesuffix(".gz")).write_bytes(gzip.decompress((source / FILES[3]).read_bytes()))

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    monkeypatch.setenv("TUNE_SPARSITY_DATA", str(tmp_path / "new"))
    data = mnist.load(None)
    assert capsys.readouterr().out == ""
    assert data.checksum() == load("MNIST", data_dir).checksum()  # the same split every time, and the same bytes


def test_mnist_and_fashion_mnist_have_their_names_and_mnist_uses_lenet() -> None:
    assert (mnist.name, fashion_mnist.name) == ("mnist", "fashion-mnist")
    assert sum(p.numel() for p in mnist.model().parameters() if p.dim() > 1) == 266_200


# ---- as images


@pytest.mark.slow
def test_images_have_the_pixels_and_splits_of_the_flat_data(real: tuple[str, Data], data_dir: Path) -> None:
    name, flat = real
    images = load_images(name, Normalise((0.13,), (0.31,)), data_dir)
    assert images.preprocessing == {"divide": 255, "mean": [0.13], "std": [0.31]}
    mean, std = flat.preprocessing["mean"], flat.preprocessing["std"]
    for ours, theirs in zip((images.train, images.val, images.test), (flat.train, flat.val, flat.test), strict=True):
        assert ours.x.dtype == torch.uint8
        assert tuple(ours.x.shape) == (len(theirs.x), 1, 28, 28)
        assert torch.equal(ours.y, theirs.y)
        some = slice(0, None, 20)
        torch.testing.assert_close((ours.x[some].flatten(1).float() / 255 - mean) / std, theirs.x[some])


def test_residual_experiments_have_the_published_sizes_and_their_recipes() -> None:
    sizes = [sum(p.numel() for p in one.model().parameters()) for one in (mnist_wrn, fashion_mnist_wrn)]
    assert sizes == [170_298, 267_514]
    assert [one.recipe.epochs for one in (mnist_wrn, fashion_mnist_wrn)] == [40, 50]
    assert mnist_wrn.augment is None
    assert fashion_mnist_wrn.augment == Augmentation(pad=4, mirror=True, hole=6)
    assert mnist_wrn.prepare == fashion_mnist_wrn.prepare == Normalise((0.13,), (0.31,))


@pytest.mark.slow
def test_residual_net_learns_digits_in_thirty_steps(data_dir: Path) -> None:
    if not (data_dir / "MNIST" / "raw" / FILES[0]).is_file():
        pytest.skip("no MNIST/raw under the data folder")
    data = mnist_wrn.load(data_dir)
    short = dataclasses.replace(mnist_wrn, recipe=Recipe(epochs=3, batch_size=32))
    train, val = (Split(part.x[:size], part.y[:size]) for part, size in ((data.train, 320), (data.val, 200)))
    params = {"p": 1.4, "final_sparsity": 0.8, "sphere_lr": 0.02, "threshold_interval": 5}
    training = Training(short, train, val, "lpss", params, epochs=3, seed=0)
    measured = [training.epoch() for _ in range(3)]
    assert training.sparse.steps == 30
    assert measured[2]["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert measured[1]["train_loss"] < 0.8 * measured[0]["train_loss"]
    assert measured[1]["val_accuracy_at_target"] > 0.4
