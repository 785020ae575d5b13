"""MLflow stores and trackers for the tests of the tracking."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.tracking import IDENTITY, InThread, MakeTracker
from tune_sparsity.sparsity import NetworkSize
from tune_sparsity.sparsity.layers import LeftDense
from tune_sparsity.tuner.tracking import writer
from tune_sparsity.tuner.tracking.client import prepare_sqlite
from tune_sparsity.tuner.tracking.outbox import StudyIdentity
from tune_sparsity.tuner.tracking.tracker import Tracker


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a store without experiments once for all tests, because MLflow needs some seconds to create a store."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    prepare_sqlite(file)
    return file


@pytest.fixture
def store(new_store: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "a folder"  # a space, since users' folders have them
    folder.mkdir()
    return Path(shutil.copy(new_store, folder / "mlflow.db"))


@pytest.fixture
def tracker(store: Path, tmp_path: Path) -> Iterator[MakeTracker]:
    """Makes trackers of the same store and study, and closes them."""
    made: list[Tracker] = []

    def make(identity: StudyIdentity = IDENTITY) -> Tracker:
        size = NetworkSize(1, 100, (LeftDense("words", "an embedding", 25),), 130)
        made.append(InThread(f"sqlite:///{store}", identity, tmp_path / "studies" / identity.study, size=size))
        return made[-1]

    yield make
    for each in made:
        each.close(120)


@pytest.fixture(autouse=True)
def _quick_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "GATHER", 0.02)
    monkeypatch.setattr(writer, "SHARE", 0)
