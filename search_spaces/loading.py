"""Find search spaces by name or by file."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from tune_sparsity.search_spaces.space import Space
from tune_sparsity.search_spaces.yaml_file import BadFile

FOLDER = Path(__file__).parent
BUILT_IN = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
OVERLAYS = tuple(sorted(path.stem for path in FOLDER.glob("overlays/*.yaml")))
"""The names that may follow the name of a built-in space after a "+"."""


def load_space(name: str, target: float) -> Space:
    """Return the search space with this name for a target.

    Args:
        name: the name of a built-in space or of a .yaml file. Overlays may follow a built-in space: "lpss+adamw" is the
            space lpss with the parameters of overlays/adamw.yaml. Several are possible: "lpss+adamw+bits".
        target: the target sparsity in [0, 1).

    Raises:
        BadFile: if the file is not a valid space. The message names the line.
        ValueError: if the name is unknown. The message suggests similar names.
    """
    return space_layout(name)(target)


def space_layout(name: str) -> Callable[[float], Space]:
    """Read a space's file once, and return a function that makes the space for a target. Later changes of the file have
    no effect. The name and the errors are those of `load_space`."""
    from tune_sparsity.search_spaces.space_parser import read_space

    overlays = name.split("+")[1:] if is_built_in(name) else []
    return read_space(name, space_file(name), [FOLDER / "overlays" / f"{overlay}.yaml" for overlay in overlays])


def overlay_title(name: str) -> str:
    """Return the purpose of an overlay, from the first lines of its file."""
    line = (FOLDER / "overlays" / f"{name}.yaml").read_text(encoding="utf-8").split("\n")[0]
    return line.removeprefix("# ").split(":")[0]


def is_built_in(name: str) -> bool:
    """Return whether this is the name of a built-in space, with or without overlays."""
    base, *overlays = name.split("+")
    return base in BUILT_IN and set(overlays) <= set(OVERLAYS)


def space_text(name: str) -> str:
    """Return the text of a space's file with its comments, as a start for a user's own space. The errors are those of
    `load_space`."""
    path = space_file(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadFile(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text in UTF-8'}"
        ) from error


def space_file(name: str) -> Path:
    """Return the path of a space's file. Raise ValueError for an unknown name. The message suggests similar names."""
    if is_built_in(name):
        return FOLDER / f"{name.partition('+')[0]}.yaml"
    if Path(name).suffix in {".yaml", ".yml"}:
        return Path(name)
    near = difflib.get_close_matches(name, BUILT_IN, n=2)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    known = f"one of {', '.join(BUILT_IN)}, perhaps with +{' or +'.join(OVERLAYS)}"
    raise ValueError(f"unknown space {name!r}{hint}: a .yaml file or {known}")
