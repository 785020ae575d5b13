"""Define the quick checks: the experiment's attributes are valid, its data and its network fit together, and there are
layers to prune."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from tune_sparsity.experiments.base import (
    Data,
    Experiment,
    NotFinite,
    Recipe,
    are_classes,
    correct,
    evaluate,
    in_evaluation,
)
from tune_sparsity.experiments.checks.suite import Check, Level, Problem, Subject, count, same, spread, warning
from tune_sparsity.experiments.examples import Loaded, Split, copied, length, mapped, tensors_in
from tune_sparsity.experiments.metrics import Metric, metric_of
from tune_sparsity.experiments.user_code import described
from tune_sparsity.sparsity import LayerRules, network_size, prunable_layers
from tune_sparsity.sparsity.methods.validation import OPTIMIZERS
from tune_sparsity.sparsity.wrappers import plain_state, unwrapped

_FEW = 4  # examples for a forward pass of the quick checks
_JUDGED = 256  # validation examples for a metric of a whole split
_EXAMPLE = 0.9  # the sparsity of the prunable weights in the message about the network's size
_SMALL = 8  # a last batch of at most so many examples is tried: batch normalisation may refuse a batch of one
_FUNCTIONS = ("load", "model", "loss", "prepare", "forward")


def well_formed(subject: Subject) -> Iterator[Problem]:
    experiment = subject.experiment
    if not isinstance(experiment, Experiment):
        yield Problem(f"this is a {type(experiment).__name__}: give a tune_sparsity.Experiment")
        return
    if not isinstance(experiment.name, str) or not experiment.name:
        yield Problem(f"its name is {experiment.name!r}: give a text")
    if not isinstance(experiment.recipe, Recipe):
        yield Problem(f"its recipe is a {type(experiment.recipe).__name__}: give Recipe(epochs=..., batch_size=...)")
    for name in _FUNCTIONS:
        value = getattr(experiment, name)
        if isinstance(value, nn.Module) and name == "model":
            yield Problem("its model is a network, which all trials would share: give the function that makes one")
        elif not callable(value):
            yield Problem(f"its {name} is a {type(value).__name__}: give a function")
    metric = experiment.metric.function if isinstance(experiment.metric, Metric) else experiment.metric
    if not callable(metric):
        yield Problem(f"its metric is a {type(metric).__name__}: give a function, a Metric or a metric of torchmetrics")
    if experiment.optimizer not in OPTIMIZERS:
        yield Problem(f"its optimizer is {experiment.optimizer!r}: give {' or '.join(map(repr, OPTIMIZERS))}")
    if isinstance(experiment.files, str) or not all(isinstance(name, str) for name in experiment.files):
        yield Problem("its files must be names in a tuple: files=('sizes.json',)")
    if not isinstance(experiment.layers, LayerRules):
        yield Problem(f"its layers are a {type(experiment.layers).__name__}: give tune_sparsity.LayerRules(...)")
    if experiment.augment is not None and not callable(experiment.augment):
        yield Problem(f"its augment is a {type(experiment.augment).__name__}: give a function, or None")


def loads(subject: Subject) -> Iterator[Problem]:
    data = subject.data
    if not isinstance(data, Data):
        yield Problem(f"load() returns a {type(data).__name__}: return tune_sparsity.Data(train, val, test)")
        return
    for name in ("train", "val", "test"):
        yield from _split(name, getattr(data, name))
    if not (isinstance(data.classes, tuple) and all(isinstance(one, str) for one in data.classes)):
        yield Problem("Data.classes must be a tuple of names: classes=('cat', 'dog')")
    try:
        json.dumps(data.preprocessing)
    except (TypeError, ValueError) as error:
        yield Problem(f"Data.preprocessing cannot be written as JSON ({error}): give numbers, texts and lists")


def _split(name: str, split: Any) -> Iterator[Problem]:
    if isinstance(split, Loaded):
        split.first(1)  # raises an error if the data set is faulty
        return
    if isinstance(split, Split) and (part := next((part for part in split if not tensors_in(part)), None)) is not None:
        yield Problem(f"the {name} split holds a {type(part).__name__}: give tensors, as torch.from_numpy makes them")
        return
    if not (isinstance(split, tuple) and len(split) == 2 and all(tensors_in(part) for part in split)):
        yield Problem(
            f"the {name} split is a {type(split).__name__}: give a torch data set, or Split(x, y), where x and y are "
            "tensors, or dicts, tuples or lists of tensors"
        )
        return
    x, y = split
    lengths = {len(tensor) if tensor.dim() else 0 for tensor in tensors_in(split)}
    if 0 in lengths:
        yield Problem(f"the {name} split is empty: x has the shape {shape_of(x)}, y {shape_of(y)}")
    elif length(x) != length(y):
        yield Problem(
            f"the {name} split has {count(length(x), 'input')} and {count(length(y), 'target')}: give equal numbers"
        )
    elif len(lengths) > 1:
        yield Problem(
            f"the tensors of the {name} split differ in their number of examples: {shape_of(x)}, {shape_of(y)}"
        )
    for part, nest in (("x", x), ("y", y)):
        try:
            mapped(Tensor.numpy, nest)
        except (TypeError, RuntimeError) as error:
            yield Problem(f"{part} of the {name} split must be a plain tensor on the CPU that NumPy can read: {error}")


def finite(subject: Subject) -> Iterator[Problem]:
    for name in ("train", "val", "test"):
        parts = zip("xy", subject.seen(name), strict=True)
        for part, tensor in ((part, tensor) for part, nest in parts for tensor in tensors_in(nest)):
            if _all_finite(tensor):
                continue
            bad = int((~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).sum())
            where = f"{part} of the {name} split has NaN or infinite numbers in {count(bad, 'example')}"
            yield Problem(f"{where} of {len(tensor):,}: leave these examples out, or replace the numbers")


def _all_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite. For floats, the function does not allocate a second tensor of this size,
    since data may be large."""
    if not tensor.is_floating_point() or not tensor.numel():
        return not tensor.is_complex() or bool(torch.isfinite(tensor).all())
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def builds(subject: Subject) -> Iterator[Problem]:
    made = subject.experiment.model()
    if not isinstance(made, nn.Module):
        yield Problem(f"model() returns a {type(made).__name__}: return a torch.nn.Module")
        return
    model = unwrapped(made)
    if isinstance(model, torch.jit.ScriptModule):
        yield Problem(
            "model() returns TorchScript, whose layers cannot be seen: give the nn.Module that it was made from"
        )
        return
    lazy = [name for name, param in model.named_parameters() if isinstance(param, UninitializedParameter)]
    if lazy:
        yield Problem(f"{lazy[0]} belongs to a lazy layer, which has no weights yet: give the layer its sizes")
        return
    state = model.state_dict()
    if empty := [name for name, value in state.items() if isinstance(value, Tensor) and value.is_meta]:
        yield Problem(f"{empty[0]} lies on the device meta, where it has no numbers: make or load it on the CPU")
        return
    if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        yield Problem(
            f"{other[0]} of the network's state_dict is a {type(state[other[0]]).__name__}, and files hold only "
            "tensors: make it a buffer (register_buffer), or let get_extra_state return a tensor"
        )
        return
    names = [name for name in state if name.endswith(".mask")]
    if names:
        yield Problem(f"the name {names[0]} ends in .mask, as the names of masks in written files do: rename it")


