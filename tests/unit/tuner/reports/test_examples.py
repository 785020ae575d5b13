"""Tests which inputs a page shows as images, and their pixels."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tune_sparsity.experiments.base import Data, Split
from tune_sparsity.tuner.reports.examples import pictures_of
from tune_sparsity.tuner.reports.groups import passed_table


def data_with(x: torch.Tensor, **preprocessing: int) -> Data:
    split = Split(x, torch.zeros(len(x), dtype=torch.long))
    return Data(split, split, split, preprocessing=preprocessing)


def pixels(address: str) -> np.ndarray:
    kind, content = address.split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("shape", [(25,), (5, 5), (1, 5, 5)])
def test_a_grey_picture_goes_from_black_to_white(shape: tuple[int, ...]) -> None:
    x = torch.linspace(-1, 2, 25).reshape(1, *shape)
    (address,) = pictures_of(data_with(x, flatten=25), [0])
    assert np.array_equal(pixels(address), np.linspace(0, 255, 25).round().reshape(5, 5))


def test_a_colour_picture_has_its_channels_last() -> None:
    x = torch.zeros(2, 3, 4, 6)
    x[1, 2, 1, 5] = 1.0
    (address,) = pictures_of(data_with(x), [1])
    found = pixels(address)
    assert found.shape == (4, 6, 3)
    assert found[1, 5].tolist() == [0, 0, 255]
    assert found.sum() == 255


def test_an_image_of_one_value_is_black() -> None:
    (address,) = pictures_of(data_with(torch.full((1, 4, 4), 3.0)), [0])
    assert not pixels(address).any()


@pytest.mark.parametrize(
    "data",
    [
        data_with(torch.zeros(1, 25)),  # a row of a table
        data_with(torch.zeros(1, 24), flatten=24),  # no square
        data_with(torch.zeros(1, 2, 5, 5)),
        data_with(torch.zeros(1, 3, 3)),
        data_with(torch.zeros(1, 5, 5, dtype=torch.long)),
    ],
)
def test_inputs_that_are_not_images_are_not_drawn(data: Data) -> None:
    assert pictures_of(data, [0]) == []


def test_the_examples_stand_in_the_row_of_their_classes() -> None:
    pair = {"classes": ["cat", "dog"], "examples": 3, "small": 1, "large": 2}
    group = {"name": "group-1", "passed_pairs": [{**pair, "shown": [1, 0]}, {**pair, "shown": []}]}
    document = {"as_good_as_best": "group-1", "groups": [group]}
    data = data_with(torch.rand(2, 4, 4))
    table = passed_table(document, data)
    assert table["passed_header"][-1] == "it is least sure of"
    words = ["cat or dog", "3", "1", "2"]
    assert [row[:-1] for row in table["passed"]] == [words, words]
    first, second = pictures_of(data, [1, 0])
    assert first != second
    assert [re.findall('src="([^"]*)"', row[-1]) for row in table["passed"]] == [[first, second], []]
    for without in (passed_table(document, None), passed_table(document, data_with(torch.rand(2, 4)))):
        assert without["passed"] == [words, words]
