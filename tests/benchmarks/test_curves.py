"""Test the table of trainings: its configurations, its file, and the list of the missing trainings."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution

from benchmarks.curves.collect import SEEDS, SEVERAL, trained, wanted
from benchmarks.curves.points import LEAST, MOST, SPARSITY, point, space_of
from benchmarks.curves.table import Row, Table

ROW = Row(0, 0, {"lr": 0.1, "drop": "ramp"}, [0.5, 0.75], 0.25, 0.625, 1.5)


@pytest.mark.parametrize("method", ["lpss", "gmp", "rigl"])
def test_a_point_has_the_parameters_that_apply_and_no_others(method: str) -> None:
    space = space_of(method)
    for index in range(64):
        values = point(method, index)
        for name, distribution in space.distributions.items():
            assert (name in values) is space.applies(name, values)
            if name in values and name != SPARSITY:
                assert distribution._contains(distribution.to_internal_repr(values[name]))
        assert LEAST <= values[SPARSITY] <= MOST


def test_the_points_fill_the_space_evenly() -> None:
    """The first 256 points of a Sobol sequence put 32 values into each eighth of a parameter's range."""
    points = [point("lpss", index) for index in range(256)]
    density = np.log([(1 - one[SPARSITY]) / (1 - MOST) for one in points]) / np.log((1 - LEAST) / (1 - MOST))
    p = (np.array([one["p"] for one in points]) - 1.05) / 0.95
    for places in (density, p):
        counts, _ = np.histogram(places, bins=8, range=(0, 1))
        assert counts.tolist() == [32] * 8
    choices = space_of("lpss").distributions["drop"]
    assert isinstance(choices, CategoricalDistribution)
    assert [sum(one["drop"] == choice for one in points) for choice in choices.choices] == [128, 128]


def test_a_point_does_not_depend_on_the_other_drawn_points() -> None:
    early = [point("gmp", index) for index in range(8)]
    point("gmp", 3000)
    assert [point("gmp", index) for index in range(8)] == early


def test_rows_are_appended_to_a_table_file_and_an_incomplete_end_is_ignored(tmp_path: Path) -> None:
    table = Table("digits", "lpss", tmp_path)
    assert table.rows() == []
    rows = [replace(ROW, index=index) for index in range(5)]
    table.append(rows[:3])
    before = table.path.read_bytes()
    table.append(rows[3:])
    whole = table.path.read_bytes()
    assert whole.startswith(before)
    assert table.rows() == rows
    assert [json.loads(line)["index"] for line in gzip.decompress(whole).splitlines()] == [0, 1, 2, 3, 4]
    for end in range(len(before) + 1, len(whole)):
        table.path.write_bytes(whole[:end])
        assert table.rows() == rows[:3]
    table.append(rows[3:])
    assert table.path.read_bytes() == whole


def test_trainings_that_the_table_contains_are_not_listed_as_missing(tmp_path: Path) -> None:
    table = Table("digits", "lpss", tmp_path)
    todo = list(wanted(table, SEVERAL + 1))
    assert len(todo) == len(set(todo)) == SEVERAL + 1 + 2 * (SEEDS - 1)
    table.append([replace(ROW, index=index, seed=seed) for index, seed in todo[:4]])
    assert list(wanted(table, SEVERAL + 1)) == todo[4:]


def test_a_repeated_training_gives_the_same_row() -> None:
    one, again = (trained("digits", "gmp", "", 1, 0, point("gmp", 1)) for _ in range(2))
    assert replace(one, seconds=0.0) == replace(again, seconds=0.0)
    assert len(one.at_target) == 24
    assert one.test is not None
    assert one.test > 0.9
