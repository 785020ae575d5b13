"""A user's code on its way to Ray's workers, which may run on machines that have never seen it.

What travels with an experiment that is neither built in nor installed: the files of its code, and where Python can
pickle it, the experiment by value. A worker that has the same files (it runs on the same machine, or shares its
folders) takes the value: nothing of the user's file is run again, and data that it reads at its top level is not read
again by each worker. On another machine the files are unpacked, once, and the experiment is imported from there: then
`__file__` is right there too. Where that fails, the value serves.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ray import cloudpickle

from tune_sparsity.experiments import Experiment, Metric, OwnLoop, find
from tune_sparsity.experiments.registry import import_from, module_name
from tune_sparsity.experiments.user_code import is_users_own
from tune_sparsity.experiments.user_files import Code, code_of
from tune_sparsity.tuner.study.layout import PACKED_CSV
from tune_sparsity.tuner.system.files import write_atomically


def unpack(code: Code | None, value: bytes | None, found_out: Mapping[str, Any] | None = None) -> Experiment:
    """Return the experiment, on a worker. Raises ValueError with one line when its code cannot be imported here.

    Args:
        found_out: attributes that its code does not tell.
    """
    if code is None:
        assert value is not None
        return cloudpickle.loads(value)
    here = code.is_here()
    folder = code.folder()
    import_from(folder)
    if here and value is not None:
        return cloudpickle.loads(value)
    try:
        found = find(f"{folder}/{code.name}" if code.name.partition(":")[0].endswith(".py") else code.name)
        return replace(found, **(found_out or {}))
    except ValueError:
        if value is None:
            raise
        return cloudpickle.loads(value)


class Parcel:
    """What an experiment is pickled as: unpickled, it is the experiment itself.

    Args:
        experiment: any.
        name: the value of --experiment that it was found by, with an absolute path if it is a file's; "" if it was
            made otherwise.
        loads: whether it is to load data there; else its loader stays behind.
    """

    def __init__(self, experiment: Experiment, name: str = "", *, loads: bool = False) -> None:
        self._code = code_of(experiment, name)
        self._found_out = dict(experiment.travelling)
        self._value = by_value(experiment, alone=self._code is None, loads=loads)
        if self._code is None and self._value is None:
            cloudpickle.dumps(experiment)  # for its error

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (self._code, self._value, self._found_out)


def write_packed(folder: Path, experiment: Experiment, name: str) -> None:
    """Write into the study's folder which files of the user's own go to the workers and into the logged model, with
    their bytes; nothing where none do."""
    code = code_of(experiment, name)
    if code is not None:
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerows([("file", "bytes"), *((path, len(content)) for path, content in code.files.items())])
        write_atomically(folder / PACKED_CSV, rows.getvalue())


def by_value(experiment: Experiment, *, alone: bool = False, loads: bool = False) -> bytes | None:
    """Return the experiment's pickle, with the code of a user's own modules in it; None where Python cannot pickle it.

    Args:
        alone: no files go with it: all the modules of the experiment's functions must be in it, and not only the file
            that was given, which no worker can import under its name.
        loads: whether the data's loader comes with it.
    """
    travels = experiment if loads else replace(experiment, load=_only_the_driver_loads)
    if isinstance(travels, OwnLoop):  # its own loop makes the network
        travels = replace(travels, model=_the_loop_makes_it)
    modules = [module for module in _modules(travels) if alone or module.__name__ == _name_of_file(module)]
    try:
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        return cloudpickle.dumps(travels)
    except Exception:  # whatever a user's objects raise when they are pickled
        return None
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _only_the_driver_loads(data_dir: Path | None) -> Any:
    raise RuntimeError("a worker has the data from the driver, and does not load it")


def _the_loop_makes_it() -> Any:
    raise RuntimeError("a worker has the network from the loop")


def _modules(experiment: Experiment) -> list[ModuleType]:
    """Return the modules of the user's own that hold the experiment's functions, each once."""
    names = []
    for field in fields(experiment):
        part = getattr(experiment, field.name)
        part = part.function if isinstance(part, Metric) else part
        while isinstance(part, partial):
            part = part.func
        names.append(getattr(part, "__module__", None) or type(part).__module__)
    modules = [sys.modules[name] for name in dict.fromkeys(names) if name in sys.modules and name != "__main__"]
    return [module for module in modules if is_users_own(getattr(module, "__file__", None))]


def _name_of_file(module: ModuleType) -> str:
    return module_name(Path(str(module.__file__)))
