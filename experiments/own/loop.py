"""Convert a user's own training loop to an experiment."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune_sparsity.experiments.base import Data, Experiment, Recipe, checked
from tune_sparsity.experiments.examples import tensors_in
from tune_sparsity.experiments.metrics import Metric, metric_of
from tune_sparsity.sparsity.layers import LayerRules
from tune_sparsity.sparsity.methods.validation import OPTIMIZERS

ATTRIBUTES = ("baseline", "files", "layers", "metric", "model", "optimizer", "space", "test", "trained")
_POSITIONAL = "input_{}"  # the name of a positional argument, with its place


def _no_model() -> nn.Module:
    raise RuntimeError("the loop's network cannot be made: set the loop's attribute model to a function that makes it")


def _no_data(data_dir: Path | None) -> Data:
    raise RuntimeError("a user's training loop loads its data itself")


@dataclass(frozen=True)
class OwnLoop(Experiment):
    """Describes an experiment that consists of a user's own training loop.

    Attributes:
        loop: the training function. Its argument is a Trial.
        tests: (network, data_dir) -> the metric on the test data. The function is called once for each network whose
            test metric the study reports. If None, the test metric is not measured.
        rebuilt: whether `model` is a function that the user gave. Such a function makes the network in any process. If
            False, `model` copies the network that the loop made when the function `looked_at` ran the loop. This
            `model` works only in the process that called `looked_at`.
        baseline: the metric of an untrained network. If the metric has no known worst value, a study measures the
            hypervolume of its front from this value. For other metrics, the value may be None.
        data_dir: the folder that --data-dir gives, or None.
    """

    loop: Callable[[Any], object] | None = None
    tests: Callable[[nn.Module, Path | None], float] | None = None
    rebuilt: bool = False
    baseline: float | None = None
    data_dir: Path | None = None

    @property
    def origin(self) -> Any:
        return self.loop

    @property
    def travelling(self) -> Mapping[str, Any]:
        return {"recipe": self.recipe, "layers": self.layers, "data_dir": self.data_dir}

    def validated(self, model: nn.Module, data: Data) -> float | None:
        return None

    def tested(self, model: nn.Module, data: Data) -> float | None:
        """Return the metric on the test data, or None if the loop has no `test` function. The errors are those of
        `checked`."""
        if self.tests is None:
            return None
        model.eval()
        with torch.no_grad():
            return checked(metric_of(self.metric), float(self.tests(model, self.data_dir)))


def own_loop(function: Callable[..., object]) -> OwnLoop:
    """Convert a user's training function to an experiment.

    Args:
        function: the training loop. Its only argument is a Trial. It may have the attributes model, test, metric,
            baseline, layers, trained, optimizer, space and files, which are the settings of the experiment.

    Raises:
        ValueError: if the function is async or a generator, does not take exactly one argument, or has an unknown or
            wrong attribute.
    """
    name = function.__name__
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ValueError(f"{name} is no training loop: a loop is a function without `async` and `yield`")
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise ValueError(f"{name} is no training loop: a loop takes one argument, the trial") from None
    given = {key: value for key, value in vars(function).items() if not key.startswith("_")}
    if unknown := sorted(set(given) - set(ATTRIBUTES)):
        raise ValueError(
            f"the loop {name} has an unknown attribute {unknown[0]!r}: it may have {', '.join(ATTRIBUTES)}"
        )
    metric = given.pop("metric", Metric("accuracy", percent=True))
    if not isinstance(metric, Metric):
        raise ValueError(f'{name}.metric must be a Metric, for example Metric("rmse", maximize=False), got {metric!r}')
    for key in ("model", "test"):
        if key in given and not callable(given[key]):
            raise ValueError(f"{name}.{key} must be a function, got {given[key]!r}")
    if (optimizer := given.get("optimizer", OPTIMIZERS[0])) not in OPTIMIZERS:
        accepted = " or ".join(f'"{one}"' for one in OPTIMIZERS)
        raise ValueError(f"{name}.optimizer must be {accepted}, got {optimizer!r}")
    if not isinstance(given.get("layers", LayerRules()), LayerRules):
        raise ValueError(f"{name}.layers must be a LayerRules, got {given['layers']!r}")
    baseline = given.pop("baseline", None)
    if baseline is not None and not (isinstance(baseline, int | float) and math.isfinite(baseline)):
        raise ValueError(f"{name}.baseline must be a finite number, got {baseline!r}")
    return OwnLoop(
        name=name,
        load=_no_data,
        model=given.pop("model", _no_model),
        recipe=Recipe(epochs=1, batch_size=1),
        metric=metric,
        forward=answer,
        loop=function,
        tests=given.pop("test", None),
        rebuilt="model" in vars(function),
        baseline=baseline,
        **given,
    )


def as_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Convert the arguments of a network's call to one nested structure of tensors. `call` calls a network with this
    structure.

    Keyword arguments are kept only if they hold tensors, and if the first dimension of each tensor is the number of
    examples. Other keyword arguments are left out. If only one positional argument remains, and it is not a mapping,
    this function returns it unchanged. Otherwise the remaining arguments become a dict.
    """
    examples = [len(one) for one in tensors_in([args, dict(kwargs)]) if one.ndim]
    with_tensors = {
        name: value
        for name, value in kwargs.items()
        if tensors_in(value) and all(one.ndim and len(one) == examples[0] for one in tensors_in(value))
    }
    if len(args) == 1 and not with_tensors and not isinstance(args[0], Mapping):
        return args[0]
    return {**{_POSITIONAL.format(place): value for place, value in enumerate(args)}, **with_tensors}


def call(model: nn.Module, x: Any) -> Any:
    """Call the network with inputs from `as_inputs`, and return its result."""
    if not isinstance(x, Mapping):
        return model(x)
    places = [name for place, name in enumerate(x) if name == _POSITIONAL.format(place)]
    return model(*(x[name] for name in places), **{name: value for name, value in x.items() if name not in places})


def answer(model: nn.Module, x: Any) -> Tensor:
    """Call the network with inputs from `as_inputs`, and return its outputs as one tensor."""
    return one_tensor(call(model, x))


def one_tensor(outputs: Any) -> Tensor:
    """Return one tensor from a network's result: the attribute `logits`, or else the first tensor with at least one
    dimension. Raise ValueError if the result holds no tensor."""
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    found = tensors_in(outputs)
    if not found:
        raise ValueError(f"the network's result, a {type(outputs).__name__}, holds no tensor")
    return next((tensor for tensor in found if tensor.ndim), found[0])
