"""Passes the study's decisions on early stopping to Ray."""

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
    """Stops a trial if the study's successive halving decides to stop it. Lets Ray choose which pending trial starts
    next.

    Ray saves no state of this scheduler, because all decisions depend only on the records of the study's trials.

    Args:
        study: the study to which the trials belong.
        names: a dict from Ray's id of each trial to the trial's number. The searcher adds each new trial.
    """

    def __init__(self, study: StudyRun, names: Mapping[str, int]) -> None:
        super().__init__()
        self._study, self._names = study, names

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        """Return CONTINUE or STOP for a trial that has reported. Ray calls this method for every report of a trial
        except the last one."""
        number = self._names[trial.trial_id]
        report = Report.from_dict(result)
        if not report.epochs:  # the trial could not write to its folder, and StopWhen ends the study
            return TrialScheduler.CONTINUE
        *past, last = report.epochs
        for epoch in past:
            self._study.passed(number, epoch, report.final_sparsity)
        goes_on = self._study.goes_on(number, last, report.final_sparsity)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Return None, so that Ray itself chooses among the pending trials. The method of the base class would look
        through all trials of the study at each call. After thousands of trials, this would take most of the driver's
        time."""
        return None

    def debug_string(self) -> str:
        return "asynchronous successive halving by the study"

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass
