"""Draw the regret of simulated studies, and write pictures to files."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student

from tune_sparsity.tuner.reports.page import write_html
from tune_sparsity.tuner.reports.plots.theme import OKABE_ITO, THEME

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from benchmarks.curves.simulate import State

Array = np.ndarray[Any, np.dtype[np.float64]]
CONFIDENCE = 0.95
_COLOURS = [colour for name, colour in OKABE_ITO.items() if name != "yellow"]
_LEAST = 0.001  # points of accuracy; a logarithmic axis has no 0
_TIMES = 200  # the number of times at which the regret over time is drawn


def over_trials(courses: Sequence[Sequence[State]]) -> Array:
    """Return the regret of each study after each of its trials, shape (studies, trials)."""
    return np.array([[state.regret for state in course] for course in courses])


def over_seconds(courses: Sequence[Sequence[State]], seconds: Array) -> Array:
    """Return the regret of each study at each of some times, shape (studies, times). A study whose first trial has not
    ended at a time has NaN there. After its end, a study keeps its last regret."""
    found = []
    for course in courses:
        place = np.searchsorted([state.seconds for state in course], seconds, side="right") - 1
        regrets = np.array([state.regret for state in course])
        found.append(np.where(place < 0, np.nan, regrets[place]))
    return np.array(found)


def band(regrets: Array) -> tuple[Array, Array, Array]:
    """Return the mean over the studies, and the two ends of its confidence interval (Student's t), each of shape
    (points,). With one study, the ends are the mean."""
    studies = len(regrets)
    mean = regrets.mean(0)
    error = regrets.std(0, ddof=1) / studies**0.5 if studies > 1 else np.zeros_like(mean)
    half = student.ppf((1 + CONFIDENCE) / 2, studies - 1) * error if studies > 1 else error
    return mean, mean - half, mean + half


def regret_figure(searches: Mapping[str, Sequence[Sequence[State]]], title: str) -> go.Figure:
    """Return two plots of the mean regret with its confidence band: over the trials, and over simulated seconds.

    Args:
        searches: a dict from the names of searches to their simulated studies, from `benchmarks.curves.simulate`.
        title: the title of the picture.
    """
    from plotly.subplots import make_subplots

    made, lowest = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04), 100.0
    for index, (name, courses) in enumerate(searches.items()):
        begin = max(course[0].seconds for course in courses)
        seconds = np.geomspace(begin, max(course[-1].seconds for course in courses), _TIMES)
        trials = np.arange(1, len(courses[0]) + 1, dtype=float)
        panels = (trials, over_trials(courses)), (seconds, over_seconds(courses, seconds))
        colour = _COLOURS[index % len(_COLOURS)]
        for column, (x, regrets) in enumerate(panels, 1):
            mean, low, high = (100 * part for part in band(regrets))
            lowest = min(lowest, max(float(mean.min()), _LEAST))
            common = {"name": name, "legendgroup": name}
            made.add_scatter(
                **common,
                x=np.concatenate([x, x[::-1]]),
                y=np.concatenate([high, low[::-1].clip(_LEAST)]),
                fill="toself",
                fillcolor=colour,
                opacity=0.2,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
                row=1,
                col=column,
            )
            line = {"color": colour, "width": 2}
            made.add_scatter(**common, x=x, y=mean, mode="lines", line=line, showlegend=column == 1, row=1, col=column)
    made.update_xaxes(type="log", title="trials", row=1, col=1)
    made.update_xaxes(type="log", title="simulated seconds", row=1, col=2)
    made.update_yaxes(type="log", range=[math.log10(lowest / 2), 2])
    made.update_yaxes(title="regret in points of accuracy", row=1, col=1)
    count = len(next(iter(searches.values())))
    about = f"mean of {count} studies with its {CONFIDENCE:.0%} confidence band; both axes are logarithmic"
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top", "yref": "paper"}
    heading = {"text": title, "subtitle": {"text": about}}
    made.update_layout(template=THEME, title=heading, legend=legend, margin={"t": 80, "b": 130})
    return made


def save_picture(figure: go.Figure, path: Path) -> None:
    """Write a figure into an HTML page, or into a PNG file: a screenshot of this page in Chromium."""
    page = path.with_suffix(".html")
    write_html(figure, page)
    if path.suffix == ".html":
        return
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = chromium.new_page(viewport={"width": 1100, "height": 650})
        view.goto(page.resolve().as_uri())
        view.wait_for_selector(".legend")
        view.screenshot(path=path)
        chromium.close()
    page.unlink()
