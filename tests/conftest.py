"""Define what the tests share: one torch thread, the order of the tests, the folder of real data sets, and studies."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from tests.helpers.command import EXPERIMENT, Ran, run_command
from tests.helpers.examples import is_long

settings.load_profile("usual")
os.environ.setdefault("RAY_worker_niceness", "0")  # with Ray's low priority, trials on a busy machine take minutes


def pytest_sessionstart(session: pytest.Session) -> None:
    torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other


def pytest_runtest_teardown() -> None:
    torch.set_flush_denormal(False)  # worker code turns this setting on, and tests run such code in this process


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give each test the marker of its folder, remove tests marked `long` except in `make long`, and put files with
    slow tests first. If two processes share the test files, they then end at about the same time."""
    here = Path(__file__).parent
    for item in items:
        tier = item.path.relative_to(here).parts[0]
        item.add_marker(getattr(pytest.mark, tier))
    if not is_long():
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """At the end of pytest's output, print how many tests were skipped for each reason."""
    yield
    wants = Counter[str]()
    for report in terminalreporter.stats.get("skipped", []):
        if isinstance(report.longrepr, tuple):
            wants[report.longrepr[2].removeprefix("Skipped: ")] += 1
    if wants:
        terminalreporter.section("skipped, and what it wants")
    for reason, count in sorted(wants.items()):
        terminalreporter.line(f"{count:5d}  {reason}")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder with the real data sets (MNIST/raw, ...). If there is no such folder, skip the test."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("TUNE_SPARSITY_DATA") or default)
    if not folder.is_dir():
        pytest.skip("no real data: set TUNE_SPARSITY_DATA to the folder that holds MNIST/raw and FashionMNIST/raw")
    return folder


@pytest.fixture(scope="session")
def experiment_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python file with a user's own experiments. It belongs to no package."""
    path = tmp_path_factory.mktemp("own") / "own_experiment.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def nan_study(tmp_path_factory: pytest.TempPathFactory, experiment_file: Path) -> Ran:
    """Run a study of ten trials. Some are stopped early, and some diverge. All test processes share this study."""
    own = tmp_path_factory.getbasetemp()
    cwd = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "nan"
    cwd.mkdir(exist_ok=True)
    with FileLock(cwd / "lock"):
        ended = cwd / "ended.json"
        if not ended.exists():
            arguments = ["--target", "0.8", "--experiment", f"{experiment_file}:sometimes_nan", "--trials", "10"]
            ran = run_command([*arguments, "--study", "nan", "--json"], cwd, MLFLOW_EXPERIMENT_ID="77")
            said = ran.stdout
            if ran.result()["mlflow"]["run_id"] is None:  # the machine was too busy for the record to arrive
                assert run_command(["send", "nan"], cwd).code == 0
                said = (cwd / "studies" / "nan" / "result.json").read_text()
            ended.write_text(json.dumps([ran.code, said, ran.stderr]))
        return Ran(*json.loads(ended.read_text()), cwd)


@pytest.fixture(scope="session")
def digits_study(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Run the default study: the first command of README.md."""
    return run_command(["--target", "0.9", "--study", "default", "--json"], tmp_path_factory.mktemp("digits"))
