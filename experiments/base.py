"""What an experiment is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tune_sparsity.experiments.examples import Loaded, Split, at_once, is_data_set
from tune_sparsity.experiments.metrics import Metric, Scorer, metric_of
from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.sparsity.binary.convert import as_stored
from tune_sparsity.sparsity.layers import PAPER_RULES, LayerRules
from tune_sparsity.sparsity.output_layers import called
from tune_sparsity.sparsity.patterns import Pattern
from tune_sparsity.sparsity.wrappers import load_plain, unwrapped


class DataUnavailable(Exception):
    """The data set is neither on this machine nor to be had; the message is one line that says what to do."""


class NotFinite(Exception):
    """The loss, the outputs or the metric became NaN or infinite: what follows cannot be trained or judged."""


@dataclass(frozen=True)
class Data:
    """A data set. The search sees `train` and `val`; `test` is read once, for the network that is reported.

    Each split is a `Split` of tensors in memory, or a torch data set: map-style, or an IterableDataset that has a
    length. Of a data set every process that trains loads its own: `load` is called there too.

    Attributes:
        preprocessing: what was done to the raw inputs, in JSON's types, for whoever uses the exported network.
        classes: the names of the classes, in the order of the logits; empty if there are none.
        collate: of data sets: makes (inputs, targets) of a list of examples. torch's default_collate unless given.
        workers: of data sets: processes that load for each training; 0: the training process loads.
    """

    train: Any  # a Split, or Loaded, which data sets become
    val: Any
    test: Any
    preprocessing: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    collate: Callable[[list[Any]], Any] | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            split = getattr(self, name)
            if is_data_set(split):
                object.__setattr__(self, name, Loaded(split, self.collate, self.workers))

    @property
    def in_memory(self) -> bool:
        return not any(isinstance(split, Loaded) for split in (self.train, self.val, self.test))

    def checksum(self) -> str:
        """SHA-256 over all splits' bytes, shapes and types: equal exactly for equal data in equal order. Of data sets
        that are not in memory only some examples go in."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            split.add_to(digest)
        return digest.hexdigest()


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for every example whose largest logit is its class, else 0: shape (n,). Its mean is the accuracy."""
    return (outputs.argmax(dim=1) == targets).float()


def are_classes(outputs: Tensor, targets: Any) -> bool:
    """Return whether outputs are logits, shape (n, classes), and targets the numbers of classes, shape (n,)."""
    labels = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
    return labels and outputs.dim() == 2


def unchanged(x: Any) -> Any:
    return x


PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """Default settings of a training. Raises ValueError for what is out of range.

    Attributes:
        epochs: passes over the training data, at least 1.
        batch_size: examples of a forward pass, at least 1.
        drop_last: leave out what is left over at an epoch's end, where it is fewer examples than batch_size. Other
            examples are left out in every epoch. Batch normalisation cannot train on one example.
        accumulate: batches whose gradients are averaged for one step, at least 1.
        clip_norm: the L2 norm of all gradients together that a step has at most, > 0; None: they are not clipped. On
            the sphere only a gradient's direction counts.
        precision: "float32"; or "bfloat16" or "float16", for torch.autocast over forward pass and loss. Gradients of
            float16 are scaled, and a step with an infinite one is left out. Evaluation is in the weights' own type.
    """

    epochs: int
    batch_size: int
    drop_last: bool = False
    accumulate: int = 1
    clip_norm: float | None = None
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise ValueError(f"a recipe needs epochs, batch_size and accumulate of at least 1, got {self}")
        if self.clip_norm is not None and not 0 < self.clip_norm < float("inf"):
            raise ValueError(f"clip_norm must lie in (0, inf), or be None, got {self.clip_norm}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    def trained_on(self, examples: int) -> int:
        """Return how many of so many examples an epoch trains on."""
        return examples - examples % self.batch_size if self.drop_last else examples

    def batches(self, examples: int) -> int:
        """Return how many batches an epoch of so many examples has."""
        return -(-self.trained_on(examples) // self.batch_size)

    def steps(self, examples: int) -> int:
        """Return how many steps an epoch of so many examples has."""
        return -(-self.batches(examples) // self.accumulate)


@dataclass(frozen=True)
class Experiment:
    """A data set, a network and how they are trained; the built-in ones and users' own are all this.

    Attributes:
        name: under which the experiment is known in files and in MLflow.
        load: reads the data; its argument is the folder given by --data-dir, or None for the default one. Raises
            DataUnavailable when the data cannot be had.
        model: makes a fresh network, its weights drawn from torch's global generator (which the caller seeds).
        recipe: default epochs and batch size.
        forward: (network, prepared inputs) -> one tensor of outputs, an entry an example. Unless given, the network is
            called with the inputs; those of a dict are its keyword arguments.
        optimizer: "sgd" or "adamw", of everything off the sphere. With "adamw" a study searches the methods' spaces
            with ranges that suit it, as `--space lpss+adamw` does.
        loss: (outputs, targets) -> a scalar to minimise.
        metric: (outputs, targets) -> one score in [0, 1] for every example; the mean is what is called accuracy. Or a
            Metric, with a name and a direction of its own; or a torchmetrics metric.
        prepare: inputs as the data set holds them -> as the network takes them. Applied to every batch, on its
            device, in training and in evaluation: large images can stay bytes in memory.
        augment: (inputs, generator on the CPU) -> inputs of the same shapes and types, randomly changed. Applied to
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
        trained: whether `model` returns a network that was trained before. Its first masks then go by magnitude.
        files: what the experiment's code reads beside its modules, for workers on other machines and for the logged
            model: names of files and folders, or patterns of glob, in the folder of the experiment's own file.
    """

    name: str
    load: Callable[[Path | None], Data]
    model: Callable[[], nn.Module]
    recipe: Recipe
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    metric: Callable[[Tensor, Tensor], Tensor] | Metric = correct
    prepare: Callable[[Any], Any] = unchanged
    augment: Callable[[Any, Generator], Any] | None = None
    layers: LayerRules = PAPER_RULES
    cuda_graph: bool = False
    space: str | None = None
    forward: Callable[[nn.Module, Any], Tensor] = called
    trained: bool = False
    optimizer: str = "sgd"
    files: tuple[str, ...] = ()

    @property
    def origin(self) -> Any:
        """Return the object in the user's file that this is."""
        return getattr(self, "_origin", self)

    @property
    def travelling(self) -> Mapping[str, Any]:
        """Return the attributes that its code does not tell, which workers need."""
        return {} if self.origin is self else {"layers": self.layers}

    def with_pattern(self, pattern: Pattern) -> Experiment:
        """Return the experiment with this pattern of the zeros."""
        made = replace(self, layers=replace(self.layers, pattern=pattern))
        object.__setattr__(made, "_origin", self.origin)
        return made

    @property
    def metric_name(self) -> str:
        return metric_of(self.metric).name

    def validated(self, model: nn.Module, data: Data) -> float | None:
        """Return the metric on the validation data; None where it cannot be measured here. Raises NotFinite."""
        return evaluate(self, model, data.val)

    def tested(self, model: nn.Module, data: Data) -> float | None:
        """Return the metric on the test data; None where there are none. Raises NotFinite."""
        return evaluate(self, model, data.test)

    def outputs(self, model: nn.Module, x: Any) -> Tensor:
        """Return the network's outputs for inputs as the data set holds them."""
        return self.forward(model, self.prepare(x))

    def network(self) -> nn.Module:
        """Return a fresh network to compute with outside of a training: without torch.compile, and on one device."""
        return unwrapped(self.model())

    def network_with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return the network with these weights, in evaluation mode; binary, if they are. Raises what load_state_dict
        does."""
        network = self.network()
        as_stored(network, tensors)
        load_plain(network, tensors)
        return in_evaluation(network)


def in_evaluation(model: nn.Module) -> nn.Module:
    """Return the network in evaluation mode. Where a person has written its train() anew, eval() may return nothing."""
    model.eval()
    return model


def outputs_of(
    experiment: Experiment, model: nn.Module, split: Split | Loaded, batch: int | None = None
) -> Iterator[tuple[Tensor, Any]]:
    """Yield the network's outputs over a split, batch by batch, with the targets: on its device and in evaluation mode;
    the mode it was in is restored at the end.

    Args:
        batch: examples at once; by default 4096, and fewer where inputs are large. Of a data set that is not in memory
            the recipe's batch size.
    """
    if batch is None and isinstance(split, Loaded):
        batch = experiment.recipe.batch_size
    elif batch is None:
        batch = at_once(split.first(1).x)
    was_training = model.training
    device = next((param.device for param in model.parameters()), None)
    model.eval()
    with same_random_numbers(None if isinstance(split, Split) else 0):
        for some in split.batches(batch):
            x, y = some if device is None else some.to(device)
            yield experiment.outputs(model, x), y
    model.train(was_training)


@torch.no_grad()
def evaluate(experiment: Experiment, model: nn.Module, split: Split | Loaded, batch: int | None = None) -> float:
    """Return the experiment's metric of `model` over a split. The arguments are those of `outputs_of`.

    Raises:
        NotFinite: if an output is NaN: the largest of such outputs is no answer. Also if the metric is NaN or infinite.
    """
    device = next((param.device for param in model.parameters()), torch.device("cpu"))
    metric = metric_of(experiment.metric)
    scorer, unknown = Scorer(metric, device), list[Tensor]()
    for outputs, y in outputs_of(experiment, model, split, batch):
        scorer.add(outputs, y)
        unknown.append(outputs.isnan().reshape(len(outputs), -1).any(1))
    if bad := int(torch.cat(unknown).sum()):
        raise NotFinite(f"the network's outputs are NaN for {bad} of {split.examples} examples")
    value = scorer.value()
    if not math.isfinite(value):
        raise NotFinite(f"the metric {metric.name} is {value}")
    return value
