"""Use transformers' Trainer in a user's training loop. A callback connects the Trainer with the trial of the search."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tune_sparsity.experiments.own.trial import LoopError, Trial


class TrainerSparsity(TrainerCallback):
    """Connects transformers' Trainer with a trial of a search. The trial makes the network sparse.

    During the evaluation of each epoch, the network is pruned to its final sparsity. After the evaluation, its weights
    are restored, except in the last epoch. Example::

        def train(trial):
            model, args = BertForSequenceClassification(config), TrainingArguments(..., eval_strategy="epoch")
            sparse = TrainerSparsity(trial, model, args, len(training), "eval_f1")
            Trainer(model, args, train_dataset=training, eval_dataset=validation, compute_metrics=f1,
                    callbacks=[sparse], optimizers=sparse.optimizers).train()

    The trial sets the learning rate. This class therefore changes `args.lr_scheduler_type` from "linear", the Trainer's
    default, to "constant". If you have set another type of scheduler, this class does not change it. A trial that was
    interrupted continues with the remaining epochs.

    Args:
        trial: the argument of the training loop.
        model: the network. It is moved to `args.device`.
        args: the Trainer's arguments. This class changes num_train_epochs and seed. It also changes lr_scheduler_type
            if this is "linear".
        examples: the number of examples in the training data.
        monitor: the name of the metric to report. The results of the evaluation must contain it.

    Attributes:
        optimizers: the argument `optimizers` of the Trainer.

    Raises:
        LoopError: if `args.eval_strategy` is not "epoch"; or later, during the training, if the results of an
            evaluation do not contain the metric.
    """

    def __init__(self, trial: Trial, model: nn.Module, args: TrainingArguments, examples: int, monitor: str) -> None:
        if args.eval_strategy != "epoch":
            raise LoopError(f'the Trainer has eval_strategy={str(args.eval_strategy)!r}: give eval_strategy="epoch"')
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