def prunes(subject: Subject) -> Iterator[Problem]:
    model, rules = subject.model(), subject.experiment.layers
    try:
        size = network_size(model, rules)
    except ValueError as error:
        yield Problem(str(error))
        return
    state = plain_state(model)
    if lost := [layer.name for layer in prunable_layers(model, rules) if layer.name not in state]:
        yield Problem(
            f"{lost[0]} is not in the network's state_dict under this name, so files with the weights would lack it"
        )
        return
    pruned = _EXAMPLE * size.prunable
    shares = f"{pruned / size.matrices:.1%} of all weight matrices and {pruned / size.parameters:.1%} of all parameters"
    text = f"{_EXAMPLE:.0%} of the prunable weights are {shares}"
    if size.dense:
        text += f"; these weight matrices stay dense: {size.dense_text()}"
    if size.prunable < size.parameters / 2:
        share = size.prunable / size.parameters
        few = f"only {share:.0%} of the parameters are prunable weights: the target sparsity counts only these weights"
        yield warning(f"{few}; {text}")
    elif any(one.reason != "by a rule" for one in size.dense):
        yield warning(text)
    else:
        yield Problem(text, Level.OK)


def gives_outputs(subject: Subject) -> Iterator[Problem]:
    x = subject.raw(_FEW).x
    inputs = subject.experiment.prepare(x)
    kept = copied(x)
    if not tensors_in(inputs) or length(inputs) != length(x):
        yield Problem(f"prepare returns {_shape(inputs)} for {_shape(x)}: it must keep the number of examples")
        return
    try:
        with torch.no_grad():
            outputs = subject.experiment.forward(in_evaluation(subject.model()), inputs)
    except Exception as error:  # in the user's code
        yield Problem(f"the network cannot take inputs of {_shape(inputs)}: {described(error)}{_hint(inputs)}")
        return
    if not same(x, kept):
        yield Problem(
            "the network changes the data set's own inputs in place: avoid inplace=True in its first layer, or clone() "
            "the inputs in prepare"
        )
    if not isinstance(outputs, Tensor):
        yield Problem(
            f"the network returns a {type(outputs).__name__}: give Experiment(forward=...), a function that returns "
            "the outputs of a batch as one tensor"
        )
    elif not outputs.dim() or len(outputs) != length(inputs):
        yield Problem(f"the network returns {_shape(outputs)} for {_shape(inputs)}: the first dimension must stay")
    elif not torch.isfinite(outputs).all():
        yield Problem("the new network's outputs are NaN or infinite: check its initial weights and the inputs")


