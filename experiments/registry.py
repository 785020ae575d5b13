"""Find experiments by name: a built-in name, path/to/file.py:name or package.module:name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import isfunction
from pathlib import Path
from types import ModuleType

from tune_sparsity.experiments.base import Experiment
from tune_sparsity.experiments.own.loop import own_loop
from tune_sparsity.experiments.user_code import OURS, described, is_users_own, place_of
from tune_sparsity.experiments.user_reads import watching

# Built-in experiments: name -> module, attribute, description. `find` imports their modules.
BUILT_IN: dict[str, tuple[str, str, str]] = {
    "digits": (
        "experiments.builtin.digits",
        "digits",
        "scikit-learn's 8x8 digits, multilayer perceptron 64-300-100-10",
    ),
    "mnist": ("experiments.builtin.mnist", "mnist", "MNIST, LeNet-300-100"),
    "mnist-lenet5": ("experiments.builtin.mnist", "mnist_lenet5", "MNIST, LeNet-5 as in Caffe"),
    "fashion-mnist": ("experiments.builtin.mnist", "fashion_mnist", "Fashion-MNIST, LeNet-300-100"),
    "mnist-wrn": ("experiments.builtin.mnist", "mnist_wrn", "MNIST, wide residual net of 12 layers"),
    "fashion-mnist-wrn": (
        "experiments.builtin.mnist",
        "fashion_mnist_wrn",
        "Fashion-MNIST augmented, wide residual net of 18 layers",
    ),
    "cifar10": ("experiments.builtin.cifar", "cifar10", "CIFAR-10 augmented, WRN-22-2"),
    "cifar10-subset": (
        "experiments.builtin.cifar",
        "cifar10_subset",
        "5,000 images of CIFAR-10 (not the whole), augmented, WRN-22-2",
    ),
    "tiny-imagenet": ("experiments.builtin.tiny_imagenet", "tiny_imagenet", "Tiny ImageNet augmented, WRN-22-4"),
    "uci-dna": ("experiments.builtin.uci", "dna", "UCI splice junctions, multilayer perceptron 240-1024-512-256-128-3"),
    "uci-mushroom": ("experiments.builtin.uci", "mushroom", "UCI Mushroom, multilayer perceptron 126-128-256-128-64-2"),
    "uci-climate": (
        "experiments.builtin.uci",
        "climate",
        "UCI climate crashes, multilayer perceptron 18-128-256-128-64-2",
    ),
    "digits-spiking": (
        "experiments.builtin.spiking",
        "digits_spiking",
        "the digits row by row, spiking network 8-64-64-10",
    ),
    "mnist-spiking": (
        "experiments.builtin.spiking",
        "mnist_spiking",
        "10,000 images of MNIST row by row, spiking network 28-128-128-10",
    ),
    "fashion-spiking": (
        "experiments.builtin.spiking",
        "fashion_spiking",
        "10,000 images of Fashion-MNIST row by row, spiking network 28-128-128-10",
    ),
    "dna-spiking": (
        "experiments.builtin.spiking",
        "dna_spiking",
        "UCI splice junctions place by place, spiking network 3-64-64-3",
    ),
}


PICKLED = ".pickle"
"""The suffix of files with an Experiment that was given to `tune` as an object, for example in a notebook."""

_homes: dict[str, tuple[Experiment, Path]] = {}  # name -> a user's experiment that was found, and its folder


class OldImport(ValueError):
    """Report that a user's file imports a part of tune_sparsity without the package name, such as `import experiments`.
    In earlier versions, the parts of tune_sparsity were imported in this way."""


def find(name: str) -> Experiment:
    """Return the experiment with this name.

    This function adds a folder at the end of sys.path, after the installed modules. For an experiment in a file, this
    is the file's folder, so that the file can import modules that lie beside it. For an experiment in a module, it is
    the current folder, because the module may lie there instead of being installed.

    Args:
        name: the name of a built-in experiment, path/to/file.py:name for an experiment in a file, or
            package.module:name for an experiment in a module.

    Raises:
        ValueError: if the name is unknown, if the file or module cannot be imported, or if it does not contain the
            experiment. The message is one line. For an error in the user's own code, it names the file and the line.
    """
    if name in BUILT_IN:
        module, attribute, _ = BUILT_IN[name]
        return getattr(importlib.import_module(f"tune_sparsity.{module}"), attribute)
    if name.endswith(".py"):
        raise ValueError(f"{name}: give the name of an experiment or loop in the file, as {name}:NAME")
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        known = ", ".join(BUILT_IN)
        raise ValueError(f"unknown experiment {name!r}: give {known}, path/to/file.py:name or package.module:name")
    if not has_source(name):
        return _unpickled(Path(where))
    module_object = _from_file(Path(where)) if where.endswith(".py") else _from_package(where)
    found = getattr(module_object, attribute, None)
    if isfunction(found):
        found = own_loop(found)
    if not isinstance(found, Experiment):
        has = sorted(key for key, value in vars(module_object).items() if isinstance(value, Experiment))
        kind = "class" if isinstance(found, type) else type(found).__name__
        but = f", but a {kind} of that name" if hasattr(module_object, attribute) else ""
        raise ValueError(f"{where} has no experiment {attribute!r}{but}: it has {', '.join(has) or 'none'}")
    file = getattr(module_object, "__file__", None)
    if file and is_users_own(file):
        _homes[name] = found, Path(file).resolve().parent
    return found


def has_source(name: str) -> bool:
    """Return whether an experiment has source code, judged by its name. An experiment that was given to `tune` as an
    object has no source code."""
    return not name.rpartition(":")[0].endswith(PICKLED)


def _unpickled(path: Path) -> Experiment:
    import cloudpickle

    import_from(Path.cwd())
    try:
        return cloudpickle.loads(path.read_bytes())
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {described(error)}. Call tune() again to write a new file") from error


def home_of(experiment: Experiment) -> Path | None:
    """Return the folder of the user's file that defines an experiment, or None if no user's file defines it."""
    return next((folder for found, folder in _homes.values() if found.origin is experiment.origin), None)


def module_name(path: Path) -> str:
    """Return the name in sys.modules for a user's file: a prefix and the file's name without .py. Because of the
    prefix, a file random.py cannot replace Python's module random."""
    return f"experiment_file_{path.stem}"


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path} with an experiment")
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.pop(name, None)  # so that a failed import leaves no earlier version of the module
    with _importing(str(path), path.parent):
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


