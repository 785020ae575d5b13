"""Tests the other plots of a study: they show the recorded values, and their page loads nothing from the internet."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.helpers.in_process import NoTracker, run_in_process
from tests.helpers.layers import Conv1D
from tests.helpers.waiting import until
from tune_sparsity.sparsity import lpss
from tune_sparsity.tuner.driver import live_plots
from tune_sparsity.tuner.driver.live_plots import LivePictures
from tune_sparsity.tuner.reports.page import page
from tune_sparsity.tuner.reports.plots.gallery import Pictured, best_weights, figures, pictured, pictures_page
from tune_sparsity.tuner.reports.plots.network import hoyer_figure, layers_figure, training_figure, weights_figure
from tune_sparsity.tuner.reports.plots.search import (
    MOST_LINES,
    curves_figure,
    importance_figure,
    parallel_figure,
    progress_figure,
)
from tune_sparsity.tuner.reports.plots.theme import OKABE_ITO, panels
from tune_sparsity.tuner.results.finished_study import read_ended
from tune_sparsity.tuner.search.importance import importances
from tune_sparsity.tuner.storage.study_storage import LocalStorage
from tune_sparsity.tuner.study.epochs import read_epochs
from tune_sparsity.tuner.study.goal import Goal, along_front, at_targets
from tune_sparsity.tuner.study.layout import EPOCHS_CSV
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.worker.trainable import packed_weights

GOAL = at_targets(0.8)


def trial(number: int, accuracy: float | None, sparsity: float = 0.85, **more: Any) -> TrialRecord:
    base = TrialRecord(number, "lpss", {"p": 1.2 + 0.1 * number, "drop": "ramp"}, TrialState.COMPLETED)
    given = {"value": accuracy, "sparsity": sparsity, "hoyer": 0.6, "seconds": 2.0, "ended": 100.0 + number}
    return replace(base, **{**given, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, experiment_file: Path) -> Path:
    """An ended study of eight trials, each trained to its end."""
    storage = tmp_path_factory.mktemp("gallery") / "studies"
    options = {"experiment": f"{experiment_file}:steady", "trials": 8, "epochs": 5, "scheduler": "none"}
    return run_in_process(storage, "eight", **options)


def test_a_study_has_all_ten_plots_and_they_show_the_recorded_values(folder: Path) -> None:
    study = read_ended(str(folder), LocalStorage(folder.parent))
    records = study.records()
    shown = figures(pictured("<b>a</b> study", study.goal, records, folder))
    assert list(shown) == [
        *("front", "bytes", "progress", "training", "layers", "weights", "hoyer", "curves", "parallel", "importances"),
    ]
    best = study.goal.best(records)
    assert best is not None
    rising = shown["progress"].data[0].y
    assert rising[-1] == pytest.approx(100 * (best.value or 0))
    assert list(shown["progress"].data[1].y)[-1] == pytest.approx(study.goal.hypervolume(records))
    layers = dict(zip(shown["layers"].data[0].y, shown["layers"].data[0].x, strict=True))
    assert {name: pytest.approx(100 * s) for name, s in study_layers(folder).items()} == layers
    curve = next(trace for trace in shown["curves"].data if trace.name.startswith("best"))
    assert len([y for y in curve.y if y is not None]) == 5
    epochs = read_epochs(folder / EPOCHS_CSV)
    assert {number: len(series) for number, series in epochs.items()} == {r.number: r.epochs for r in records}


def study_layers(folder: Path) -> dict[str, float]:
    import json

    described: dict[str, float] = json.loads((folder / "best" / "model.json").read_text())["sparsity_by_layer"]
    return described


class _References(HTMLParser):
    """Collects the addresses that a browser would load, and the ids of the elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data"):
                self.found.append(f"{tag} {name}={value}")
            if name == "id" and value:
                self.ids.append(value)


def test_the_page_has_each_plot_and_plotly_js_once_and_no_external_reference(folder: Path) -> None:
    text = (folder / "pictures.html").read_text()
    parser = _References()
    parser.feed(text)
    assert parser.found == []
    assert len(parser.ids) == len(set(parser.ids))
    assert sum(one.startswith("picture-") for one in parser.ids) == 10
    assert text.count("plotly.js v") == 1
    assert "@import" not in text.partition("</style>")[0]


