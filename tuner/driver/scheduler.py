"""Early stopping in Ray's terms: the study decides, Ray is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.worker.report import Report

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class StudyScheduler(FIFOScheduler):
    """Stops the trials that the study's halving stops; starts trials in the order in which they come.

    What Ray would save of it is nothing: the study's records hold all that the decisions depend on.

    Args:
        study: whose trials these are.
        names: the trials' numbers by Ray's trial id; others add to it.
    """

    def __init__(self, study: StudyRun, names: Mapping[str, int]) -> None:
        super().__init__()
        self._study, self._names = study, names

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Called for every report but a trial's last: a finished trial is never stopped."""
        number = self._names[trial.trial_id]
        report = Report.from_dict(result)
        if not report.epochs:  # the disk is full: the study ends
            return TrialScheduler.CONTINUE
        *past, last = report.epochs
        for epoch in past:
            self._study.passed(number, epoch, report.final_sparsity)
        goes_on = self._study.goes_on(number, last, report.final_sparsity)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """None in particular: Ray starts whatever is pending. FIFOScheduler would look through all trials of the study
        each time, and after thousands of trials that is where the driver's time goes."""
        return None

    def debug_string(self) -> str:
        return "asynchronous successive halving by the study"

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass
