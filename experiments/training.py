"""Train the network of one trial, epoch by epoch. The state of the training can be saved and loaded."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tune_sparsity.experiments.base import PRECISIONS, Data, Experiment, NotFinite, Recipe, evaluate
from tune_sparsity.experiments.batchnorm import remeasure, remeasured, sampled_inputs
from tune_sparsity.experiments.examples import Loaded, Split, copied, tensors_in
from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.experiments.ranks import ONE_RANK, OneRank
from tune_sparsity.experiments.step_memory import StepMemory
from tune_sparsity.sparsity import METHODS, SparseTraining, with_last_layer
from tune_sparsity.sparsity.neurons.finding import with_neurons
from tune_sparsity.sparsity.optim.cuda_graph import RecordedPasses, can_be_recorded
from tune_sparsity.sparsity.wrappers import load_plain, on_one_device, plain_state


class Training:
    """Trains one network with one method and its parameters.

    On a CPU, the same seed gives the same weights. If a training is saved after an epoch and loaded into a new object,
    the result is equal, bit for bit, to that of a training without an interruption.

    Args:
        experiment: the experiment to train.
        train, val: the training and the validation split. Splits in memory are moved to `device` as a whole.
        method: the name of a method that makes networks sparse, a key of sparsity.METHODS.
        params: the method's parameters.
        epochs: the number of epochs. The schedules of learning rate and sparsity cover all of them.
        seed: the seed of the initial weights, the masks, the order of the examples and their augmentation.
        device: "cpu", "cuda", ...
        ranks: the group of processes that train this network together. Each process makes a Training with the same
            arguments.

    Raises:
        ValueError: if the method does not accept the parameters.
        RanksDiffer: if the ranks do not begin with the same network.
    """

    def __init__(
        self,
        experiment: Experiment,
        train: Split | Loaded,
        val: Split | Loaded,
        method: str,
        params: dict[str, Any],
        *,
        epochs: int,
        seed: int,
        device: str = "cpu",
        ranks: OneRank = ONE_RANK,
    ) -> None:
        self.experiment, self.epochs, self.epochs_done = experiment, epochs, 0
        self.ranks = ranks
        self.train_split, self.val_split = train.to(device), val.to(device)
        self.order = Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = on_one_device(experiment.model()).to(device)
            self.noise = torch.get_rng_state()  # the generator's state for dropout and other noise
            example = experiment.prepare(self.train_split.first(2).x)
            rules = with_last_layer(experiment.layers, self.model, example, experiment.forward)
            width = params.get("width", 1.0)
            rules = with_neurons(rules, self.model, example, experiment.forward, width=width)
        ranks.check_same([*self.model.parameters(), *self.model.buffers()], "the first weights")
        self.sparse: SparseTraining = METHODS[method].build(
            self.model,
            params,
            total_steps=epochs * experiment.recipe.steps(self.train_split.examples),
            generator=self.order,
            rules=rules,
            epochs=epochs,
            trained=experiment.trained,
        )
        self._memory = StepMemory(self.model, self.sparse, alone=ranks is ONE_RANK)
        self._first_masks: dict[str, float] = {}  # val_..._first_mask, if the network was trained before
        recipe = experiment.recipe
        if self.sparse.steps_in_backward:
            check_steps_in_backward(recipe, alone=ranks is ONE_RANK)
        self._device = torch.device(device).type
        self._autocast = PRECISIONS[recipe.precision]
        self._scaler = torch.amp.GradScaler(self._device) if recipe.precision == "float16" else None
        records = experiment.cuda_graph and recipe.accumulate == 1 and self._scaler is None and ranks is ONE_RANK
        records = records and can_be_recorded(self.model.parameters()) and not self.sparse.steps_in_backward
        self._recorded = RecordedPasses(self.model.parameters()) if records else None
        self._batch: Split | None = None  # recorded passes read every batch from the memory of these tensors

    @property
    def finished(self) -> bool:
        return self.epochs_done >= self.epochs

    def epoch(self) -> dict[str, float]:
        """Train one epoch and measure the network.

        Returns:
            The measures of this epoch, as a dict from names to values. In the names, the name of the experiment's
            metric replaces "accuracy".

            train_loss, epoch_seconds: the mean training loss and the time of the epoch.
            val_accuracy: the validation metric of the current network.
            val_accuracy_at_target: the validation metric of the network while it is pruned to the final sparsity for
                this measurement. If the method averages weights over the last part of the training, val_accuracy and
                val_accuracy_at_target are measured with the averaged weights as soon as these exist.
            val_accuracy_last: the validation metric with the weights of the last step. It is present only if
                val_accuracy is measured with an average.
            sparsity, sparsity_total, hoyer, nonzero_weights, travel, threshold, grow_rate: see
                `SparseTraining.measures`.
            train_bytes: the peak memory of a step in bytes; see StepMemory. It is present only if it was measured.
            val_accuracy_first_mask: the validation metric with the first masks, before the first step. It is present
                only in the first epoch of a pretrained network whose first masks contain zeros.

        Raises:
            NotFinite: if the loss, an output in the evaluation or the metric is NaN or infinite.
        """
        start = time.perf_counter()
        train_loss = self.train()
        validated = self._validated()
        return {
            "train_loss": train_loss,
            **validated,
            **self.sparse.measures(),
            **({} if self._memory.peak is None else {"train_bytes": float(self._memory.peak)}),
            **(self._first_masks if self.epochs_done == 1 else {}),
            "epoch_seconds": time.perf_counter() - start,
        }

    def _validated(self) -> dict[str, float]:
        """Return the measures val_accuracy, val_accuracy_at_target and, if weights are averaged, val_accuracy_last. See
        `epoch`."""
        name = f"val_{self.experiment.metric_name}"
        value = evaluate(self.experiment, self.model, self.val_split)
        average = self.sparse.average
        if average is not None and average.samples:
            with average.swapped():
                other = self._masked_value()
            value, last = (value, other) if average.taken else (other, value)
            return {name: value, f"{name}_at_target": value, f"{name}_last": last}
        if self.sparse.fixed or not self.sparse.layers:  # nothing is projected
            return {name: value, f"{name}_at_target": value}
        with self.sparse.projected():
            return {name: value, f"{name}_at_target": self._masked_value()}

    def close(self) -> None:
        """Do nothing. This method exists because `OwnTraining`, which has the same methods, must end its thread."""

    def train(self) -> float:
        """Train one epoch without measuring the network. Return the mean training loss. Raise NotFinite if the loss is
        not finite."""
        with same_random_numbers(self.train_split.seed(self.order)):
            torch.set_rng_state(self.noise)
            with self.ranks.own_noise():
                loss = self._train()
            self.noise = torch.get_rng_state()
        self.epochs_done += 1
        return loss

    def _masked_value(self) -> float:
        """Return the validation metric after weights were pruned or averaged. During the measurement, batch
        normalisation has new running statistics for these weights. With the old statistics, the metric would be much
        worse."""
        with remeasured(self.model, sampled_inputs(self.model, self.train_split), self.experiment.outputs):
            return evaluate(self.experiment, self.model, self.val_split)

    def _train(self) -> float:
        """Train for one pass over the data in a new random order. Return the mean loss. Raise NotFinite if a weight or
        the loss is not finite."""
        experiment, recipe, train = self.experiment, self.experiment.recipe, self.train_split
        self.model.train()
        losses, sizes = list[Tensor](), list[float]()
        count, batches = recipe.trained_on(train.examples), recipe.batches(train.examples)
        waiting = 0  # batches since the last step
        generator = self.order if experiment.augment is None else self.ranks.own_generator(self.order)
        shares = self.ranks.shares(train, recipe.batch_size, self.order, count=count, epoch=self.epochs_done)
        for (x, y), whole, parts in shares:
            inputs = x if experiment.augment is None else experiment.augment(x, generator)
            together = min(recipe.accumulate, batches - len(losses) + waiting)
            batch = Split(inputs, y)
            with self._memory.within((inputs, y)):
                losses.append(self._passes(batch, together * parts, first=not waiting))
            sizes.append(whole / parts)
            waiting = (waiting + 1) % together
            if not waiting:
                with self._memory.within():
                    self._step(losses[-1])
        if not losses:
            raise NotFinite(f"the training data gave no example in epoch {self.epochs_done + 1}")
        if waiting:  # the data gave fewer batches than their length promised
            self._step(losses[-1])
        if self.epochs_done + 1 == self.epochs:
            self.sparse.finish()
            if self.sparse.average is not None and self.sparse.average.taken:
                remeasure(self.model, sampled_inputs(self.model, self.train_split), self.experiment.outputs)
            self._check_masks()
        self.ranks.share_buffers(self.model)
        loss = float(torch.stack(losses).double().cpu() @ torch.tensor(sizes, dtype=torch.float64))
        loss, examples = self.ranks.total(loss, sum(sizes))
        mean = loss / examples
        try:
            self.sparse.check_finite()
        except FloatingPointError as error:
            raise NotFinite(f"{error} in epoch {self.epochs_done + 1}, whose loss is {mean}") from error
        if not math.isfinite(mean):
            raise NotFinite(f"the training loss is {mean} in epoch {self.epochs_done + 1}")
        return mean

    def _step(self, loss: Tensor) -> None:
        """Take one optimizer step with the current gradients.

        Args:
            loss: the loss of the last batch. An error message contains it.
        """
        clip, scaler, moved = self.experiment.recipe.clip_norm, self._scaler, self.sparse.mask_updates
        self.ranks.add_gradients(self.model.parameters())
        if scaler is not None:
            scaler.unscale_(self.sparse)
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        try:
            if self.experiment.trained and self.sparse.steps == 0:
                self._look_at_first_masks()
            if scaler is None:
                self.sparse.quick_step()
            else:
                scaler.step(self.sparse)
                scaler.update()
        except FloatingPointError as error:
            raise NotFinite(f"{error} in epoch {self.epochs_done + 1}, where the loss is {loss.item()}") from error
        if self.sparse.mask_updates > moved:
            self._check_masks()

    def _check_masks(self) -> None:
        self.ranks.check_same((mask.bool() for mask in self.sparse.masks), f"after step {self.sparse.steps} the masks")

    def _look_at_first_masks(self) -> None:
        self.sparse.move_masks()  # snip chooses its mask here
        if self.sparse.zeros()[0]:
            name = self.experiment.metric_name
            self._first_masks = {f"val_{name}_first_mask": self._masked_value()}

    def _passes(self, batch: Split, together: float, *, first: bool) -> Tensor:
        """Run the forward and the backward pass of a batch, and return the loss. If both passes are recorded as a CUDA
        graph, replay it. A smaller last batch does not fit the recording and is computed without it.

        Args:
            together: the divisor of the loss: the number of batches, or of shares of batches, for one step.
            first: whether this is the first batch of the step. The gradients are then cleared.
        """
        if self._recorded is None or batch.examples < self.experiment.recipe.batch_size:
            return self._passes_now(batch, together, first=first)
        if self._batch is None:
            self._batch = copied(batch)
        held = self._batch
        for tensor, new in zip(tensors_in(held), tensors_in(batch), strict=True):
            tensor.copy_(new)
        return self._recorded(lambda: self._passes_now(held)).clone()

    def _passes_now(self, batch: Split, together: float = 1, *, first: bool = True) -> Tensor:
        with nullcontext() if self._autocast is None else torch.autocast(self._device, self._autocast):
            loss = self.experiment.loss(self.experiment.outputs(self.model, batch.x), batch.y)
        if first:
            self.sparse.zero_grad()
        share = loss if together == 1 else loss / together
        (share if self._scaler is None else self._scaler.scale(share)).backward()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state of the training: network, optimizer, masks, random generators and the number of epochs
        done."""
        return {
            "model": plain_state(self.model),
            "sparse": self.sparse.state_beside_network(),
            "order": self.order.get_state(),
            "noise": self.noise,
            "epochs_done": self.epochs_done,
            "train_bytes": self._memory.peak,
            **({} if self._scaler is None else {"scaler": self._scaler.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_plain(self.model, state["model"])
        self.sparse.load_state_dict(state["sparse"])
        self.order.set_state(state["order"])
        self.noise = state["noise"]
        self.epochs_done = state["epochs_done"]
        self._memory.peak = state.get("train_bytes")  # states of earlier versions have no "train_bytes"
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])


def check_steps_in_backward(recipe: Recipe, *, alone: bool) -> None:
    """Raise ValueError if the method "binary" cannot train the experiment. The optimizer of this method updates each
    weight during the backward pass. Such a training needs a step after every batch, float32 and a single process.

    Args:
        recipe: the experiment's recipe.
        alone: whether one process trains the network.
    """
    if recipe.accumulate > 1:
        raise ValueError("binary takes a step after every batch: give a recipe with accumulate = 1")
    if recipe.precision != "float32":
        raise ValueError('binary computes in float32: give a recipe with precision = "float32"')
    if not alone:
        raise ValueError("binary trains in one process: give --workers-per-trial 1")


def train_whole(experiment: Experiment, data: Data, method: str, params: dict[str, Any], **options: Any) -> Training:
    """Make a Training, train all its epochs without measuring the network, and return it."""
    training = Training(experiment, data.train, data.val, method, params, **options)
    while not training.finished:
        training.train()
    return training
