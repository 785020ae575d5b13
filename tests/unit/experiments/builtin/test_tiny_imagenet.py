"""Test Tiny ImageNet: the images and labels of its folder, and one-line errors for missing files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tune_sparsity.experiments.base import DataUnavailable
from tune_sparsity.experiments.builtin.tiny_imagenet import (
    image_folder,
    judging_files,
    load,
    read_images,
    tiny_imagenet,
)

CLASSES = ("n01443537", "n01629819", "n02977058")


def save(path: Path, shade: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (shade, 0, 255 - shade) if mode == "RGB" else shade).save(path, quality=95)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The standard layout: four training images in each of three classes, and six validation images. The file of the
    validation labels has another order than the images."""
    root = tmp_path / "tiny-imagenet-200"
    for kind, name in enumerate(CLASSES):
        for k in range(4):
            save(root / "train" / name / "images" / f"{name}_{k}.JPEG", 60 * kind + 10 * k)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    lines = []
    for k in range(6):
        save(root / "val" / "images" / f"val_{k}.JPEG", 200 + k)
        lines.append(f"val_{5 - k}.JPEG\t{CLASSES[k % 3]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_training_images_have_the_labels_of_their_folders(folder: Path) -> None:
    classes, files, labels = image_folder(folder / "train")
    assert classes == CLASSES
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    x = read_images(files)
    assert (x.dtype, tuple(x.shape)) == (torch.uint8, (12, 3, 64, 64))
    expected = [60 * kind + 10 * k for kind in range(3) for k in range(4)]
    assert np.allclose(x[:, 0].float().mean((1, 2)).numpy(), expected, atol=3)  # JPEG changes colours slightly
    assert np.allclose(x[:, 2].float().mean((1, 2)).numpy(), [255 - shade for shade in expected], atol=3)


def test_images_of_the_folder_val_have_the_labels_of_their_annotations(folder: Path) -> None:
    files, labels = judging_files(folder, CLASSES)
    assert [path.name for path in files] == [f"val_{5 - k}.JPEG" for k in range(6)]
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.allclose(read_images(files)[:, 0].float().mean((1, 2)).numpy(), [205 - k for k in range(6)], atol=3)


@pytest.mark.parametrize("line", ["val_0.JPEG\tn99999999\t0", "val_0.JPEG"])
def test_annotations_without_a_known_class_are_refused(folder: Path, line: str) -> None:
    (folder / "val" / "val_annotations.txt").write_text(line + "\n")
    with pytest.raises(ValueError, match="names a class that is not in train"):
        judging_files(folder, CLASSES)


def sort_into_classes(folder: Path) -> None:
    """Move the images of val/images into the folders val/CLASS, and remove the annotations."""
    for line in (folder / "val" / "val_annotations.txt").read_text().splitlines():
        file, name, *_ = line.split("\t")
        (folder / "val" / name).mkdir(exist_ok=True)
        (folder / "val" / "images" / file).rename(folder / "val" / name / file)
    (folder / "val" / "val_annotations.txt").unlink()
    (folder / "val" / "images").rmdir()


def test_images_of_the_folder_val_may_be_sorted_into_class_folders(folder: Path) -> None:
    sort_into_classes(folder)
    files, labels = judging_files(folder, CLASSES)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [path.name for path in files] == [f"val_{k}.JPEG" for k in (2, 5, 1, 4, 0, 3)]
    (folder / "val" / CLASSES[0]).rename(folder / "val" / "n09999999")
    with pytest.raises(ValueError, match="neither val_annotations"):
        judging_files(folder, CLASSES)


def test_a_class_without_images_is_told_in_one_line(folder: Path) -> None:
    for path in (folder / "train" / CLASSES[1] / "images").iterdir():
        path.unlink()
    with pytest.raises(DataUnavailable, match=rf"is damaged: .*{CLASSES[1]}") as error:
        load(folder.parent)
    assert "\n" not in str(error.value)


def test_grey_images_get_three_channels(tmp_path: Path) -> None:
    save(tmp_path / "grey.JPEG", 77, mode="L")
    assert (read_images([tmp_path / "grey.JPEG"]) == 77).all()


def test_channels_and_rows_are_not_mixed_up(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_images([tmp_path / "a.png"])[0].permute(1, 2, 0).numpy(), pixels)


def test_files_that_are_no_images_of_64x64_pixels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "large.JPEG", 1, size=(65, 64))
    with pytest.raises(ValueError, match=r"large\.JPEG is not 64x64 pixels"):
        read_images([tmp_path / "large.JPEG"])
    (tmp_path / "cut.JPEG").write_bytes(b"\xff\xd8\xff\xe0")
    for name in ("cut.JPEG", "none.JPEG"):
        with pytest.raises(ValueError, match=f"{name} is no image that can be read"):
            read_images([tmp_path / name])


def test_missing_folder_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"tiny-imagenet-200\.zip") as error:
        load(tmp_path)
    message = str(error.value)
    assert str(tmp_path / "tiny-imagenet-200") in message
    assert "--data-dir" in message
    assert "\n" not in message


def test_incomplete_folder_is_told_in_one_line(folder: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"holds 3, 12 and 6$") as error:
        load(folder.parent)
    assert "\n" not in str(error.value)


def test_the_experiment_trains_a_wide_resnet_22_4_on_augmented_byte_images() -> None:
    model = tiny_imagenet.model()
    assert sum(p.numel() for p in model.parameters()) == 4_644_120
    assert tiny_imagenet.augment is not None
    x = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    x = tiny_imagenet.augment(x, torch.Generator().manual_seed(0))
    assert model(tiny_imagenet.prepare(x)).shape == (2, 200)