def test_html_in_titles_and_table_cells_is_escaped() -> None:
    study = Pictured("<script>alert(1)</script>", GOAL, [trial(0, 0.9)])
    assert "<script>alert" not in pictures_page(study, study.title)
    assert "<title>&lt;script&gt;" in page("pictures.html", "<script>", {})
    cells = {"reached": [["<i>", None]], "header": ["<h>", "b"], "notes": ["<n>"], "asked": [["<q>"]]}
    shown = page("comparison.html", "any", {}, **cells).rpartition("</script>")[2]
    assert not [word for word in ("<i>", "<h>", "<n>", "<q>", "None") if word in shown]
    assert "<td>&lt;i&gt;</td><td></td>" in "".join(line.strip() for line in shown.splitlines())


def test_the_page_of_a_study_without_trials_still_has_two_plots() -> None:
    assert list(figures(Pictured("nothing", GOAL, []))) == ["front", "progress"]


def test_the_best_over_time_follows_the_order_in_which_trials_ended() -> None:
    records = [trial(0, 0.9, ended=300.0), trial(1, 0.8, ended=100.0), trial(2, 0.85, 0.7, ended=200.0)]
    best, area = progress_figure(records, GOAL).data
    assert list(best.y) == [80, 80, 90]
    assert list(best.x) == [pytest.approx(x) for x in (2 / 60, 102 / 60, 202 / 60)]
    assert list(area.y) == [pytest.approx(y) for y in (0.05 * 0.8, 0.05 * 0.8, 0.05 * 0.9)]


def test_without_end_times_the_best_value_of_each_target_is_shown_over_trials() -> None:
    records = [trial(0, 0.9, 0.85, ended=None), trial(1, 0.8, 0.96)]
    low, high, _ = progress_figure(records, at_targets(0.8, 0.95)).data
    assert list(low.x) == [1, 2]
    assert list(low.y) == [90, 90]
    assert list(high.y) == [None, 80]


def test_parallel_coordinates_scale_values_and_show_missing_ones_below_the_axis() -> None:
    records = [
        trial(0, 0.80, params={"p": 1.0, "lr": 0.001, "drop": "ramp"}),
        trial(1, 0.90, params={"p": 1.5, "lr": 0.1, "drop": "threshold", "start": 0.2}),
        trial(2, 0.85, params={"p": 2.0, "lr": 0.01, "drop": "ramp"}),
        trial(3, None, state=TrialState.PRUNED),
    ]
    made = parallel_figure(records, GOAL)
    assert made is not None
    names = list(made.layout.xaxis.ticktext)
    assert names == ["p", "lr (log)", "drop", "start", "sparsity", "accuracy"]
    assert [trace.name for trace in made.data] == ["best: t0000", "best: t0002", "best: t0001"]
    assert [trace.showlegend for trace in made.data] == [False, False, True]
    assert list(made.data[1].y) == [pytest.approx(y) for y in (1.0, 0.5, 0.0, -0.12, 0.5, 0.5)]
    assert made.data[2].line.color == OKABE_ITO["vermillion"]
    assert "lr = 0.1" in made.data[2].text


def test_parallel_coordinates_of_many_trials_show_the_best_of_them() -> None:
    records = [trial(i, i / 1000, params={"p": i}) for i in range(MOST_LINES + 50)]
    made = parallel_figure(records, GOAL)
    assert made is not None
    assert len(made.data) == MOST_LINES
    assert made.data[0].name == "best: t0050"
    assert parallel_figure([trial(0, 0.9)], GOAL) is None


def test_learning_curves_end_where_trials_were_stopped() -> None:
    epochs = {
        number: [{"epoch": float(e), "val_accuracy_at_target": 0.1 * e} for e in range(1, last + 1)]
        for number, last in ((0, 4), (1, 2), (2, 4))
    }
    records = [trial(0, 0.4), trial(1, 0.2, state=TrialState.PRUNED), trial(2, 0.35), trial(3, 0.9)]
    made = curves_figure([r if r.number != 3 else replace(r, state=TrialState.FAILED) for r in records], epochs, GOAL)
    assert made is not None
    traces = {trace.name: trace for trace in made.data}
    assert list(traces) == ["stopped early", "completed", "best: t0000"]
    assert list(traces["stopped early"].x) == [1, 2, None]
    assert traces["stopped early"].marker.symbol == "x"
    assert list(traces["stopped early"].marker.size) == [0, 7, 0]
    assert curves_figure(records, {}, GOAL) is None


