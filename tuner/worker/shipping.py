"""Sends a user's experiment to Ray's workers, which may run on machines without the user's files.

An experiment that is neither built in nor installed is sent in two forms: as its source files, and as a pickle that
contains the code of the file of --experiment. If Python cannot pickle the experiment, there is no pickle. If the same
source files are on the worker's machine, the worker loads the pickle. It does not run the file of --experiment, so data
that this file reads at its top level are not read again. On another machine, the source files are unpacked once, and
the experiment is imported from them. The variable `__file__` of these modules is then the path of the unpacked file. If
this import fails, the worker loads the pickle.
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
    """Return the experiment from its two forms. This function runs in the worker.

    Args:
        code: the files of the experiment's code, from `code_of`; None if there are no files to send.
        value: the experiment's pickle; None if Python cannot pickle it.
        found_out: the attributes of the experiment whose values may differ from those in the user's code, as a dict
            from their names to their values.

    Raises:
        ValueError: if the code cannot be imported here. The message is one line.
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
    """Wraps an experiment for sending it to a worker. Unpickling a Parcel returns the experiment itself.

    Args:
        experiment: the experiment.
        name: the value of --experiment, with an absolute path if it is a file. It is "" if the experiment did not come
            from this option.
        loads: whether the worker loads the data. If not, the function that loads the data is not sent.
    """

    def __init__(self, experiment: Experiment, name: str = "", *, loads: bool = False) -> None:
        self._code = code_of(experiment, name)
        self._found_out = dict(experiment.travelling)
        self._value = by_value(experiment, alone=self._code is None, loads=loads)
        if self._code is None and self._value is None:
            cloudpickle.dumps(experiment)  # raises the error that the user has to see

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (self._code, self._value, self._found_out)


def write_packed(folder: Path, experiment: Experiment, name: str) -> None:
    """Write packed.csv into the study's folder: the names and sizes in bytes of the user's files that are sent to the
    workers and stored in MLflow's model. If there are no such files, write nothing."""
    code = code_of(experiment, name)
    if code is not None:
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerows([("file", "bytes"), *((path, len(content)) for path, content in code.files.items())])
        write_atomically(folder / PACKED_CSV, rows.getvalue())


def by_value(experiment: Experiment, *, alone: bool = False, loads: bool = False) -> bytes | None:
    """Return a pickle of the experiment that contains the code of the user's own modules. Return None if Python cannot
    pickle it.

    Args:
        experiment: the experiment.
        alone: True if the pickle is sent without the source files. The pickle then contains all of the user's modules
            that define functions of the experiment. False if the source files are sent, too. The pickle then contains
            only the file of --experiment, because no worker can import this file by a module name.
        loads: whether the pickle contains the function that loads the data.
    """
    travels = experiment if loads else replace(experiment, load=_only_the_driver_loads)
    if isinstance(travels, OwnLoop):  # the user's loop makes the network
        travels = replace(travels, model=_the_loop_makes_it)
    modules = [module for module in _modules(travels) if alone or module.__name__ == _name_of_file(module)]
    try:
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        return cloudpickle.dumps(travels)
    except Exception:  # the user's objects may raise any error when they are pickled
        return None
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _only_the_driver_loads(data_dir: Path | None) -> Any:
    raise RuntimeError("a worker has the data from the driver, and does not load it")


def _the_loop_makes_it() -> Any:
    raise RuntimeError("a worker has the network from the loop")


def _modules(experiment: Experiment) -> list[ModuleType]:
    """Return the user's own modules that define functions of the experiment, each once."""
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
