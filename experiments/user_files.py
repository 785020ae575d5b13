"""Find the files that a user's experiment needs (code and data files), and write copies of them on another machine."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from tune_sparsity.experiments import Experiment
from tune_sparsity.experiments.registry import BUILT_IN, module_name
from tune_sparsity.experiments.user_code import MODULE_SUFFIXES, is_users_own


@dataclass(frozen=True)
class Code:
    """Holds copies of the files that a user's experiment needs. A worker process on another machine gets this object.

    Attributes:
        name: the name of the experiment, relative to the root: "mine.py:mine" or "package.module:mine".
        root: the folder with the files on the machine that started the search. The user's modules are imported from
            this folder.
        files: path relative to the root -> content of the file.
    """

    name: str
    root: str
    files: dict[str, bytes]

    def folder(self) -> Path:
        """Return a folder on this machine with these files: the root if it contains them with the same content,
        otherwise a folder with new copies."""
        return Path(self.root) if self.is_here() else self._unpacked()

    def is_here(self) -> bool:
        """Return whether the root exists on this machine and contains these files with the same content."""
        try:
            return all((Path(self.root) / path).read_bytes() == content for path, content in self.files.items())
        except OSError:
            return False

    def _unpacked(self) -> Path:
        """Write the files to a folder in the system's temporary folder, and return the new folder. Only this user can
        access it. Its name is a hash of the files. It is renamed to this name when all files are written. Other
        processes therefore never see an incomplete folder."""
        digest = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        home = Path(tempfile.gettempdir()) / f"tune-sparsity-code-{os.getuid()}"
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid() or home.stat().st_mode & 0o077:
            raise RuntimeError(f"{home} must be a folder of your own that no other user can access: remove it")
        target = home / digest.hexdigest()[:32]
        if not target.exists():
            fresh = Path(tempfile.mkdtemp(dir=home))
            for path, content in self.files.items():
                (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                (fresh / path).write_bytes(content)
            with contextlib.suppress(OSError):  # another worker on this machine was faster
                fresh.rename(target)
        return target


def code_of(experiment: Experiment, name: str) -> Code | None:
    """Return copies of the files that an experiment needs: its module, the user's own modules that this module imports,
    and the files in `Experiment.files`.

    Return None if no files are needed because the experiment is built in or installed. Also return None if the module
    in `name` does not contain this experiment.

    Args:
        experiment: the experiment.
        name: the name by which `find` found the experiment.
    """
    where, _, attribute = name.rpartition(":")
    if name in BUILT_IN or not where:
        return None
    path = Path(where)
    module = sys.modules.get(module_name(path) if path.suffix == ".py" else where)
    file = getattr(module, "__file__", None)
    if getattr(module, attribute, None) is not experiment.origin or not is_users_own(file):
        return None
    main = Path(str(file)).resolve()
    if path.suffix == ".py":
        root, short, own = main.parent, f"{main.name}:{attribute}", {main}
    else:
        root, short = main.parents[where.count(".") + (main.stem == "__init__")], name
        own = {main, *_files_of(where, root)}
    found = _imported_by(own, root) | declared(experiment, main.parent)
    return Code(short, str(root), {str(one.relative_to(root)): one.read_bytes() for one in sorted(found)})


def declared(experiment: Experiment, folder: Path) -> set[Path]:
    """Return the files that an experiment declares in `Experiment.files`. A declared folder or pattern does not include
    hidden files.

    Args:
        experiment: the experiment.
        folder: the folder of the experiment's own file.

    Raises:
        ValueError: if an entry of `Experiment.files` matches no file or leads out of the folder.
    """
    found: set[Path] = set()
    for pattern in experiment.files:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ValueError(f"files: {pattern!r} must lie in {folder}, the folder of the experiment's own file")
        fitting = [pattern] if (folder / pattern).exists() else glob(pattern, root_dir=folder, recursive=True)
        paths = [folder / name for name in fitting]
        files = {file for path in paths for file in ([path] if path.is_file() else _tree(path))}
        if not files:
            raise ValueError(f"files: there is no file {pattern!r} in {folder}")
        found |= files
    return found


def _imported_by(files: set[Path], root: Path) -> set[Path]:
    """Return the given files and all modules in `root` that they import, directly or indirectly. If one of them lies in
    a package, also return all modules of this package that are imported in this process."""
    found, waiting = set(files), list(files)
    while waiting:
        file = waiting.pop()
        names = _imported(file, root) if file.suffix == ".py" else set()
        new = {one for name in names if _lies_in(name, root) for one in _files_of(name, root)} - found
        found |= new
        waiting += new
    packages = {root / one.relative_to(root).parts[0] for one in found}
    loaded = [str(getattr(module, "__file__", None)) for module in list(sys.modules.values())]
    here = [Path(file) for file in loaded if file.startswith(f"{root}/") and is_users_own(file)]
    return found | {file for file in here if not packages.isdisjoint(file.parents)}


def _imported(file: Path, root: Path) -> set[str]:
    """Return the names of the modules that a source file imports. For "from a import b", the result contains "a" and
    "a.b", because b may be a module."""
    names: set[str] = set()
    package = file.parent.relative_to(root).parts
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except SyntaxError:  # for example a template, which no code imports
        return names
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)} if base else set()
    return names


def _lies_in(name: str, root: Path) -> bool:
    """Return whether Python imports a module from `root` and not from an installed package."""
    top = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        return False
    if spec is None:
        return False
    if spec.submodule_search_locations is None:
        return Path(spec.origin or "").resolve().parent == root
    return any(Path(folder).resolve() == root / top for folder in spec.submodule_search_locations)


def _files_of(name: str, root: Path) -> Iterator[Path]:
    """Yield the files that Python reads to import a module from `root`: the __init__ files of its parent packages, then
    the file of the module."""
    place = root
    for part in name.split("."):
        place /= part
        beginnings = (place / "__init__", place)
        files = [
            file for one in beginnings for end in MODULE_SUFFIXES if (file := one.with_name(one.name + end)).is_file()
        ]
        yield from files[:1]


def _tree(folder: Path) -> Iterator[Path]:
    """Yield all files of a folder that are neither hidden nor compiled code."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside):
            yield path
