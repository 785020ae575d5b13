"""The files that a user's own experiment needs: which they are, and a copy of them on another machine."""

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
from pathlib import Path

from tune_sparsity.experiments import Experiment
from tune_sparsity.experiments.registry import BUILT_IN, module_name
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
