"""Test held-out examples: their number, class proportions and repeatability; and the search for equal examples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tune_sparsity.experiments.data.splits import hold_out, occurs_once


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_hold_out_is_a_partition_with_the_class_proportions(kinds: list[int], data: st.DataObject) -> None:
    labels = torch.tensor(kinds)
    count = data.draw(st.integers(0, len(kinds)))
    kept, held = hold_out(labels, count)
    assert len(held) == count
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(kinds)))
    for part in (kept, held):
        assert part.tolist() == sorted(part.tolist())
    for kind in set(kinds):
        share = kinds.count(kind) * count / len(kinds)
        assert abs(int((labels[held] == kind).sum()) - share) < 1


def test_split_depends_on_nothing_but_its_arguments() -> None:
    labels = torch.arange(300) % 7
    torch.manual_seed(1)
    one = hold_out(labels, 40)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(one, hold_out(labels, 40), strict=True))
    assert not torch.equal(one[1], hold_out(labels, 40, seed=1)[1])


def test_only_allowed_examples_are_held_out() -> None:
    labels = torch.arange(60) % 2
    allowed = torch.arange(60) % 3 == 0
    _, held = hold_out(labels, 20, allowed)
    assert held.tolist() == list(range(0, 60, 3))
    with pytest.raises(ValueError, match="class 0 has only 10 examples that may be held out, but needs 11"):
        hold_out(labels, 22, allowed)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12))
def test_the_function_occurs_once_finds_copies_of_examples(rows: list[tuple[int, int]]) -> None:
    expected = [rows.count(row) == 1 for row in rows]
    assert occurs_once(torch.tensor(rows)).tolist() == expected
    assert occurs_once(torch.tensor(rows).view(-1, 1, 2)).tolist() == expected
