"""Test the parser of the LIBSVM format: it returns the written examples, and names the line of an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tune_sparsity.experiments.data.libsvm import parse_libsvm

tables = npst.arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.integers(1, 8)),
    elements=st.one_of(st.just(0.0), st.floats(width=32, allow_nan=False, allow_infinity=False)),
)


def written(x: np.ndarray, labels: list[int]) -> str:
    rows = [
        " ".join([str(label), *(f"{j + 1}:{float(value)!r}" for j, value in enumerate(row) if value)])
        for label, row in zip(labels, x, strict=True)
    ]
    return "".join(f"{row} \n" for row in rows)


@given(tables, st.data())
def test_parse_libsvm_returns_the_examples_of_a_text(x: np.ndarray, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(-5, 10**6), min_size=len(x), max_size=len(x)))
    back, kinds = parse_libsvm(written(x, labels), x.shape[1])
    assert (back.dtype, kinds.dtype) == (torch.float32, torch.int64)
    assert back.shape == x.shape
    assert np.array_equal(back.numpy(), x)
    assert kinds.tolist() == labels


def test_parse_libsvm_reads_a_known_text() -> None:
    x, y = parse_libsvm("+1 1:1 3:-2.5\r\n\n-1\n0 2:1e-1 3:.5", 3)
    assert torch.equal(x, torch.tensor([[1.0, 0, -2.5], [0, 0, 0], [0, 0.1, 0.5]]))
    assert y.tolist() == [1, -1, 0]


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_a_text_without_examples_gives_empty_tensors(text: str) -> None:
    x, y = parse_libsvm(text, 3)
    assert (x.shape, y.shape) == ((0, 3), (0,))


@pytest.mark.parametrize(
    "line",
    [
        "a 1:1",
        "1.5 1:1",
        "nan 1:1",
        "1:1 2:1",
        "1 1",
        "1 1:",
        "1 :1",
        "1 1:x",
        "1 1:nan",
        "1 1:inf",
        "1 1:1e39",
        "1 1:1e999",
        "1 1:1:1",
        "1 1_0:1",
        "1 1:1_0",
        "1 0:1",
        "1 -1:1",
        "1 4:1",
        "1 2:1 1:1",
        "1 2:1 2:1",
        "1 1:1,2:1",
        "1 1:1 # comment",
        "9999999999999999999 1:1",
        "1 99999999999999999999:1",
        "<html>not found</html>",
    ],
)
def test_malformed_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 2: ") as error:
        parse_libsvm(f"1 1:1\n{line}\n1 1:1\n", 3)
    assert "\n" not in str(error.value)


@given(st.text(alphabet="01 :.-+e\nx", max_size=40))
def test_any_text_is_refused_or_gives_finite_numbers(text: str) -> None:
    try:
        x, y = parse_libsvm(text, 4)
    except ValueError:
        return
    assert x.shape == (len(y), 4)
    assert x.isfinite().all()
