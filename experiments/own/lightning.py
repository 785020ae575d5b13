"""Use a Lightning Trainer in a user's training loop. A callback connects the Trainer with the trial of the search."""

from __future__ import annotations

from typing import Any

import lightning as L

from tune_sparsity.experiments.own.trial import LoopError, Trial
from tune_sparsity.sparsity import SparseTraining


class LightningSparsity(L.Callback):
    """Connects a Lightning Trainer with a trial of a search. The trial makes the network sparse.

    The trial's optimizer replaces the result of the module's configure_optimizers. During the validation of each epoch,
    the network is pruned to its final sparsity. After the validation, its weights are restored, except in the last
    epoch. Example::

        def train(trial):
            module = Classifier()
            trainer = L.Trainer(max_epochs=8, callbacks=[LightningSparsity(trial, "val_accuracy")])
            trainer.fit(module, training, validation)

    A trial that was interrupted continues with the remaining epochs.

    Args:
        trial: the argument of the training loop.
        monitor: the name of the metric to report. The module must log it in validation_step.

    Raises:
        LoopError: during the fit, if Lightning does not know the number of steps, or if the module does not log the
            metric.
    """

    def __init__(self, trial: Trial, monitor: str) -> None:
        self._trial, self._monitor = trial, monitor
        self._projected: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            # Lightning calls configure_optimizers after it has moved the module to its device.
            pl_module.configure_optimizers = lambda: self._optimizer(trainer, pl_module)  # type: ignore[method-assign]

    def _optimizer(self, trainer: L.Trainer, pl_module: L.LightningModule) -> SparseTraining:
        steps = trainer.estimated_stepping_batches
        if not isinstance(steps, int):
            raise LoopError("Lightning does not know how many steps it will make: give Trainer(max_epochs=...)")
        return self._trial.sparsify(pl_module, total_steps=steps)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert trainer.max_epochs is not None
        trainer.fit_loop.max_epochs = self._trial.begin(trainer.max_epochs)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._projected = self._trial.projected()
            self._projected.__enter__()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        projected, self._projected = self._projected, None
        if projected is not None:
            projected.__exit__(None, None, None)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = trainer.callback_metrics.get(self._monitor)
        if value is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise LoopError(f"the module logs no {self._monitor!r} in validation_step: it logs {known}")
        self._trial.report(float(value))
        trainer.should_stop = trainer.should_stop or self._trial.over
