"""A user's code on its way to Ray's workers, which may run on machines that have never seen it.

What travels with an experiment that is neither built in nor installed: the files of its code, and where Python can
pickle it, the experiment by value. A worker that has the same files (it runs on the same machine, or shares its
folders) takes the value: nothing of the user's file is run again, and data that it reads at its top level is not read
again by each worker. On another machine the files are unpacked, once, and the experiment is imported from there: then
`__file__` is right there too. Where that fails, the value serves.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ray import cloudpickle

from tune_sparsity.experiments import Experiment, find
from tune_sparsity.experiments.registry import BUILT_IN, import_from, module_name
from tune_sparsity.experiments.user_code import is_users_own

_LARGEST, _TOGETHER = 10 << 20, 32 << 20  # bytes of a file, and of all files, that travel beside the code


@dataclass(frozen=True)
class Code:
    """The files that an experiment needs.

    Attributes:
        name: of the experiment, as --experiment takes it, relative to the root: "mine.py:mine", "package.module:mine".
        root: the folder on this machine that holds the files, and from which the user's modules are imported.
        files: path relative to the root -> content.
    """

    name: str
    root: str
    files: dict[str, bytes]

    def folder(self) -> Path:
        """The root where it is there with these very files, else a folder with a copy of them."""
        return Path(self.root) if self.is_here() else self._unpacked()

    def is_here(self) -> bool:
        """Whether this machine has these very files at their root."""
        try:
            return all((Path(self.root) / path).read_bytes() == content for path, content in self.files.items())
        except OSError:
            return False

    def _unpacked(self) -> Path:
        """A folder of this user's alone, one for each content, that appears whole or not at all."""
        digest = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        home = Path(tempfile.gettempdir()) / f"tune-sparsity-code-{os.getuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid() or home.stat().st_mode & 0o077:
            raise RuntimeError(f"{home} belongs to somebody else, or others may write there: remove it")
        target = home / digest.hexdigest()[:32]
        if not target.exists():
            fresh = Path(tempfile.mkdtemp(dir=home))
            for path, content in self.files.items():
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                (fresh / path).write_bytes(content)
            with contextlib.suppress(OSError):  # another worker of this machine was faster, with the same content
                fresh.rename(target)
        return target


def unpack(code: Code | None, value: bytes | None) -> Experiment:
    """The experiment, on a worker. Raises ValueError with one line when its code cannot be imported here."""
    if code is None:
        assert value is not None
        return cloudpickle.loads(value)
    here = code.is_here()
    folder = code.folder()
    import_from(folder)
    if here and value is not None:
        return cloudpickle.loads(value)
    try:
        return find(f"{folder}/{code.name}" if code.name.partition(":")[0].endswith(".py") else code.name)
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
        self._value = by_value(experiment, alone=self._code is None, loads=loads)
        if self._code is None and self._value is None:
            cloudpickle.dumps(experiment)  # for its error

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack, (self._code, self._value)


def by_value(experiment: Experiment, *, alone: bool = False, loads: bool = False) -> bytes | None:
    """The experiment's pickle, with the code of a user's own modules in it; None where Python cannot pickle it.

    Args:
        alone: no files go with it: all the modules of the experiment's functions must be in it, and not only the file
            that was given, which no worker can import under its name.
        loads: whether the data's loader comes with it.
    """
    travels = experiment if loads else replace(experiment, load=_only_the_driver_loads)
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


def _modules(experiment: Experiment) -> list[ModuleType]:
    """The modules of the user's own that hold the experiment's functions, each once."""
    names = []
    for field in fields(experiment):
        part = getattr(experiment, field.name)
        while isinstance(part, partial):
            part = part.func
        names.append(getattr(part, "__module__", None) or type(part).__module__)
    modules = [sys.modules[name] for name in dict.fromkeys(names) if name in sys.modules and name != "__main__"]
    return [module for module in modules if is_users_own(getattr(module, "__file__", None))]


def _name_of_file(module: ModuleType) -> str:
    return module_name(Path(str(module.__file__)))


def code_of(experiment: Experiment, name: str) -> Code | None:
    """The files behind an experiment that was found by `name`; None where there are none to send: it is built in,
    installed, or was not found by that name."""
    where, _, attribute = name.rpartition(":")
    if name in BUILT_IN or not where:
        return None
    path = Path(where)
    module = sys.modules.get(module_name(path) if path.suffix == ".py" else where)
    file = getattr(module, "__file__", None)
    if getattr(module, attribute, None) is not experiment or not is_users_own(file):
        return None
    main = Path(str(file)).resolve()
    if path.suffix == ".py":
        root, found = main.parent, {main, *_siblings(main, main.parent)}
        found |= set(_beside(main.parent, sum(one.stat().st_size for one in found)))
        short = f"{main.name}:{attribute}"
    else:
        root = main.parents[where.count(".") + (main.stem == "__init__")]
        top = root / where.partition(".")[0]
        found, short = {main, *_siblings(main, root), *(_tree(top) if top.is_dir() else ())}, name
    return Code(short, str(root), {str(one.relative_to(root)): one.read_bytes() for one in sorted(found)})


def _siblings(main: Path, root: Path) -> set[Path]:
    """The files of the modules and packages in `root` that a file imports, anywhere in it, and those import in turn."""
    found: set[Path] = set()
    waiting = [main]
    while waiting:
        for top in _imported(waiting.pop()):
            new = _files_of(top, root) - found
            found |= new
            waiting += [file for file in new if file.suffix == ".py"]
    return found


def _imported(file: Path) -> set[str]:
    """The first names of the modules that a source imports."""
    names: set[str] = set()
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except SyntaxError:  # a template in a package, say: if it is imported, that fails on the driver
        return names
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _files_of(top: str, root: Path) -> set[Path]:
    """The files of a module or package if it is imported from `root`; of an installed one, none."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return set()
    if spec is None:
        return set()
    if spec.submodule_search_locations is None:
        file = Path(spec.origin or "")
        return {root / file.name} if file.is_file() and file.resolve().parent == root else set()
    inside = any(Path(folder).resolve() == root / top for folder in spec.submodule_search_locations)
    return set(_tree(root / top)) if inside else set()


def _tree(package: Path) -> Iterator[Path]:
    """All files of a package that are not hidden, nor compiled, up to 10 MiB each."""
    for path in sorted(package.rglob("*")):
        inside = path.relative_to(package).parts
        if (
            path.is_file()
            and path.stat().st_size <= _LARGEST
            and not any(part.startswith(".") or part == "__pycache__" for part in inside)
        ):
            yield path


def _beside(folder: Path, taken: int) -> Iterator[Path]:
    """Files in the folder itself that code may read: no Python, not hidden, up to 10 MiB each, no database; the smaller
    ones first, while all files together stay under 32 MiB."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: (path.stat().st_size, path.name)):
        taken += path.stat().st_size
        if taken > _TOGETHER or path.stat().st_size > _LARGEST:
            return
        if path.suffix != ".py" and ".db" not in path.suffixes:
            yield path
