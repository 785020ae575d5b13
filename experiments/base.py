"""Define the classes of an experiment: `Experiment`, its `Data` and its `Recipe` (the default training settings)."""

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
    """Report that the data set is not on this machine or is damaged, and cannot be downloaded. The message is one line
    that tells the user what to do."""


class NotFinite(Exception):
    """Report that a weight, the loss, an output or the metric is NaN or infinite. The training ends with this error."""


@dataclass(frozen=True)
class Data:
    """Holds the three splits of a data set: training, validation and test examples.

    Each split is either a `Split`, which holds tensors in memory, or a torch data set. A torch data set is map-style,
    or an IterableDataset that has a length. If the splits are torch data sets, every training process calls
    `Experiment.load` itself.

    Attributes:
        train: the examples for the training.
        val: the validation examples. The search compares networks by the metric on these examples.
        test: the test examples. The search does not use them. Each reported network is tested with them once.
        preprocessing: a description of the changes that were made to the raw inputs, for users of the exported network.
            It contains only types that JSON has.
        classes: the names of the classes, in the order of the logits. It is empty if there are no classes.
        collate: makes (inputs, targets) from a list of examples. It applies to torch data sets only. The default is
            torch's default_collate.
        workers: the number of processes that load examples for each training. It applies to torch data sets only. With
            0, the training process loads them.
    """

    train: Any  # a Split or a Loaded: __post_init__ wraps a data set in a Loaded
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
        """Return the SHA-256 checksum of the bytes, shapes and types of all splits. It depends on the order of the
        examples. For a torch data set, it covers only the length and a sample of the examples."""
        digest = hashlib.sha256()
        for split in (self.train, self.val, self.test):
            split.add_to(digest)
        return digest.hexdigest()


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 for each example that the network classifies correctly, and 0 for the others.

    Args:
        outputs: logits of the shape (n, classes).
        targets: class indices of the shape (n,).

    Returns:
        A float32 tensor of the shape (n,). Its mean is the accuracy.
    """
    return (outputs.argmax(dim=1) == targets).float()


def are_classes(outputs: Tensor, targets: Any) -> bool:
    """Return whether the shapes and types are those of a classification: outputs (n, classes), and targets (n,) that
    are not floats."""
    labels = isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point()
    return labels and outputs.dim() == 2


def unchanged(x: Any) -> Any:
    return x


PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Recipe:
    """Holds the default settings of a training.

    Attributes:
        epochs: passes over the training data, at least 1.
        batch_size: examples in a forward pass, at least 1.
        drop_last: whether an epoch skips its last batch if this batch has fewer than `batch_size` examples. Networks
            with batch normalisation need this if the last batch has only one example. The order of the examples is
            random, so each epoch skips other examples.
        accumulate: the number of batches whose gradients are averaged for one optimizer step, at least 1.
        clip_norm: the largest L2 norm of all gradients together, > 0. Larger gradients are scaled down to this norm
            before a step. If None, the gradients are not clipped. With the method lpss, clipping has little effect on
            weights on the sphere, because the length of their steps does not depend on the gradient's norm.
        precision: "float32", "bfloat16" or "float16". With "bfloat16" and "float16", the forward pass and the loss run
            in torch.autocast. With "float16", a GradScaler also scales the loss, and skips steps with infinite
            gradients. The evaluation always uses the type of the weights.

    Raises:
        ValueError: if a setting is out of range.
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
        """Return the number of examples that an epoch uses, for a training split of `examples` examples."""
        return examples - examples % self.batch_size if self.drop_last else examples

    def batches(self, examples: int) -> int:
        """Return the number of batches in an epoch, for a training split of `examples` examples."""
        return -(-self.trained_on(examples) // self.batch_size)

    def steps(self, examples: int) -> int:
        """Return the number of optimizer steps in an epoch, for a training split of `examples` examples."""
        return -(-self.batches(examples) // self.accumulate)


@dataclass(frozen=True)
class Experiment:
    """Describes a data set, a network and the network's training. Built-in experiments and users' own experiments are
    instances of this class.

    Attributes:
        name: the name of the experiment in files and in MLflow.
        load: (folder) -> the data. The folder is the value of --data-dir, or None for the default folder. The function
            raises DataUnavailable if the data cannot be found or downloaded.
        model: () -> a new network. The function draws the weights from torch's global generator, which the caller
            seeds.
        recipe: the default epochs, batch size and other settings of the training.
        forward: (network, inputs from `prepare`) -> the outputs, one tensor of the shape (examples, ...). By default,
            the network is called with the inputs. If the inputs are a dict, its entries are keyword arguments.
        optimizer: "sgd" or "adamw". This optimizer updates all parameters or, with the method lpss, all parameters
            except the weights on the sphere, which LpSGD updates. With "adamw", a study uses search ranges that suit
            AdamW, as `--space lpss+adamw` does.
        loss: (outputs, targets) -> a scalar to minimise.
        metric: (outputs, targets) -> a score in [0, 1] for every example. The mean of the scores is called accuracy. In
            place of this function, you may give a Metric, which has its own name and direction, or a torchmetrics
            metric.
        prepare: (inputs of the data set) -> inputs of the network. The function is called for every batch, on the
            batch's device, in training and in evaluation. Large images can therefore be stored as bytes.
        augment: (inputs, generator on the CPU) -> randomly changed inputs of the same shapes and types. This function
            is called only for training batches, on their device and before `prepare`. It must draw all random numbers
            from the generator. Otherwise a resumed training gives other results. If None, inputs are not changed.
        layers: rules that select the layers to prune and the layers on the sphere.
        cuda_graph: whether a training step on a GPU may be recorded once as a CUDA graph and then replayed. Small
            networks then train several times faster. `prepare`, the network and `loss` must do the same operations in
            every step, because a replay does not run their Python code again. Random numbers of Python and of torch on
            the CPU are therefore the same in every step. Random numbers of torch on the GPU are new in each step. No
            operation may wait for the GPU, as `.item()` does.
        space: the name or .yaml file of a search space that suits this data better than the default space. A study of
            this space's method uses it if the user does not give another space. Studies of other methods use their own
            default spaces. None means the default space for all methods.
        trained: whether `model` returns a pretrained network. If True, the methods static, set, rigl and
            sparse-momentum begin with the largest weights of the network, and the method lpss begins without a mask.
        files: the data files that the experiment's code reads. Workers on other machines and the model in MLflow get
            copies of these files. Each entry is a file, a folder or a glob pattern, relative to the folder of the
            experiment's own file. Imported modules need no entry.
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
        """Return the object of the user's code from which this experiment comes. This is the experiment itself, or
        another object if the experiment is a changed copy, for example because of the option --pattern."""
        return getattr(self, "_origin", self)

    @property
    def travelling(self) -> Mapping[str, Any]:
        """Return a dict of the attributes that may have other values than in the user's code. Worker processes get the
        code and this dict."""
        return {} if self.origin is self else {"layers": self.layers}

    def with_pattern(self, pattern: Pattern) -> Experiment:
        """Return a copy of the experiment with another pattern of zeros for its weights."""
        return self.with_layers(replace(self.layers, pattern=pattern))

    def with_layers(self, layers: LayerRules) -> Experiment:
        """Return a copy of the experiment with other rules for the layers to prune."""
        made = replace(self, layers=layers)
        object.__setattr__(made, "_origin", self.origin)
        return made

    @property
    def metric_name(self) -> str:
        return metric_of(self.metric).name

    def validated(self, model: nn.Module, data: Data) -> float | None:
        """Return the metric on the validation data, or None if only the user's own training loop can measure it. Raise
        NotFinite if the metric is not finite."""
        return evaluate(self, model, data.val)

    def tested(self, model: nn.Module, data: Data) -> float | None:
        """Return the metric on the test data, or None if a user's own training loop has no function that measures it.
        Raise NotFinite if the metric is not finite."""
        return evaluate(self, model, data.test)

    def outputs(self, model: nn.Module, x: Any) -> Tensor:
        """Convert inputs of the data set with `prepare`, and return the network's outputs for them."""
        return self.forward(model, self.prepare(x))

    def network(self) -> nn.Module:
        """Return a new network. If `model` wraps it with torch.compile or DataParallel, the wrapper is removed."""
        return unwrapped(self.model())

    def network_with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return a new network with the given weights, in evaluation mode.

        Args:
            tensors: the state_dict. If its weights come from the method "binary", the new network first gets this
                method's layers with weights of one bit.

        Raises:
            RuntimeError: if load_state_dict refuses the weights.
        """
        network = self.network()
        as_stored(network, tensors)
        load_plain(network, tensors)
        return in_evaluation(network)


def in_evaluation(model: nn.Module) -> nn.Module:
    """Set the network to evaluation mode, and return the network. Use this function instead of the result of `eval()`,
    which is None if a user's network overrides `train()` without returning the network."""
    model.eval()
    return model


def outputs_of(
    experiment: Experiment, model: nn.Module, split: Split | Loaded, batch: int | None = None
) -> Iterator[tuple[Tensor, Any]]:
    """Yield the network's outputs and the targets of a split, batch by batch.

    The network computes on its own device and in evaluation mode. Afterwards, its former mode is restored.

    Args:
        split: examples in memory (class Split), or a data set that a DataLoader loads (class Loaded).
        batch: the number of examples in a batch. If None, the number depends on the class of `split`. For Split it is
            4096, or less if the inputs are large. For Loaded it is `experiment.recipe.batch_size`.
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
    """Return the experiment's metric of a network on a split. The arguments are those of `outputs_of`.

    Raises:
        NotFinite: if an output is NaN, or if the metric is NaN or infinite.
        ValueError: if the metric has `percent` and is outside [0, 1].
    """
    device = next((param.device for param in model.parameters()), torch.device("cpu"))
    metric = metric_of(experiment.metric)
    scorer, unknown = Scorer(metric, device), list[Tensor]()
    for outputs, y in outputs_of(experiment, model, split, batch):
        scorer.add(outputs, y)
        unknown.append(outputs.isnan().reshape(len(outputs), -1).any(1))
    if bad := int(torch.cat(unknown).sum()):
        raise NotFinite(f"the network's outputs are NaN for {bad} of {split.examples} examples")
    return checked(metric, scorer.value())


def checked(metric: Metric, value: float) -> float:
    """Return a measured value of a metric.

    Raises:
        NotFinite: if the value is NaN or infinite.
        ValueError: if the metric has `percent` and the value is outside [0, 1].
    """
    if not math.isfinite(value):
        raise NotFinite(f"the metric {metric.name} is {value}")
    metric.check_range(value)
    return value
