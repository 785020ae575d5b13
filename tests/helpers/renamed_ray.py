"""Copy the installed Ray, with other names for some of its functions and modules, as in another version of Ray."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

_LOADS_COMPILED = "import ray._raylet  # noqa: E402\n"
_RENAMES_COMPILED = """
for _name in {names}:
    if hasattr(ray._raylet, _name):
        setattr(ray._raylet, _name + "_", getattr(ray._raylet, _name))
        delattr(ray._raylet, _name)
"""


def installed_ray() -> Path:
    """Return the folder of the installed package `ray`, without an import of it."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def renamed_ray(names: Sequence[str], folder: Path) -> Path:
    """Write a copy of the package `ray` with other names into a folder. Return the folder. If it is first on
    PYTHONPATH, Python imports this copy.

    Args:
        names: dotted names. The last part of each gets an underscore at its end, in all of Ray's Python files and in
            the compiled module ray._raylet.
        folder: the folder that contains the package afterwards.
    """
    words = sorted({name.rpartition(".")[2] for name in names})
    old = re.compile(rf"\b({'|'.join(words) or '$^'})\b")
    _copy(installed_ray(), folder / "ray", old)
    first = folder / "ray" / "__init__.py"
    text = first.read_text()
    assert _LOADS_COMPILED in text
    first.unlink()
    first.write_text(text.replace(_LOADS_COMPILED, _LOADS_COMPILED + _RENAMES_COMPILED.format(names=words)))
    return folder


def _copy(source: Path, target: Path, old: re.Pattern[str]) -> None:
    """Copy a folder and its subfolders. In the copy, rename Python files and change the names in their code. Files
    without a change become links."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.is_dir():
            if entry.name != "__pycache__":
                _copy(entry, target / entry.name, old)
        elif entry.suffix == ".py":
            text = entry.read_text(encoding="utf-8")
            # The names in these generated modules belong to protobuf's messages, not to Ray's Python code.
            new = text if entry.stem.endswith("_pb2") else old.sub(r"\1_", text)
            path = target / (old.sub(r"\1_", entry.stem) + ".py")
            if new == text and path.name == entry.name:
                path.symlink_to(entry)
                _link_compiled(entry, target)
            else:
                path.write_text(new, encoding="utf-8")
        else:
            (target / entry.name).symlink_to(entry)


def _link_compiled(source: Path, target: Path) -> None:
    """Link the compiled file of a module, because it loads faster."""
    compiled = Path(importlib.util.cache_from_source(str(source)))
    if compiled.exists():
        (target / compiled.parent.name).mkdir(exist_ok=True)
        (target / compiled.parent.name / compiled.name).symlink_to(compiled)
