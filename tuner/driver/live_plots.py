"""The pictures of a study that runs: made by a thread of the driver, now and then, so that no trial waits for them."""

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

EVERY = 30.0  # seconds between two makings, at least
_LOOK = 0.1  # seconds between two looks at whether the search is about to end
_SHARE = 60  # and no more often than this part of the time that the study has run: a night's study changes slowly


def write_pictures(study: Pictured, folder: Path) -> list[Path]:
    """Writes the front and the page of all pictures into the folder. Returns both paths.

    Raises:
        OSError: if it cannot be written to.
    """
    front, pictures = folder / PARETO_HTML, folder / PICTURES_HTML
    write_html(front_figure(study.records, study.goal, study.title), front)
    write_atomically(pictures, pictures_page(study, f"Study {folder.name}"))
    return [front, pictures]


def load() -> None:
    """Loads what pictures are made with, which takes a second."""
    import jinja2  # noqa: F401
    import optuna.importance  # noqa: F401
    import plotly.graph_objects  # noqa: F401


class LivePictures(Listener):
    """Writes a study's pictures while it runs, and hands them to its tracker.

    A failure of its own ends nothing but that one making: pictures are made again at the study's end.

    Args:
        drawn: makes of copies of the records what is to be drawn. It is called in a thread.
        folder: the study's.
        tracker: takes the pictures for the parent run.
        every: seconds.
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
            # What pictures are made with is loaded while the last trials train and processors become free.
            if not loaded and study.full:
                load()  # in this thread, which is waited for: two that import the same see it half done
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
            except Exception:  # whatever it is, the search goes on, and the study's end will say it
                continue


def live_pictures(prepared: Prepared, tracker: Tracker) -> LivePictures:
    """Return what keeps a study's pictures up to date while it runs."""
    return LivePictures(partial(_pictured, prepared), prepared.config.folder, tracker)


def final_pictures(prepared: Prepared, records: Sequence[TrialRecord]) -> list[Path]:
    """Return the pictures of the ended study. A mistake in them is told, and loses the study nothing else."""
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
