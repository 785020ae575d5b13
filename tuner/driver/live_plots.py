"""Updates the pictures of a running study from time to time, in a thread of the driver, so that no trial waits for
them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tune_sparsity.tuner.driver.study_run import Listener, StudyRun
from tune_sparsity.tuner.reports.page import write_html
from tune_sparsity.tuner.reports.plots.front import front_figure
from tune_sparsity.tuner.reports.plots.gallery import Pictured, front_title, pictured, pictures_page
from tune_sparsity.tuner.study.layout import PARETO_HTML, PICTURES_HTML
from tune_sparsity.tuner.study.trial import TrialRecord
from tune_sparsity.tuner.system.files import write_atomically
from tune_sparsity.tuner.tracking.tracker import Tracker

if TYPE_CHECKING:
    from tune_sparsity.tuner.driver.prepare import Prepared

EVERY = 30.0  # seconds between two updates of the pictures, at least
_LOOK = 0.1  # seconds between two checks whether the search is about to end
_SHARE = 60  # between two updates, at least 1/60 of the study's time so far passes: a long study changes slowly


def write_pictures(study: Pictured, folder: Path) -> list[Path]:
    """Write pareto.html (the picture of the front) and pictures.html (all pictures) into the folder. Return both paths.

    Raises:
        OSError: if the folder cannot be written to.
    """
    front, pictures = folder / PARETO_HTML, folder / PICTURES_HTML
    write_html(front_figure(study.records, study.goal, study.title), front)
    write_atomically(pictures, pictures_page(study, f"Study {folder.name}"))
    return [front, pictures]


def load() -> None:
    """Import the libraries that make the pictures. This takes a second."""
    import jinja2  # noqa: F401
    import optuna.importance  # noqa: F401
    import plotly.graph_objects  # noqa: F401


class LivePictures(Listener):
    """Writes a study's pictures while the study runs, and logs them to MLflow.

    An update that fails is skipped, and does not prevent later updates.

    Args:
        drawn: a function that returns the data for all plots. It is called in a thread, with copies of the trials'
            records.
        folder: the study's folder.
        tracker: logs the pictures as artifacts of the study's parent run.
        every: the smallest number of seconds between two updates.
    """

    def __init__(
        self, drawn: Callable[[Sequence[TrialRecord]], Pictured], folder: Path, tracker: Tracker, every: float = EVERY
    ) -> None:
        self._drawn, self._folder, self._tracker, self._every = drawn, folder, tracker, every
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.made = 0

    def study_begun(self, study: StudyRun) -> None:
        self._thread = threading.Thread(target=self._work, args=(study,), name="pictures", daemon=True)
        self._thread.start()

    def study_ended(self, study: StudyRun) -> None:
        assert self._thread is not None
        self._ended.set()
        self._thread.join()

    def _work(self, study: StudyRun) -> None:
        began, shown, loaded = time.monotonic(), -1, False
        due = began + self._every
        while not self._ended.wait(min(self._every, _LOOK)):
            # The libraries are imported while the last trials train, because processors become free then.
            if not loaded and study.full:
                load()  # in this thread: two threads that import the same module at once would find it incomplete
                loaded = True
            now = time.monotonic()
            if now < due:
                continue
            due = now + max(self._every, (now - began) / _SHARE)
            try:
                records = [replace(record) for record in list(study.records.values())]
                ended = sum(record.ended is not None for record in records)
                if ended == shown:
                    continue
                self._tracker.log_artifacts(write_pictures(self._drawn(records), self._folder))
                self.made, shown = self.made + 1, ended
            except Exception:  # the search goes on; `final_pictures` tells the user of an error that remains
                continue


def live_pictures(prepared: Prepared, tracker: Tracker) -> LivePictures:
    """Return the listener that keeps the pictures of a running study up to date."""
    return LivePictures(partial(_pictured, prepared), prepared.config.folder, tracker)


def final_pictures(prepared: Prepared, records: Sequence[TrialRecord]) -> list[Path]:
    """Write the pictures of the ended study, and return their paths. If they cannot be made, print the reason and
    return an empty list.

    Raises:
        OSError: if the study's folder cannot be written to.
    """
    try:
        return write_pictures(_pictured(prepared, records), prepared.config.folder)
    except OSError:
        raise
    except Exception as error:
        print(f"The pictures could not be made: {type(error).__name__}: {error}", file=sys.stderr)
        return []


def _pictured(prepared: Prepared, records: Sequence[TrialRecord]) -> Pictured:
    title = front_title(prepared.experiment.name, prepared.goal)
    return pictured(title, prepared.goal, records, prepared.config.folder)
