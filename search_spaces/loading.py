"""Find search spaces by name or by path. A search space is a YAML file with a method's parameters and their ranges."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from tune_sparsity.search_spaces.space import Space
from tune_sparsity.search_spaces.yaml_file import BadFile

FOLDER = Path(__file__).parent
BUILT_IN = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
OVERLAYS = tuple(sorted(path.stem for path in FOLDER.glob("overlays/*.yaml")))
"""The names of files with parameters that replace parameters of a space. "lpss+adamw" is lpss with one overlay."""


def load_space(name: str, target: float) -> Space:
    """Return a search space for a target sparsity.

    Args:
        name: the name of a built-in space, or the path of a .yaml file. Names of overlays may follow the name of a
            built-in space: "lpss+adamw" is the space lpss together with the parameters of overlays/adamw.yaml. A
            parameter of the overlay replaces the parameter of lpss that has the same name. Several overlays are
            possible: "lpss+adamw+bits".
        target: the target sparsity in [0, 1).

    Raises:
        BadFile: if the file is not a valid space. The message names the line.
        ValueError: if the name is unknown. The message suggests similar names.
    """
    return space_layout(name)(target)


def space_layout(name: str) -> Callable[[float], Space]:
    """Read a space's file once. Return a function that takes a target sparsity and returns the space for this target.

    The returned function does not read the file again. The argument `name` and the exceptions are those of
    `load_space`.
    """
    from tune_sparsity.search_spaces.space_parser import read_space

    overlays = name.split("+")[1:] if is_built_in(name) else []
    return read_space(name, space_file(name), [FOLDER / "overlays" / f"{overlay}.yaml" for overlay in overlays])


def overlay_title(name: str) -> str:
    """Return the purpose of an overlay: the comment in the first line of its file, up to the colon."""
    line = (FOLDER / "overlays" / f"{name}.yaml").read_text(encoding="utf-8").split("\n")[0]
    return line.removeprefix("# ").split(":")[0]


def is_built_in(name: str) -> bool:
    """Return whether this is the name of a built-in space. Names of overlays may follow it, as in "lpss+adamw"."""
    base, *overlays = name.split("+")
    return base in BUILT_IN and set(overlays) <= set(OVERLAYS)


def space_text(name: str) -> str:
    """Return the text of a space's file with its comments. Users can copy it as the start of their own space. The
    exceptions are those of `load_space`."""
    path = space_file(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadFile(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text in UTF-8'}"
        ) from error


def space_file(name: str) -> Path:
    """Return the path of a space's file. For "lpss+adamw" this is the file of lpss.

    Raises:
        ValueError: if the name is unknown. The message suggests similar names.
    """
    if is_built_in(name):
        return FOLDER / f"{name.partition('+')[0]}.yaml"
    if Path(name).suffix in {".yaml", ".yml"}:
        return Path(name)
    near = difflib.get_close_matches(name, BUILT_IN, n=2)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    known = f"one of {', '.join(BUILT_IN)}, also with +{' or +'.join(OVERLAYS)}"
    raise ValueError(f"unknown space {name!r}{hint}: give a .yaml file or {known}")
