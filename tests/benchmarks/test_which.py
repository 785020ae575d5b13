"""Test the plots of accuracy against size and operations, and their table in the documentation."""

from __future__ import annotations

from benchmarks.training.which import HEADER, KINDS, LOOKS, Point, figure, points_of, read, wanted
from tests import ROOT

DONE = ROOT / "benchmarks" / "training" / "done" / "which.jsonl"
POINTS = list(points_of(read(DONE)))


def test_the_page_has_the_table_of_the_committed_data() -> None:
    page = (ROOT / "docs" / "which.md").read_text(encoding="utf-8")
    assert "\n".join([HEADER, *(point.row() for point in POINTS)]) in page
    assert "which.png" in page


def test_the_committed_data_have_every_kind_of_network() -> None:
    found = read(DONE)
    assert list(found) == list(KINDS)
    for kind, documents in found.items():
        labels = [one.label for one in wanted(kind)]
        assert all([point["label"] for point in document["points"]] == labels for document in documents)


def test_both_plots_show_all_kinds_and_the_legend_names_each_operation() -> None:
    data = figure(POINTS).data
    for axis, values in (("x", "size"), ("x2", "operations")):
        drawn = {trace.legendgroup: trace for trace in data if trace.xaxis == axis}
        assert drawn.keys() == LOOKS.keys()
        for series, trace in drawn.items():
            own = [point for point in POINTS if point.series == series]
            assert list(trace.x) == [getattr(point, values) for point in own]
            assert list(trace.y) == [point.test for point in own]
            assert trace.name.endswith(LOOKS[series][3])
    assert [trace.showlegend for trace in data if trace.xaxis == "x2"] == [False] * len(LOOKS)


def test_the_operations_of_a_point_are_those_of_its_kind_of_network() -> None:
    spiking = {"label": "s", "test": 0.5, "size_bytes": 10, "macs": 100, "syn_ops": 30}
    binary = {"label": "b", "test": 0.25, "size_bytes": 20, "macs": 80, "bit_ops": 50}
    rows = list(points_of({"spiking": [{"points": [spiking]}], "binary": [{"points": [binary]}]}))
    assert rows == [Point("spiking", "s", 50, 50, 50, 10, 30, 0, 1), Point("binary", "b", 25, 25, 25, 20, 80, 50, 1)]


def test_the_groups_named_as_good_as_best_are_averaged_into_one_point() -> None:
    about = {"size_bytes": 100, "test_accuracy": 0.9}
    groups = [{**about, "name": f"group-{n}", "expected_macs": 10.0 * n, "test_accuracy": n / 4} for n in (1, 2, 3)]
    seeds = [
        {"points": [], "group": {"groups": groups, "as_good_as_best": name}} for name in ("group-1", "group-3", None)
    ]
    assert list(points_of({"lpss": seeds})) == [
        Point("group of two lpss", "as good as the best", 50, 25, 75, 100, 20, 0, 2)
    ]
