"""The one training loop: a trial, epoch by epoch, with its whole state to save and to load."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from tune_sparsity.experiments.base import Data, Experiment, NotFinite, Split, evaluate
from tune_sparsity.experiments.batchnorm import normalises, remeasured, sample
from tune_sparsity.sparsity import METHODS, SparseTraining, with_last_layer
from tune_sparsity.sparsity.optim.cuda_graph import RecordedPasses, can_be_recorded
from tune_sparsity.sparsity.wrappers import load_plain, on_one_device, plain_state

_FETCHED_NUMBERS = 1 << 18  # at once: a megabyte of float32, which processors keep at hand


class Training:
    """One network in training with one method and its parameters.

    Everything random comes from `seed`: on a CPU the same seed gives the same weights, and a training that was saved
    after an epoch and loaded into a new object goes on bit for bit as if it had never stopped.

    Args:
        experiment: what to train.
        train, val: the data; moved to `device` whole.
        method: a name in sparsity.METHODS.
        params: the method's parameters. Raises ValueError if the method does not accept them.
        epochs: how long; the schedules are laid over all of it.
        seed: of the initial weights, the masks, the order of the examples and their augmentation.
        device: "cpu", "cuda", ...
    """

    def __init__(
        self,
        experiment: Experiment,
        train: Split,
        val: Split,
        method: str,
        params: dict[str, Any],
        *,
        epochs: int,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.experiment, self.epochs, self.epochs_done = experiment, epochs, 0
        self.train_split = Split(train.x.to(device), train.y.to(device))
        self.val_split = Split(val.x.to(device), val.y.to(device))
        self.order = Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = on_one_device(experiment.model()).to(device)
            self.noise = torch.get_rng_state()  # for dropout and the like, apart from what others draw
            rules = with_last_layer(experiment.layers, self.model, experiment.prepare(self.train_split.x[:2]))
        self.sparse: SparseTraining = METHODS[method].build(
            self.model,
            params,
            total_steps=epochs * self._steps_per_epoch(),
            generator=self.order,
            rules=rules,
            epochs=epochs,
        )
        records = experiment.cuda_graph and can_be_recorded(self.model.parameters())
        self._recorded = RecordedPasses(self.model.parameters()) if records else None
        self._batch: tuple[Tensor, Tensor] | None = None  # where recorded passes find theirs

    @property
    def finished(self) -> bool:
        return self.epochs_done >= self.epochs

    def _steps_per_epoch(self) -> int:
        recipe = self.experiment.recipe
        return math.ceil(recipe.trained_on(len(self.train_split.x)) / recipe.batch_size)

    def epoch(self) -> dict[str, float]:
        """Trains one epoch and measures.

        Returns:
            train_loss; val_accuracy and val_accuracy_at_target (as if projected to the final sparsity now);
            sparsity and sparsity_total as the network stands; hoyer; nonzero_weights; travel (the sum of the
            sphere's learning rates so far); threshold and grow_rate while the masks move, of methods that have them;
            epoch_seconds.

        Raises:
            NotFinite: when the loss, or an output in the evaluation, is no longer a number.
        """
        start = time.perf_counter()
        train_loss = self.train()
        accuracy = evaluate(self.experiment, self.model, self.val_split)
        at_target = accuracy
        if not self.sparse.fixed:
            with self.sparse.projected():
                at_target = self._projected_accuracy()
        zeros, weights = self.sparse.zeros()
        return {
            "train_loss": train_loss,
            "val_accuracy": accuracy,
            "val_accuracy_at_target": at_target,
            "sparsity": zeros / weights,
            "sparsity_total": zeros / sum(param.numel() for param in self.model.parameters()),
            "hoyer": self.sparse.hoyer(),
            "nonzero_weights": weights - zeros,
            "travel": self.sparse.lr_sum,
            **self.sparse.adaptation(),
            "epoch_seconds": time.perf_counter() - start,
        }

    def train(self) -> float:
        """Trains one epoch without measuring; the mean training loss. Raises NotFinite."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.noise)
            loss = self._train()
            self.noise = torch.get_rng_state()
        self.epochs_done += 1
        return loss

    def _projected_accuracy(self) -> float:
        """Validation accuracy of weights that were just projected. Running statistics of batch normalisation, being
        those of the weights before, would make a good network look like a guess: they are measured anew."""
        x = self.train_split.x
        if len(x) < 2 or not normalises(self.model):
            return evaluate(self.experiment, self.model, self.val_split)
        with remeasured(self.model, (self.experiment.prepare(x[batch.to(x.device)]) for batch in sample(len(x)))):
            return evaluate(self.experiment, self.model, self.val_split)

    def _train(self) -> float:
        """One pass over the training data in a fresh order; the mean loss. Raises NotFinite."""
        augment = self.experiment.augment
        self.model.train()
        losses, sizes = list[Tensor](), list[int]()
        for x, y in self._batches():
            inputs = x if augment is None else augment(x, self.order)
            losses.append(self._step(inputs, y))
            sizes.append(len(x))
        mean = float(torch.stack(losses).double().cpu() @ torch.tensor(sizes, dtype=torch.float64)) / sum(sizes)
        try:
            self.sparse.check_finite()
        except FloatingPointError as error:
            raise NotFinite(f"{error} in epoch {self.epochs_done + 1}, whose loss is {mean}") from error
        if not math.isfinite(mean):
            raise NotFinite(f"the training loss is {mean} in epoch {self.epochs_done + 1}")
        return mean

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on a batch; its loss."""
        loss = self._passes(x, y)
        try:
            self.sparse.step()
        except FloatingPointError as error:
            raise NotFinite(f"{error} in epoch {self.epochs_done + 1}, where the loss is {loss.item()}") from error
        return loss

    def _passes(self, x: Tensor, y: Tensor) -> Tensor:
        """Forward and backward; the loss. Recorded, where they are, but for a last batch that is smaller."""
        if self._recorded is None or len(x) < self.experiment.recipe.batch_size:
            return self._passes_now(x, y)
        if self._batch is None:
            self._batch = x.clone(), y.clone()
        batch = self._batch
        for held, new in zip(batch, (x, y), strict=True):
            held.copy_(new)
        return self._recorded(lambda: self._passes_now(*batch)).clone()

    def _passes_now(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.experiment.loss(self.model(self.experiment.prepare(x)), y)
        self.sparse.zero_grad()
        loss.backward()
        return loss.detach()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The training data in a fresh order. Small examples are fetched for several batches at once."""
        x, y = self.train_split
        recipe = self.experiment.recipe
        size = recipe.batch_size
        several = max(1, _FETCHED_NUMBERS // (size * max(1, x[:1].numel())))
        order = torch.randperm(len(x), generator=self.order)[: recipe.trained_on(len(x))].to(x.device)
        for places in order.split(size * several):
            # index_select is twice as quick as an index on a CPU.
            fetched = (torch.index_select(part, 0, places).split(size) for part in (x, y))
            yield from zip(*fetched, strict=True)

    def state_dict(self) -> dict[str, Any]:
        """All that the training needs to go on: network, method, order of the data, noise, epochs done."""
        return {
            "model": plain_state(self.model),
            "sparse": self.sparse.state_dict(),
            "order": self.order.get_state(),
            "noise": self.noise,
            "epochs_done": self.epochs_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_plain(self.model, state["model"])
        self.sparse.load_state_dict(state["sparse"])
        self.order.set_state(state["order"])
        self.noise = state["noise"]
        self.epochs_done = state["epochs_done"]


def train_whole(experiment: Experiment, data: Data, method: str, params: dict[str, Any], **options: Any) -> Training:
    """A training from the first epoch to the last, measured only by the caller: for scripts and benchmarks."""
    training = Training(experiment, data.train, data.val, method, params, **options)
    while not training.finished:
        training.train()
    return training
