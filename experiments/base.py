"""What an experiment is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tune_sparsity.sparsity.layers import PAPER_RULES, LayerRules

_EVALUATED_NUMBERS = 1 << 22  # inputs' numbers in one batch: a wide residual net makes 16 to 64 times as many of them


class DataUnavailable(Exception):
    """The data set is neither on this machine nor to be had; the message is one line that says what to do."""


class NotFinite(Exception):
    """The loss or the network's outputs became NaN or infinite: what follows cannot be trained or judged."""


class Split(NamedTuple):
    """Examples in memory: inputs (n, ...), of which Experiment.prepare makes what the network takes, and targets
    (n, ...)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Data:
    """A data set. The search sees `train` and `val`; `test` is read once, for the network that is reported.

    Attributes:
        preprocessing: what was done to the raw inputs, in JSON's types, for whoever uses the exported network.
        classes: the names of the classes, in the order of the logits; empty if there are none.
    """

    train: Split
    val: Split
    test: Split
    preprocessing: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def checksum(self) -> str:
        """SHA-256 over all splits' bytes, shapes and types: equal exactly for equal data in equal order."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            for tensor in split:
                digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
                digest.update(tensor.contiguous().cpu().numpy().data)
        return digest.hexdigest()


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for every example whose largest logit is its class, else 0: shape (n,). Its mean is the accuracy."""
    return (outputs.argmax(dim=1) == targets).float()


def unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Recipe:
    """Default settings of a training. Raises ValueError unless epochs and batch_size are at least 1.

    Attributes:
        epochs: passes over the training data.
        batch_size: examples per step.
        drop_last: leave out what is left over at an epoch's end, where it is fewer examples than batch_size. Other
            examples are left out in every epoch. Batch normalisation cannot train on one example.
    """

    epochs: int
    batch_size: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"a recipe needs epochs and batch_size of at least 1, got {self}")

    def trained_on(self, examples: int) -> int:
        """Return how many of so many examples an epoch trains on."""
        return examples - examples % self.batch_size if self.drop_last else examples


@dataclass(frozen=True)
class Experiment:
    """A data set, a network and how they are trained; the built-in ones and users' own are all this.

    Attributes:
        name: under which the experiment is known in files and in MLflow.
        load: reads the data; its argument is the folder given by --data-dir, or None for the default one. Raises
            DataUnavailable when the data cannot be had.
        model: makes a fresh network, its weights drawn from torch's global generator (which the caller seeds).
        recipe: default epochs and batch size.
        loss: (outputs, targets) -> a scalar to minimise.
        metric: (outputs, targets) -> one score in [0, 1] for every example; the mean is what is called accuracy.
        prepare: inputs (n, ...) as the data set holds them -> as the network takes them. Applied to every batch, on
            its device, in training and in evaluation: large images can stay bytes in memory.
        augment: (inputs, generator on the CPU) -> inputs of the same shape and type, randomly changed. Applied to
            training batches only, on their device and before `prepare`; all its randomness must come from the
            generator, or a resumed training is another one.
        layers: which of the network's layers are pruned, and which of them lie on the sphere.
        cuda_graph: whether a step on a GPU, from the batch to the new weights, may be recorded once and replayed from
            then on. Small networks train several times as fast so. `prepare`, `model` and `loss` have to do the same
            operations at every step: what Python decides or draws in them, torch's numbers on the CPU included, is
            decided once and for all by the recording (what torch draws on the GPU is not), and nothing may wait for
            the GPU, as `.item()` does.
        space: a search space, by name or .yaml file, that suits this data better than its method's own; a study takes
            it for that method unless it is given another.
    """

    name: str
    load: Callable[[Path | None], Data]
    model: Callable[[], nn.Module]
    recipe: Recipe
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    metric: Callable[[Tensor, Tensor], Tensor] = correct
    prepare: Callable[[Tensor], Tensor] = unchanged
    augment: Callable[[Tensor, Generator], Tensor] | None = None
    layers: LayerRules = PAPER_RULES
    cuda_graph: bool = False
    space: str | None = None


def in_evaluation(model: nn.Module) -> nn.Module:
    """Return the network in evaluation mode. Where a person has written its train() anew, eval() may return nothing."""
    model.eval()
    return model


@torch.no_grad()
def evaluate(experiment: Experiment, model: nn.Module, split: Split, batch: int | None = None) -> float:
    """Mean metric of `model` over a split, on its device and in evaluation mode; the mode it was in is restored.

    Args:
        batch: examples at once; by default 4096, and fewer where inputs are large.

    Raises:
        NotFinite: if an output is NaN: the largest of such outputs is no answer.
    """
    if batch is None:
        batch = max(1, min(4096, _EVALUATED_NUMBERS // max(1, split.x[:1].numel())))
    was_training = model.training
    device = next((param.device for param in model.parameters()), split.x.device)
    model.eval()
    scores, unknown = list[Tensor](), list[Tensor]()
    for x, y in zip(split.x.split(batch), split.y.split(batch), strict=True):
        outputs = model(experiment.prepare(x.to(device)))
        scores.append(experiment.metric(outputs, y.to(device)))
        unknown.append(outputs.isnan().reshape(len(x), -1).any(1))
    model.train(was_training)
    accuracy, bad = float(torch.cat(scores).double().mean()), int(torch.cat(unknown).sum())
    if bad:
        raise NotFinite(f"the network's outputs are NaN for {bad} of {len(split.x)} examples")
    return accuracy
