"""Experiments by name: the built-in ones, path/to/file.py:name and package.module:name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from experiments.base import Experiment

# Built-in experiments, imported when they are asked for: name -> module, attribute, what it is.
BUILT_IN: dict[str, tuple[str, str, str]] = {
    "digits": ("experiments.digits", "digits", "scikit-learn's 8x8 digits, multilayer perceptron 64-300-100-10"),
    "mnist": ("experiments.idx", "mnist", "MNIST, LeNet-300-100"),
    "fashion-mnist": ("experiments.idx", "fashion_mnist", "Fashion-MNIST, LeNet-300-100"),
    "mnist-wrn": ("experiments.idx", "mnist_wrn", "MNIST, wide residual net of 12 layers"),
    "fashion-mnist-wrn": (
        "experiments.idx",
        "fashion_mnist_wrn",
        "Fashion-MNIST augmented, wide residual net of 18 layers",
    ),
    "cifar10": ("experiments.cifar", "cifar10", "CIFAR-10 augmented, WRN-22-2"),
    "cifar10-subset": (
        "experiments.cifar",
        "cifar10_subset",
        "a tenth of CIFAR-10 (not CIFAR-10), augmented, WRN-22-2",
    ),
    "tiny-imagenet": ("experiments.tiny_imagenet", "tiny_imagenet", "Tiny ImageNet augmented, WRN-22-4"),
    "uci-dna": ("experiments.uci", "dna", "UCI splice junctions, multilayer perceptron 240-1024-512-256-128-3"),
    "uci-mushroom": ("experiments.uci", "mushroom", "UCI Mushroom, multilayer perceptron 126-128-256-128-64-2"),
    "uci-climate": ("experiments.uci", "climate", "UCI climate crashes, multilayer perceptron 18-128-256-128-64-2"),
}


def find(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: for an unknown name, or a file or module that does not hold it; one line, in plain words.
    """
    if name in BUILT_IN:
        module, attribute, _ = BUILT_IN[name]
        return getattr(importlib.import_module(module), attribute)
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        known = ", ".join(BUILT_IN)
        raise ValueError(f"unknown experiment {name!r}: {known}, path/to/file.py:name or package.module:name")
    module_object = _from_file(Path(where)) if where.endswith(".py") else _from_package(where)
    found = getattr(module_object, attribute, None)
    if not isinstance(found, Experiment):
        has = sorted(key for key, value in vars(module_object).items() if isinstance(value, Experiment))
        raise ValueError(f"{where} has no experiment {attribute!r}: it has {', '.join(has) or 'none'}")
    return found


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"no file {path} to read an experiment from")
    name = f"experiment_file_{path.stem}"  # a file called random.py must not take that module's place
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {_one_line(error)}") from error
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"module {name} cannot be imported: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