def shape_of(nest: Any) -> str:
    """Return the shape of a tensor as text, such as "(4, 10)". For a dict of tensors, return a text such as "{'a': (4,
    10)}", and similarly for a tuple."""
    return str(mapped(lambda tensor: tuple(tensor.shape), nest))


def kinds(nest: Any) -> str:
    """Return the type and the shape of a tensor as text, such as "float32 (4, 10)". For a dict of tensors, return a
    text such as "{'a': 'float32 (4, 10)'}", and similarly for a tuple."""
    return str(mapped(lambda one: f"{str(one.dtype).removeprefix('torch.')} {tuple(one.shape)}", nest))


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return kinds(value)
    return f"a {type(value).__name__} {shape_of(value)}" if tensors_in(value) else f"a {type(value).__name__}"


def _hint(inputs: Any) -> str:
    if not isinstance(inputs, Tensor) or inputs.dtype is torch.float32:
        return ""
    return " (most networks take float32: convert in load or in prepare)"


def gives_a_loss(subject: Subject) -> Iterator[Problem]:
    (x, y), experiment = subject.batch(_FEW), subject.experiment
    outputs = experiment.forward(in_evaluation(subject.model()), x)
    try:
        loss = experiment.loss(outputs, y)
    except Exception as error:  # in the user's function, or because of shapes
        yield Problem(f"loss cannot take outputs of {_shape(outputs)} and targets of {_shape(y)}: {described(error)}")
        return
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        yield Problem(f"loss returns {_shape(loss)}: return one number, such as the mean over the examples")
    elif not loss.requires_grad:
        yield Problem("the loss has no gradient: avoid detach(), item() and argmax() between the outputs and the loss")
    elif not torch.isfinite(loss):
        yield Problem(f"the new network's loss is {loss.item()}: check the inputs, the targets and the loss")


def gives_scores(subject: Subject) -> Iterator[Problem]:
    try:
        metric = metric_of(subject.experiment.metric)
    except ValueError as error:
        yield Problem(str(error))
        return
    yield from _scores(subject, metric) if metric.each else _value(subject, metric)


def _scores(subject: Subject, metric: Metric) -> Iterator[Problem]:
    """Yield the problems of a metric that returns a score for each example."""
    x, y = subject.batch(_FEW)
    with torch.no_grad():
        outputs = subject.experiment.forward(in_evaluation(subject.model()), x)
        try:
            scores = metric.function(outputs, y)
        except Exception as error:  # in the user's function, or because of shapes
            shapes = f"outputs of {_shape(outputs)} and targets of {_shape(y)}"
            yield Problem(f"metric cannot take {shapes}: {described(error)}")
            return
    if not isinstance(scores, Tensor) or scores.shape != (length(y),):
        given = f"metric returns {_shape(scores)} for {count(length(y), 'example')}"
        yield Problem(f"{given}: return one score for each example, not their mean, or give a tune_sparsity.Metric")
    elif metric.percent and not ((scores >= 0) & (scores <= 1)).all():
        worst = scores[~((scores >= 0) & (scores <= 1))][0].item()
        yield Problem(f"metric gives a score of {worst:g}: a score must lie in [0, 1], and 1 must be the best")


