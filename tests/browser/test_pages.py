"""Test MLflow's UI, the report and the pictures of a study in a real browser."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser.chromium import Page
from tests.helpers.command import Ran
from tune_sparsity.tuner.cli import main

pytestmark = pytest.mark.slow


@dataclass
class Served:
    """The server of MLflow's UI that `tune-sparsity ui` has started for a study."""

    address: str  # the address of the parent run's page, as the command prints it
    host: str
    result: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def served(nan_study: Ran) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tune_sparsity", "ui", "nan", "--port", str(port)]
    process = subprocess.Popen(command, cwd=nan_study.cwd, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        yield Served(address, f"127.0.0.1:{port}", nan_study.result(), nan_study.cwd / "studies" / "nan")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    pytest.fail("the server goes on after the command has ended")


def trial_ids(served: Served) -> dict[str, str]:
    """Return the MLflow run id of each trial, by the trial's name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{served.folder.parents[1] / 'mlflow.db'}")
    runs = client.search_runs([served.result["mlflow"]["experiment_id"]], "tags.role = 'trial'")
    return {run.data.tags["trial"]: run.info.run_id for run in runs}


def coloured(image: np.ndarray) -> int:
    """Return the number of coloured pixels in an image: those that are not white, grey or black."""
    low, high = image.min(axis=2).astype(int), image.max(axis=2).astype(int)
    return int((high - low > 40).sum())


def test_the_command_prints_the_address_of_the_studys_own_run(served: Served) -> None:
    ids = served.result["mlflow"]
    assert served.address == f"http://{served.host}/#/experiments/{ids['experiment_id']}/runs/{ids['run_id']}"


def test_the_experiment_list_has_the_study_with_its_trials(served: Served, opened: Page) -> None:
    page, ids = opened.page, served.result["mlflow"]
    page.goto(f"http://{served.host}/#/experiments/{ids['experiment_id']}/runs")
    row = page.get_by_role("gridcell").filter(has=page.get_by_role("link", name="nan", exact=True))
    row.get_by_role("button").first.click()
    names = sorted(trial_ids(served))
    assert len(names) == 10
    for name in names:
        page.get_by_role("link", name=name, exact=True).wait_for()
    opened.kept("mlflow-experiment")
    assert opened.hosts() == {served.host}


def test_two_trials_are_compared_side_by_side_and_in_parallel_coordinates(served: Served, opened: Page) -> None:
    page, ids = opened.page, trial_ids(served)
    two = [one["trial"] for one in served.result["pareto"]][:1]
    two += [name for name in sorted(ids) if name not in two][:1]
    runs = json.dumps([ids[name] for name in two])
    experiment = json.dumps([served.result["mlflow"]["experiment_id"]])
    page.goto(f"http://{served.host}/#/compare-runs?runs={runs}&experiments={experiment}")
    page.get_by_text("Comparing 2 Runs from 1 Experiment").first.wait_for()
    for text in (*two, "sphere_lr", "val_accuracy_at_target"):
        page.get_by_text(text, exact=True).first.wait_for()
    plot = page.locator(".js-plotly-plot").first
    plot.locator(".parcoords").first.wait_for()
    page.wait_for_timeout(1000)
    opened.kept("mlflow-compare")
    assert plot.locator(".axis-title").count() >= 3
    assert opened.hosts() == {served.host}


@pytest.mark.parametrize("name", ["pareto", pytest.param("pictures", marks=pytest.mark.long)])
def test_a_picture_among_the_artifacts_is_rendered_and_not_blank(served: Served, opened: Page, name: str) -> None:
    page = opened.page
    page.goto(f"{served.address}/artifacts/{name}.html")
    drawn = page.frame_locator("iframe").locator(".js-plotly-plot").first
    drawn.locator(".scatterlayer .point").first.wait_for()
    page.wait_for_timeout(500)
    opened.kept(f"mlflow-{name}")
    picture = np.asarray(Image.open(io.BytesIO(drawn.screenshot())).convert("RGB"))
    assert coloured(picture) > 100
    assert opened.hosts() == {served.host}


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("report.html", 1100),
        ("report.html", 390),
        ("pictures.html", 390),
        ("pareto.html", 1100),
        pytest.param("pictures.html", 1100, marks=pytest.mark.long),
        pytest.param("pareto.html", 390, marks=pytest.mark.long),
    ],
)
def test_each_page_of_a_study_is_rendered_without_network_requests(
    served: Served, opened: Page, name: str, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = served.folder / name, opened.page
    if name == "report.html":
        assert main(["report", str(served.folder)]) == 0
        capsys.readouterr()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(path.as_uri())
    plots = page.locator(".js-plotly-plot")
    plots.first.locator(".main-svg").first.wait_for()
    page.wait_for_timeout(500)
    opened.kept(f"{path.stem}-{width}", whole=True)
    assert errors == []
    assert opened.hosts() == {""}  # the address of a file has no host
    assert opened.asked == [path.as_uri()]
    assert plots.count() == (1 if name == "pareto.html" else path.read_text().count('class="plotly-graph-div"'))
    for i in range(plots.count()):
        plots.nth(i).scroll_into_view_if_needed()
        picture = np.asarray(Image.open(io.BytesIO(plots.nth(i).screenshot())).convert("RGB"))
        assert coloured(picture) > 50, f"picture {i} of {name} is blank"
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1  # nothing sticks out at the side


def test_every_trial_has_its_parameters_on_hover(served: Served, opened: Page) -> None:
    page = opened.page
    page.goto((served.folder / "pareto.html").as_uri())
    page.locator(".scatterlayer .trace:last-child .point").first.hover(force=True)
    label = page.locator(".hoverlayer")
    label.get_by_text("sphere_lr", exact=False).first.wait_for()
    best = served.result["best"]
    assert best["trial"] in str(label.text_content())
    opened.kept("hover")
