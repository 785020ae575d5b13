"""Check the network and the preparation of its inputs: seeds, evaluation mode, batches and devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tune_sparsity.experiments.base import evaluate, in_evaluation
from tune_sparsity.experiments.checks.shapes import kinds
from tune_sparsity.experiments.checks.suite import (
    Check,
    Problem,
    Subject,
    first_difference,
    not_checked,
    same,
    spread,
    warning,
)
from tune_sparsity.experiments.examples import copied, mapped, parts
from tune_sparsity.experiments.metrics import metric_of
from tune_sparsity.experiments.random_numbers import same_random_numbers
from tune_sparsity.experiments.user_code import described
from tune_sparsity.sparsity.torch_internals import TorchDispatchMode, tree_leaves

_SOME = 8  # examples


def seeded(subject: Subject) -> Iterator[Problem]:
    def state(seed: int, other: int) -> dict[str, Tensor]:
        with same_random_numbers(other):
            return {name: value.clone() for name, value in _tensors(subject.model(seed))}

    first = state(0, 0)
    if (name := first_difference(first, state(0, 1))) is not None:
        yield Problem(
            f"with the same torch seed, model() gives {name} other values: draw them only from torch's global "
            "generator, not from NumPy's or Python's, and do not use the time"
        )
    elif not subject.experiment.trained and first_difference(first, state(1, 0)) is None:
        yield warning("model() gives the same weights under every seed: trials do not differ in their initial weights")
    one, other = subject.model(), subject.model()
    if {id(param) for param in one.parameters()} & {id(param) for param in other.parameters()}:
        yield Problem("two calls of model() return the same network or shared parameters: make a new one in each call")


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor)]


def augments(subject: Subject) -> Iterator[Problem]:
    augment = subject.experiment.augment
    if augment is None:
        return
    x = subject.raw(_SOME).x

    def drawn(other: int) -> Any:
        with same_random_numbers(other):
            return augment(copied(x), Generator().manual_seed(0))

    first = drawn(0)
    if kinds(first) != kinds(x):
        yield Problem(f"augment returns {kinds(first)} for {kinds(x)}: it must keep the shape and the type")
    elif any(not same(first, drawn(other)) for other in (0, 1, 2)):
        yield Problem("augment does not repeat its result with the same seed: draw all numbers from the generator")


def prepares(subject: Subject) -> Iterator[Problem]:
    x = subject.raw(_SOME).x
    kept = copied(x)
    results = []
    for other in (0, 1):
        with same_random_numbers(other):
            results.append(copied(subject.experiment.prepare(x)))
        if not same(x, kept):
            yield Problem("prepare changes the data set's own inputs in place: let it return new tensors")
            return
    if not same(*results):
        yield Problem("prepare gives other values for the same inputs: move random changes into augment")


def evaluates(subject: Subject) -> Iterator[Problem]:
    model, x = subject.model(), subject.batch(_SOME)[0]
    model.eval()
    before = {name: value.clone() for name, value in _tensors(model)}
    outputs = []
    for other in (0, 1):
        with same_random_numbers(other), torch.no_grad():
            outputs.append(subject.experiment.forward(model, copied(x)).clone())
    evaluate(subject.experiment, model, spread(subject.data.val, _SOME))
    after = dict(_tensors(model))
    if new := [name for name in after if name not in before]:
        yield Problem(f"{new[0]} is made in the first forward pass, where no optimizer knows it: make it in __init__")
    elif (name := first_difference(before, after)) is not None:
        yield Problem(f"a forward pass in evaluation mode changes {name}: change it only if self.training is true")
    elif not same(*outputs):
        yield Problem(
            "in evaluation mode the same inputs give other outputs: use dropout and other noise only if self.training "
            "is true"
        )


def one_by_one(subject: Subject) -> Iterator[Problem]:
    model, x = in_evaluation(subject.model()), subject.batch(_SOME)[0]
    with torch.no_grad():
        forward = subject.experiment.forward
        together = forward(model, copied(x))
        try:
            alone = torch.cat([forward(model, one) for one in parts(x, 1)])
        except Exception as error:  # in the user's code
            yield Problem(f"the network cannot take a batch of one: {described(error)}")
            return
    if together.shape != alone.shape:
        yield Problem(
            f"a batch of one gives outputs of another shape: {tuple(alone.shape)}, not {tuple(together.shape)}"
        )
        return
    difference = float((together - alone).abs().max())
    if difference > _rounding(together, *model.parameters()) * float(together.abs().max()) + 1e-6:
        yield Problem(
            f"in evaluation mode an example's outputs differ by {difference:.2g} when its batch has other examples: "
            "do not use statistics of the batch in evaluation mode"
        )


def _rounding(*tensors: Tensor) -> float:
    """Return the largest relative difference between two sums of these types that rounding can cause."""
    dtypes = {one.dtype for one in tensors if one.is_floating_point() and one.itemsize > 1}
    return max([1e-3, *(8 * torch.finfo(dtype).eps for dtype in dtypes)])


class _OneDevice(TorchDispatchMode):
    """Raises _TwoDevices if an operation has tensors of two devices. The check uses the device "meta" instead of a GPU,
    so that the check works without a GPU. torch itself does not find all mistakes of this kind on "meta"."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if len({one.device.type for one in tensors if one.dim()}) > 1 and not _may_mix(str(func)):
            raise _TwoDevices
        return func(*args, **(kwargs or {}))


class _TwoDevices(Exception):
    pass


def _may_mix(operation: str) -> bool:
    return any(name in operation for name in ("copy", "aten.index", "aten._index", "aten.to."))


def moves(subject: Subject) -> Iterator[Problem]:
    x, y = mapped(lambda tensor: tensor.to("meta"), subject.raw(2))
    step = ""
    try:
        with _OneDevice():
            model = subject.model().to("meta")
            step = "prepare"
            inputs = subject.experiment.prepare(x)
            step = "the network"
            outputs = subject.experiment.forward(in_evaluation(model), inputs)
            step = "loss"
            subject.experiment.loss(outputs, y)
            metric = metric_of(subject.experiment.metric)
            # Other metrics cannot fail in this way: a function gets the outputs on the CPU, and a torchmetrics metric
            # is moved to the device of the outputs.
            if metric.each:
                step = "metric"
                metric.function(outputs, y)
    except _TwoDevices as error:
        where = described(error).partition("(")[2].rstrip(")")
        yield Problem(
            f"on a GPU {step} would mix tensors of two devices{f' ({where})' if where else ''}: keep tensors as "
            "buffers, layers in a ModuleList, and make new tensors on the device of the inputs"
        )
    except Exception as error:  # an operation that needs the values of its tensors
        yield not_checked(f"cannot be checked without a GPU: {described(error)}"[:200])


_FIT = ("experiment", "data", "network", "outputs")
CHECKS = (
    Check("seeds", "the same seed gives the same initial weights", seeded, ("experiment", "network")),
    Check(
        "augmentation", "augmentation draws random numbers only from its generator", augments, ("experiment", "data")
    ),
    Check("preparation", "preparation is not random, and does not change the data", prepares, _FIT),
    Check("evaluation", "a forward pass in evaluation mode changes nothing", evaluates, (*_FIT, "metric")),
    Check("batches", "an example's outputs do not depend on its batch", one_by_one, (*_FIT, "evaluation")),
    Check(
        "devices",
        "network, loss and metric can move to another device",
        moves,
        (*_FIT, "loss", "metric", "seeds", "evaluation"),
    ),
)
