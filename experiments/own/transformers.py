"""transformers' Trainer as a loop of one's own: the Trainer has the loop, and a callback speaks with the trial."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tune_sparsity.experiments.own.trial import LoopError, Trial


class TrainerSparsity(TrainerCallback):
    """Trains a network sparse with transformers' Trainer, as a trial of a search.

    The evaluation of each epoch sees the network as it would be at its final sparsity::

        def train(trial):
            model, args = BertForSequenceClassification(config), TrainingArguments(..., eval_strategy="epoch")
            sparse = TrainerSparsity(trial, model, args, len(training), "eval_f1")
            Trainer(model, args, train_dataset=training, eval_dataset=validation, compute_metrics=f1,
                    callbacks=[sparse], optimizers=sparse.optimizers).train()

    The learning rate follows the trial's schedule alone, unless `args.lr_scheduler_type` says so: by default that is
    made "constant". A trial that was interrupted goes on with the epochs that were left.

    Args:
        trial: the loop's.
        model: the network; it is moved to the arguments' device.
        args: the Trainer's. Their number of epochs, and their default schedule, are changed.
        examples: in the training data.
        monitor: the metric that the evaluation gives.

    Attributes:
        optimizers: for the Trainer.

    Raises:
        LoopError: if the arguments do not evaluate each epoch.
    """

    def __init__(self, trial: Trial, model: nn.Module, args: TrainingArguments, examples: int, monitor: str) -> None:
        if args.eval_strategy != "epoch":
            raise LoopError(f'the Trainer evaluates by {str(args.eval_strategy)!r}: give eval_strategy="epoch"')
        self._trial, self._monitor = trial, monitor
        self._projected: Any = None
        batches = -(-examples // args.train_batch_size)
        if args.dataloader_drop_last:
            batches = examples // args.train_batch_size
        epochs = round(args.num_train_epochs)
        steps = epochs * -(-batches // args.gradient_accumulation_steps)
        self.optimizers = (trial.sparsify(model.to(args.device), total_steps=steps), None)
        args.num_train_epochs = trial.begin(epochs)
        args.seed = trial.seed % 2**31  # which the Trainer sets
        if args.lr_scheduler_type == "linear":
            args.lr_scheduler_type = type(args.lr_scheduler_type)("constant")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._projected = self._trial.projected()
        self._projected.__enter__()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        projected, self._projected = self._projected, None
        if projected is None:  # an evaluation that the loop asks for itself
            return
        projected.__exit__(None, None, None)
        measured = metrics or {}
        if self._monitor not in measured:
            raise LoopError(f"the evaluation gives no {self._monitor!r}: it gives {', '.join(sorted(measured))}")
        self._trial.report(measured[self._monitor])
        control.should_training_stop = control.should_training_stop or self._trial.over