def test_training_curves_of_the_best_trial_have_a_panel_for_each_measure() -> None:
    series = [
        {"epoch": 1.0, "sparsity": 0.2, "threshold": 0.3, "grow_rate": 0.5, "val_accuracy_at_target": 0.5},
        {"epoch": 2.0, "sparsity": 0.8, "val_accuracy_at_target": 0.9},
    ]
    made = training_figure(trial(0, 0.9), series, GOAL)
    assert made is not None
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in made.data] == [
        ("sparsity", [1, 2], [20, 80]),
        ("threshold", [1], [0.3]),
        ("grow rate", [1], [0.5]),
        ("accuracy", [1, 2], [50, 90]),
    ]
    made = training_figure(trial(0, 0.9), [{"epoch": 1.0, "sparsity": 0.2}], GOAL)
    assert made is not None
    assert len(made.data) == 1
    assert training_figure(trial(0, 0.9), [], GOAL) is None


@given(st.integers(1, 8))
def test_panels_fill_the_height_without_touching(count: int) -> None:
    domains = panels(count)
    assert domains[0][1] == pytest.approx(1)
    assert domains[-1][0] == pytest.approx(0)
    assert all(low < high for low, high in domains)
    assert all(above[0] > below[1] - 1e-9 for above, below in pairwise(domains))


def test_sparsity_and_distribution_of_a_layer_come_from_its_weights() -> None:
    weights = {"a.weight": np.array([[0.0, 0.0, 0.0, 0.5]]), "b.weight": np.array([[1.0, 0.0], [-1.0, 1.0]])}
    bars = layers_figure(weights)
    assert bars is not None
    assert list(bars.data[0].x) == [75, 25]
    assert bars.layout.shapes[0].x0 == 50
    drawn = weights_figure(weights)
    assert drawn is not None
    (trace,) = drawn.data  # a single weight has no distribution
    width = trace.x[1] - trace.x[0]
    assert sum(trace.y) * width == pytest.approx(1)
    assert trace.name == "b.weight (3)"
    assert "spike" not in bars.layout.title.subtitle.text
    spiking = layers_figure(weights, {"hidden.0": 0.125})
    assert spiking is not None
    assert spiking.layout.title.subtitle.text.endswith("; steps with a spike: hidden.0 at 12.5%")
    assert layers_figure({}) is None
    assert weights_figure({}) is None


def test_layers_come_in_the_order_of_the_network(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    names = [f"net.{i}.weight" for i in range(12)]
    tensors = {name: np.ones((1, 2), dtype=np.float32) for name in names}
    (tmp_path / "best").mkdir()
    save_file(
        tensors | {f"{name}.mask": np.ones((1, 2), dtype=bool) for name in names}, tmp_path / "best/model.safetensors"
    )
    assert list(best_weights(tmp_path, trial(0, 0.9))) == names
    assert best_weights(tmp_path, None) == {}


def test_weights_stored_input_first_are_read_with_output_neurons_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(4, 6), nn.Unflatten(1, (4, 1)), nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Flatten())
    sparse = lpss(model.append(nn.Linear(18, 2)), total_steps=1, sparsity=0.5)
    (tmp_path / "best").mkdir()
    content = packed_weights(SimpleNamespace(model=model, sparse=sparse))  # type: ignore[arg-type]
    (tmp_path / "best/model.safetensors").write_bytes(content)
    weights = best_weights(tmp_path, trial(0, 0.9))
    assert {name: weight.shape for name, weight in weights.items()} == {
        "0.weight": (4, 6),
        "2.weight": (6, 2, 3),
        "4.weight": (2, 18),
    }
    for layer in sparse.layers:
        assert np.array_equal(weights[layer.name].reshape(len(weights[layer.name]), -1), layer.rows().numpy())


