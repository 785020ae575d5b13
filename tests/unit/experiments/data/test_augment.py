"""Test augmentations: each image of a batch against NumPy, and the random numbers that are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from tests.helpers.examples import needs_gpu
from tune_sparsity.experiments.data.augment import Augmentation, Normalise, crop, cutout, flip


def images(n: int, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    shape = (n, channels, height, width)
    return torch.randint(1, 256, shape, generator=Generator().manual_seed(n), dtype=torch.uint8)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# ---- crop, flip and cutout, with given random numbers


@given(st.data(), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9), st.booleans())
def test_crop_is_a_slice_of_the_reflected_image(
    data: st.DataObject, channels: int, height: int, width: int, floats: bool
) -> None:
    x = images(5, channels, height, width)
    x = x.double() / 7 if floats else x
    pad = data.draw(st.integers(0, min(height, width) - 1))
    corners = st.lists(st.integers(0, 2 * pad), min_size=5, max_size=5)
    top, left = data.draw(corners), data.draw(corners)
    out = crop(x, pad, torch.tensor(top), torch.tensor(left))
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    for k in range(5):
        padded = np.pad(x[k].numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
        window = padded[:, top[k] : top[k] + height, left[k] : left[k] + width]
        assert np.array_equal(out[k].numpy(), window)


def test_crop_in_the_middle_changes_nothing() -> None:
    x = images(4)
    assert torch.equal(crop(x, 4, torch.full((4,), 4), torch.full((4,), 4)), x)


def test_flip_mirrors_the_chosen_images() -> None:
    x = images(4)
    out = flip(x, torch.tensor([True, False, True, False]))
    for k in range(4):
        expected = x[k].numpy()[:, :, ::-1] if k % 2 == 0 else x[k].numpy()
        assert np.array_equal(out[k].numpy(), expected)


@given(st.data(), st.integers(1, 7))
def test_cutout_blackens_one_square(data: st.DataObject, size: int) -> None:
    x = images(3)
    top = data.draw(st.lists(st.integers(0, 9 - size), min_size=3, max_size=3))
    left = data.draw(st.lists(st.integers(0, 7 - size), min_size=3, max_size=3))
    out = cutout(x, size, torch.tensor(top), torch.tensor(left))
    assert out.dtype == torch.uint8
    for k in range(3):
        expected = x[k].clone()
        expected[:, top[k] : top[k] + size, left[k] : left[k] + size] = 0
        assert torch.equal(out[k], expected)
        assert int((out[k] == 0).sum()) == 3 * size**2  # no pixel was black before


# ---- all together


def test_the_same_generator_gives_the_same_images() -> None:
    augment, x = Augmentation(4, True, 3), images(64)
    one = augment(x, seeded())
    torch.manual_seed(5)  # the global generator does not matter
    assert torch.equal(one, augment(x, seeded()))
    assert not torch.equal(one, augment(x, seeded(1)))
    assert torch.equal(x, images(64))  # the data set is not changed
    generator = seeded()
    assert not torch.equal(augment(x, generator), augment(x, generator))


def test_an_augmentation_with_all_sizes_zero_changes_nothing() -> None:
    x = images(8)
    generator = seeded()
    before = generator.get_state()
    assert torch.equal(Augmentation(0, False, 0)(x, generator), x)
    assert torch.equal(generator.get_state(), before)


def test_all_windows_flips_and_holes_occur_equally_often() -> None:
    n = 20_000
    place = torch.arange(49, dtype=torch.uint8).view(1, 1, 7, 7).expand(n, 1, 7, 7) + 1
    shifted = Augmentation(1, False, 0)(place, seeded())[:, 0, 3, 3]  # which pixel came to the middle
    assert sorted(shifted.unique().tolist()) == [25 + 7 * i + j for i in (-1, 0, 1) for j in (-1, 0, 1)]
    assert torch.bincount(shifted).max() / (n / 9) < 1.1
    mirrored = Augmentation(0, True, 0)(place, seeded())[:, 0, 0, 0]
    assert sorted(mirrored.unique().tolist()) == [1, 7]
    assert (mirrored == 7).double().mean().item() == pytest.approx(0.5, abs=0.02)
    holes = (Augmentation(0, False, 6)(place, seeded()) == 0).flatten(1)
    assert (holes.sum(1) == 36).all()
    assert len(holes.unique(dim=0)) == 4  # the upper left corner is at 0 or 1 in each of the two directions


def test_order_is_crop_flip_cutout() -> None:
    x = images(50)
    generator = seeded(7)
    top, left = (torch.randint(5, (50,), generator=generator) for _ in range(2))
    which = torch.randint(2, (50,), generator=generator).bool()
    row, column = (torch.randint(limit, (50,), generator=generator) for limit in (7, 5))
    expected = cutout(flip(crop(x, 2, top, left), which), 3, row, column)
    assert torch.equal(Augmentation(2, True, 3)(x, seeded(7)), expected)


def test_normalise_standardises_each_channel() -> None:
    x = images(4)
    out = Normalise((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(x)
    expected = (x.numpy() / 255 - np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)) / np.array([1, 2, 4]).reshape(3, 1, 1)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert Normalise((0.5,), (0.25,)).description() == {"divide": 255, "mean": [0.5], "std": [0.25]}


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_gives_the_same_augmented_images_as_the_cpu() -> None:
    augment, x = Augmentation(4, True, 3), images(64)
    assert torch.equal(augment(x.cuda(), seeded()).cpu(), augment(x, seeded()))