def _from_package(name: str) -> ModuleType:
    with _importing(f"module {name}", Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _importing(what: str, folder: Path) -> Iterator[None]:
    """Return a context manager. Its block may import modules in `folder`. If an import fails, the context manager
    removes the user's modules that the block has imported, and raises ValueError. The message has one line and names
    the place of the error."""
    before = set(sys.modules)
    import_from(folder)
    try:
        with watching():
            yield
    except (Exception, SystemExit) as error:
        for name in set(sys.modules) - before:
            if is_users_own(getattr(sys.modules[name], "__file__", None)):
                del sys.modules[name]
        if (old := _old_name(error)) and (place := place_of(error)):
            told = f"{place} imports {old}, which is part of tune_sparsity now"
            raise OldImport(f"{told}: write `from tune_sparsity import ...`") from error
        hint = " (give a file of a package as package.module:name)" if "relative import" in str(error) else ""
        raise ValueError(f"{what} cannot be imported: {described(error)}{hint}") from error


def _old_name(error: BaseException) -> str:
    """Return the name of the missing module if the error is a failed import of a part of tune_sparsity without the
    package name. Otherwise return "". A user's own package with such a name does not count."""
    name = str(error.name or "") if isinstance(error, ImportError) else ""
    own = isinstance(error, ImportError) and is_users_own(error.path)
    return name if name.partition(".")[0] in OURS and not own else ""


_added: list[str] = []  # folders of users' own code that import_from has added to sys.path, the latest first


def import_from(folder: Path) -> None:
    """Add a folder at the end of sys.path, so that its modules can be imported. Installed modules come first.

    An experiment in another folder may already have imported modules that have the same names as modules in `folder`.
    This function removes these modules from sys.modules, so that each experiment gets its own modules.
    """
    path = str(folder.resolve())
    if path in sys.path and path not in _added:
        return
    others = [one for one in _added if one != path]
    for name, module in list(sys.modules.items()) if others else ():
        file = getattr(module, "__file__", None)
        top = folder / name.partition(".")[0]
        of_another = is_users_own(file) and str(file).startswith(tuple(f"{other}/" for other in others))
        if of_another and (top.is_dir() or Path(f"{top}.py").is_file()):
            del sys.modules[name]
    sys.path[:] = [*(one for one in sys.path if one not in _added), path, *others]
    _added[:] = [path, *others]
    importlib.invalidate_caches()  # the folder may have changed since Python listed it
