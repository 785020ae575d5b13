"""Train with transformers' Trainer as a user's training loop: a callback connects the Trainer with the trial."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tune_sparsity.experiments.own.trial import LoopError, Trial


class TrainerSparsity(TrainerCallback):
    """Trains a network sparse with transformers' Trainer, as a trial of a search.

    The evaluation of each epoch measures the network as if it were pruned to its final sparsity::

        def train(trial):
            model, args = BertForSequenceClassification(config), TrainingArguments(..., eval_strategy="epoch")
            sparse = TrainerSparsity(trial, model, args, len(training), "eval_f1")
            Trainer(model, args, train_dataset=training, eval_dataset=validation, compute_metrics=f1,
                    callbacks=[sparse], optimizers=sparse.optimizers).train()

    The trial's schedule sets the learning rate. The Trainer's default schedule, "linear", is therefore replaced by
    "constant". Another `args.lr_scheduler_type` stays. A trial that was interrupted continues with the remaining
    epochs.

    Args:
        trial: the trial that the search gives to the loop.
        model: the network. It is moved to the device of the arguments.
        args: the Trainer's arguments. Their number of epochs, seed and default schedule are changed.
        examples: the number of examples in the training data.
        monitor: the name of a metric in the results of the evaluation.

    Attributes:
        optimizers: the argument `optimizers` of the Trainer.

    Raises:
        LoopError: if `args` does not ask for an evaluation after each epoch. Also during the training, if the results
            of the evaluation do not contain the metric.
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
        args.seed = trial.seed % 2**31  # the Trainer seeds all generators with it
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
        if projected is None:  # an evaluation outside of the training
            return
        projected.__exit__(None, None, None)
        measured = metrics or {}
        if self._monitor not in measured:
            raise LoopError(f"the evaluation gives no {self._monitor!r}: it gives {', '.join(sorted(measured))}")
        self._trial.report(measured[self._monitor])
        control.should_training_stop = control.should_training_stop or self._trial.over