def _value(subject: Subject, metric: Metric) -> Iterator[Problem]:
    """Yield the problems of a metric that returns one number for a whole split."""
    model, val = subject.model(), spread(subject.data.val, _JUDGED)
    try:
        first, second = (evaluate(subject.experiment, model, val) for _ in range(2))
    except NotFinite as error:
        yield Problem(f"{error}, on {count(len(val.x), 'validation example')}: it must be a finite number")
        return
    except Exception as error:  # in the user's code
        yield Problem(f"{metric.name} cannot be measured on {len(val.x)} validation examples: {described(error)}")
        return
    if first != second:
        yield Problem(
            f"{metric.name} is not deterministic: {first:g}, then {second:g} for the same outputs and targets"
        )


def fits_labels(subject: Subject) -> Iterator[Problem]:
    data = subject.data
    if not is_classification(subject):
        return
    logits = subject.outputs(subject.model(), _FEW).shape[1]
    if logits == 1:
        yield Problem("the network has one output, whose softmax is always 1: give one output for each class")
    for name in ("train", "val", "test"):
        labels = subject.seen(name).y
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits:
            given = f"{low}..{high}"
            yield Problem(
                f"the {name} split has labels {given}, and the network {logits} outputs: labels must be 0..{logits - 1}"
            )
    if data.classes and len(data.classes) != logits:
        yield Problem(
            f"Data.classes has {count(len(data.classes), 'name')}, and the network {logits} outputs: make both equal"
        )


def takes_the_last_batch(subject: Subject) -> Iterator[Problem]:
    """Yield a problem if the network cannot train on the last batch of an epoch. Batch normalisation, for example,
    cannot train on one example."""
    examples, recipe = subject.data.train.examples, subject.experiment.recipe
    size = recipe.batch_size
    if not recipe.trained_on(examples):
        yield Problem(f"drop_last skips all {count(examples, 'example')}: take a batch_size of at most {examples}")
        return
    left = recipe.trained_on(examples) % size or min(size, examples)
    if left > _SMALL:
        return
    model = subject.model()
    try:
        model.train()
        subject.experiment.forward(model, subject.batch(left)[0])
    except Exception as error:  # in the user's code
        remedy = (
            "give drop_last=True in the recipe, or another batch_size" if left < size else "take a larger batch_size"
        )
        yield Problem(
            f"the last batch of an epoch has {count(left, 'example')} ({examples:,} examples in batches of {size}), "
            f"which the network cannot train on: {remedy}: {described(error)}"
        )


def is_classification(subject: Subject) -> bool:
    """Return whether the experiment is a classification: outputs and targets have the shapes of logits and class
    indices, and in addition the loss is F.cross_entropy or the metric is `correct`."""
    experiment, y = subject.experiment, subject.raw(_FEW).y
    loss = experiment.loss
    while isinstance(loss, partial):
        loss = loss.func
    by_class = loss is F.cross_entropy or experiment.metric is correct
    outputs = subject.outputs(subject.model(), _FEW)
    return by_class and are_classes(outputs, y)


FIT = ("experiment", "data", "network", "outputs")
PRUNABLE = Check("prunable", "there are layers to prune", prunes, ("experiment", "network"), True)
CHECKS = (
    Check("experiment", "it is an Experiment, and its attributes have the right types", well_formed, quick=True),
    Check("data", "the data can be loaded: three splits, with as many targets as inputs", loads, ("experiment",), True),
    Check("values", "no number in the data is NaN or infinite", finite, ("data",), True),
    Check("network", "model() makes a network", builds, ("experiment",), True),
    PRUNABLE,
    Check("outputs", "the network takes inputs, and gives one output for each example", gives_outputs, FIT[:3], True),
    Check("labels", "the network has an output for every label", fits_labels, FIT, True),
    Check("loss", "the loss is one number with a gradient", gives_a_loss, (*FIT, "labels"), True),
    Check("metric", "the metric is one score for each example, or one number for all", gives_scores, FIT, True),
    Check("remainder", "the network can train on an epoch's last batch", takes_the_last_batch, FIT, True),
)
