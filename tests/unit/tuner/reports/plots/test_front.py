"""Tests the plot of the front: its traces and the ranges of its axes. Its page loads nothing from the internet."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tune_sparsity.tuner.reports.page import write_html
from tune_sparsity.tuner.reports.plots.front import front_figure
from tune_sparsity.tuner.reports.plots.theme import OKABE_ITO, THEME, hover_text
from tune_sparsity.tuner.reports.text import percent
from tune_sparsity.tuner.study.goal import along_front, at_targets
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState

pytest.importorskip("plotly")

TARGET = 0.9


def trial(number: int, sparsity: float | None, accuracy: float | None, **more: Any) -> TrialRecord:
    fields = {"state": TrialState.COMPLETED, "sparsity": sparsity, "value": accuracy, **more}
    return TrialRecord.from_dict({"number": number, "method": "lpss", "params": {"p": 1.1}, **fields})


RECORDS = [
    trial(0, 0.90, 0.97, nonzero_weights=12345, epochs=8, params={"p": 1.123456, "schedule": "<cosine>"}),
    trial(1, 0.95, 0.96),
    trial(2, 0.92, 0.95),
    trial(3, 0.88, 0.98),
    trial(4, 0.91, 0.94, state=TrialState.PRUNED),
    trial(5, 0.91, None, state=TrialState.PRUNED),
    trial(6, 0.93, 0.99, state=TrialState.FAILED),
    trial(7, 0.93, 0.99, state=TrialState.RUNNING),
]


def figure(records: list[TrialRecord], title: str = "demo") -> dict[str, Any]:
    made: dict[str, Any] = front_figure(records, at_targets(TARGET), title).to_plotly_json()
    return made


def traces(records: list[TrialRecord]) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure(records)["data"]}


def notes(records: list[TrialRecord]) -> list[str]:
    return [note["text"] for note in figure(records)["layout"]["annotations"]]


def ranges(records: list[TrialRecord]) -> tuple[list[float], list[float]]:
    layout = figure(records)["layout"]
    return layout["xaxis"]["range"], layout["yaxis"]["range"]


def test_the_plot_shows_the_trials_of_every_group_in_percent() -> None:
    drawn = {name: list(zip(trace["x"], trace["y"], strict=True)) for name, trace in traces(RECORDS).items()}
    assert drawn == {
        "Pareto front": [pytest.approx((90, 97)), pytest.approx((95, 96))],
        "dominated": [pytest.approx((92, 95))],
        "below the target": [pytest.approx((88, 98))],
        "stopped early": [pytest.approx((91, 94))],
        "best: t0000": [pytest.approx((90, 97))],
    }


def test_groups_differ_in_shape_and_not_only_in_colour() -> None:
    drawn = traces(RECORDS)
    symbols = [trace["marker"].get("symbol", "circle") for trace in drawn.values()]
    assert len(set(symbols)) == len(symbols)
    assert drawn["stopped early"]["marker"]["symbol"] == "x-open"
    assert drawn["Pareto front"]["mode"] == "lines+markers"
    assert drawn["Pareto front"]["marker"]["color"] in OKABE_ITO.values()


def test_the_target_is_a_dashed_line_with_a_label() -> None:
    layout = figure(RECORDS)["layout"]
    (line,) = layout["shapes"]
    assert (line["x0"], line["x1"], line["line"]["dash"]) == (90, 90, "dash")
    assert "target 90%" in notes(RECORDS)


def test_the_hover_label_describes_a_trial_and_escapes_html() -> None:
    text = hover_text(RECORDS[0])
    for part in ("t0000", "completed", "97.00%", "90.000%", "12,345", "epochs 8", "p = 1.123", "&lt;cosine&gt;"):
        assert part in text
    assert "None" not in hover_text(RECORDS[5])
    for trace in traces(RECORDS).values():
        assert len(trace["text"]) == len(trace["x"])
        assert trace["hovertemplate"] == "%{text}<extra></extra>"


def test_the_hover_label_names_the_other_trials_at_the_same_point() -> None:
    drawn = traces([*RECORDS, trial(8, 0.90, 0.97), *(trial(n, 0.95, 0.96) for n in range(9, 16))])
    assert [text.count("also here") for text in drawn["Pareto front"]["text"]] == [1, 1]
    assert drawn["Pareto front"]["text"][0].endswith("<br>also here: t0008")
    assert drawn["Pareto front"]["text"][1].endswith("<br>also here: t0009, t0010, t0011, t0012, t0013 and 2 more")
    assert drawn["best: t0000"]["text"][0].endswith("<br>also here: t0008")
    at_once = dict(zip(drawn["dominated"]["x"], drawn["dominated"]["text"], strict=True))
    assert at_once[95.0].endswith("<br>also here: t0001, t0009, t0010, t0011, t0012 and 2 more")
    assert "also here" not in at_once[92.0]


def test_the_subtitle_counts_every_trial() -> None:
    subtitle = figure(RECORDS)["layout"]["title"]["subtitle"]["text"]
    assert subtitle == "8 trials: 3 feasible, 1 below the target, 2 stopped early, 1 failed, 1 running"


@pytest.mark.parametrize(
    "records",
    [
        [trial(0, 0.9, 0.97)],
        [trial(number, 0.9, 0.97) for number in range(3)],
        [trial(number, 0.9, 0.9 + number / 100) for number in range(3)],
        [trial(0, 1.0, 1.0)],
        [trial(0, 0.5, 0.0, state=TrialState.PRUNED)],
        [],
    ],
    ids=["one", "one point", "one sparsity", "at the corner", "only stopped", "none"],
)
def test_ranges_are_never_empty_and_hold_the_target_and_every_trial(records: list[TrialRecord]) -> None:
    (left, right), (bottom, top) = ranges(records)
    assert right - left > 0.5
    assert top - bottom > 1
    assert left < 100 * TARGET < right
    assert min(left, bottom) > -3
    assert max(right, top) < 103
    for record in records:
        assert record.sparsity is not None
        assert record.value is not None
        assert left < 100 * record.sparsity < right
        assert bottom < 100 * record.value < top


def test_far_away_trials_do_not_flatten_the_front_and_are_announced() -> None:
    far = [trial(10, 0.2, 0.99, state=TrialState.PRUNED), trial(11, 0.91, 0.1)]
    (left, _), (bottom, _) = ranges(RECORDS + far)
    assert left > 85
    assert bottom > 80
    assert any(note.startswith("2 more outside this view") for note in notes(RECORDS + far))
    assert len(traces(RECORDS + far)["stopped early"]["x"]) == 2


def test_trials_that_are_near_are_in_view_and_nothing_is_announced() -> None:
    (left, _), (bottom, top) = ranges(RECORDS)
    assert left < 88
    assert bottom < 94
    assert top > 98
    assert not any("outside" in note for note in notes(RECORDS))


def test_the_whole_front_is_in_view_however_far_it_reaches() -> None:
    front = [trial(number, 0.9 + number / 100, 0.97 - number**4 / 8000) for number in range(9)]
    (left, right), (bottom, _) = ranges(front)
    assert left < 90
    assert right > 98
    assert bottom < 46


def test_a_note_says_that_no_trial_has_a_result_or_is_feasible() -> None:
    assert "No trial has a result yet." in notes([])
    assert "No trial has a result yet." in notes([trial(0, None, None, state=TrialState.RUNNING)])
    assert any(note.startswith("No trial is feasible") for note in notes([trial(0, 0.5, 0.9)]))
    assert "best: t0000" not in traces([trial(0, 0.5, 0.9)])


def test_a_measure_that_is_not_a_number_is_not_drawn() -> None:
    assert traces([trial(0, 0.95, math.nan)]) == {}


def test_a_fraction_is_shown_as_a_percentage() -> None:
    assert [percent(fraction) for fraction in (0.9, 0.985, 0.29, 1)] == ["90%", "98.5%", "29%", "100%"]


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of its title and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {"title": "", "script": ""}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.texts:
            self.texts[self._open] += data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "pareto.html"
    write_html(front_figure(RECORDS, at_targets(TARGET), "digits at 90% </script> & more"), path)
    return path


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_loads_nothing_from_elsewhere(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "base", "object"), tag
        assert not {"src", "href", "srcset"} & attributes.keys(), (tag, attributes)
        assert "@import" not in (attributes.get("style") or "")
        assert "url(" not in (attributes.get("style") or "")
    assert "plotly.js v" in page.texts["script"]
    assert "Plotly.newPlot" in page.texts["script"]


def test_the_page_has_a_title_a_language_and_a_viewport(page: Page) -> None:
    assert page.texts["title"] == "digits at 90% </script> & more"
    assert ("html", {"lang": "en"}) in page.tags
    assert any(attributes.get("name") == "viewport" for tag, attributes in page.tags if tag == "meta")
    # One script is plotly.js, the other one the figure. The title contains "</script>" and must not end the second.
    assert sum(tag == "script" for tag, _ in page.tags) == 2


def test_the_same_figure_gives_the_same_page(path: Path) -> None:
    before = path.read_bytes()
    write_html(front_figure(RECORDS, at_targets(TARGET), "digits at 90% </script> & more"), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_figure_without_a_title_is_called_like_its_file(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    write_html(go.Figure(), tmp_path / "importance.html")
    assert "<title>importance</title>" in (tmp_path / "importance.html").read_text(encoding="utf-8")


def test_the_theme_needs_no_web_font_and_has_no_colour_twice() -> None:
    colours = THEME["layout"]["colorway"]
    assert len(set(colours)) == len(colours)
    assert all(a != b for a, b in pairwise(colours))
    assert "http" not in str(THEME)


def test_the_plot_has_a_line_at_each_target_and_a_star_at_its_best_trial() -> None:
    made = front_figure(RECORDS, at_targets(0.9, 0.94), "demo").to_plotly_json()
    assert [shape["x0"] for shape in made["layout"]["shapes"]] == pytest.approx([90, 94])
    assert {"target 90%", "94%"} <= {note["text"] for note in made["layout"]["annotations"]}
    stars = next(trace for trace in made["data"] if trace["name"].startswith("best"))
    assert (stars["name"], list(stars["x"])) == ("best: t0000, t0001", [90, 95])


def test_the_plot_marks_the_lower_and_the_upper_end_of_a_front() -> None:
    made = front_figure(RECORDS, along_front(0.8, 0.99), "demo").to_plotly_json()
    assert [shape["x0"] for shape in made["layout"]["shapes"]] == pytest.approx([80, 99])
    assert {"front from 80%", "to 99%"} <= {note["text"] for note in made["layout"]["annotations"]}
    low, high = made["layout"]["xaxis"]["range"]
    assert low < 80 < 99 < high