def test_hoyer_sparsity_is_plotted_over_the_parameter_p_with_the_expected_curve() -> None:
    from tune_sparsity.sparsity.hoyer import expected_paper

    made = hoyer_figure([trial(0, 0.9), trial(1, 0.8), trial(2, 0.7, params={"p": {"shape": "x"}})], GOAL, 50)
    assert made is not None
    traces = {trace.name: trace for trace in made.data}
    assert list(traces["measured"].x) == [pytest.approx(1.3)]
    assert list(traces["best: t0000"].x) == [1.2]
    paper = traces["expected: paper's curve"]
    assert all(y == pytest.approx(expected_paper(x, 50)) for x, y in zip(paper.x, paper.y, strict=True))
    assert hoyer_figure([trial(0, 0.9, params={})], GOAL, 50) is None


def test_the_parameter_with_the_largest_effect_has_the_largest_importance() -> None:
    generator = np.random.default_rng(0)
    records = []
    for i in range(60):
        lr, p, drop = generator.uniform(0, 1), generator.uniform(1, 2), str(generator.choice(["ramp", "threshold"]))
        params = {"lr": lr, "p": p, "drop": drop, "fixed": 3} | ({"start": 0.1 * i} if drop == "ramp" else {})
        records.append(trial(i, 0.5 + 0.4 * lr + 0.05 * (drop == "ramp"), params=params))
    shares, method, count = importances(records)
    assert list(shares) == ["lr", "drop", "p"]
    assert shares["lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert (method, count) == ("lpss", 60)
    made = importance_figure(shares, method, count)
    assert made is not None
    assert list(made.data[0].y) == ["p", "drop", "lr"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_trials_or_equal_accuracies_give_no_parameter_importance(count: int) -> None:
    assert importances([trial(i, 0.1 * i) for i in range(count)])[0] == {}
    assert importances([trial(i, 0.9) for i in range(20)])[0] == {}
    assert importance_figure({}, "", 0) is None


@pytest.mark.parametrize("goal", [at_targets(0.8), at_targets(0.8, 0.9), along_front(0.8, 0.95)])
def test_every_goal_has_pictures(goal: Goal) -> None:
    made = figures(Pictured("any", goal, [trial(i, 0.5 + 0.04 * i, 0.78 + 0.02 * i) for i in range(9)]))
    assert {"front", "progress", "hoyer", "parallel", "importances"} <= made.keys()
    for one in made.values():
        numbers = [y for trace in one.data for y in (trace.y or ()) if isinstance(y, float)]
        assert all(map(math.isfinite, numbers))


def test_pictures_are_made_while_the_study_runs_and_only_when_there_is_news(tmp_path: Path) -> None:
    taken: list[list[str]] = []

    class Tracker(NoTracker):
        def log_artifacts(self, paths: list[Path]) -> None:
            taken.append([path.name for path in paths])

    study = SimpleNamespace(records={0: trial(0, 0.9)}, full=False)
    fails = [True]

    def drawn(records: Sequence[TrialRecord]) -> Pictured:
        if fails:
            raise RuntimeError(fails.pop())  # the pictures are drawn again after an error
        return Pictured("live", GOAL, records)

    live = LivePictures(drawn, tmp_path, Tracker(), every=0.05)  # type: ignore[arg-type]
    with _begun(live, study):
        until(lambda: live.made == 1)
        time.sleep(0.3)
        assert live.made == 1
        study.records[1] = trial(1, 0.95)
        until(lambda: live.made == 2)
    assert taken == [["pareto.html", "pictures.html"]] * 2
    assert "t0001" in (tmp_path / "pictures.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pareto.html", "pictures.html"]


def test_plot_libraries_are_imported_once_when_all_trials_have_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[int]()
    monkeypatch.setattr(live_plots, "load", lambda: loaded.append(1))
    study = SimpleNamespace(records={}, full=False)
    live = LivePictures(lambda records: Pictured("live", GOAL, records), tmp_path, NoTracker(), every=0.05)  # type: ignore[arg-type]
    with _begun(live, study):
        time.sleep(0.3)
        assert not loaded
        study.full = True
        until(lambda: bool(loaded))
        time.sleep(0.2)
    assert loaded == [1]
    assert (
        subprocess.run(
            [sys.executable, "-c", "from tune_sparsity.tuner.driver.live_plots import load; load()"], check=False
        ).returncode
        == 0
    )


@contextmanager
def _begun(live: LivePictures, study: Any) -> Iterator[None]:
    live.study_begun(study)
    try:
        yield
    finally:
        live.study_ended(study)
