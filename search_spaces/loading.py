"""Search spaces by name or by file."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from tune_sparsity.search_spaces.space import Space
from tune_sparsity.search_spaces.yaml_file import BadFile

FOLDER = Path(__file__).parent
BUILT_IN = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
OVERLAYS = tuple(sorted(path.stem for path in FOLDER.glob("overlays/*.yaml")))
"""What may follow a built-in space's name, behind a "+"."""


def load_space(name: str, target: float) -> Space:
    """Return the built-in space of that name, or the one in the file of that name, laid out for `target` in [0, 1).

    "lpss+adamw" is the built-in space lpss with the parameters of overlays/adamw.yaml in the place of its own.
    There may be several: "lpss+adamw+bits".

    Raises:
        BadFile: for a file that is not a valid space; the line is named.
        ValueError: for an unknown name, with the nearest ones.
    """
    return space_layout(name)(target)


def space_layout(name: str) -> Callable[[float], Space]:
    """Return the function that lays a space out for a target, as `load_space` does. The file is read now, and not
    again: it may change while the function is in use. Raises as `load_space` does."""
    from tune_sparsity.search_spaces.space_parser import read_space

    overlays = name.split("+")[1:] if is_built_in(name) else []
    return read_space(name, space_file(name), [FOLDER / "overlays" / f"{overlay}.yaml" for overlay in overlays])


def is_built_in(name: str) -> bool:
    """Return whether this names a built-in space, with overlays or without."""
    base, *overlays = name.split("+")
    return base in BUILT_IN and set(overlays) <= set(OVERLAYS)


def space_text(name: str) -> str:
    """Return a space as it is written, with its comments: what one of one's own can start from. Raises as load_space
    does."""
    path = space_file(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadFile(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not text in UTF-8'}"
        ) from error


def space_file(name: str) -> Path:
    """Return the file of a space. Raises ValueError for an unknown name, with the nearest ones."""
    if is_built_in(name):
        return FOLDER / f"{name.partition('+')[0]}.yaml"
    if Path(name).suffix in {".yaml", ".yml"}:
        return Path(name)
    near = difflib.get_close_matches(name, BUILT_IN, n=2)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    known = f"one of {', '.join(BUILT_IN)}, perhaps with +{' or +'.join(OVERLAYS)}"
    raise ValueError(f"unknown space {name!r}{hint}: a .yaml file or {known}")
