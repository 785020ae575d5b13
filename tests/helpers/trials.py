"""Make records of trials."""

from __future__ import annotations

from tune_sparsity.tuner.study.trial import TrialRecord, TrialState


def trial(number: int, sparsity: float, accuracy: float, **more: object) -> TrialRecord:
    fields = {"state": TrialState.COMPLETED, "sparsity": sparsity, "val_accuracy": accuracy, **more}
    return TrialRecord.from_dict({"number": number, "method": "lpss", "params": {}, **fields})
