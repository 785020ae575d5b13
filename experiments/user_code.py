"""Distinguish users' own code from other code, and find the line of a user's code at which an error occurred."""

from __future__ import annotations

import sysconfig
import traceback
from functools import cache
from importlib.machinery import all_suffixes
from pathlib import Path

import tune_sparsity

MODULE_SUFFIXES = tuple(all_suffixes())
OURS = ("experiments", "search_spaces", "sparsity", "tuner")


def is_users_own(file: str | None) -> bool:
    """Return whether a file belongs to the user's own code: it is not a part of Python, of an installed package or of
    tune_sparsity. Return False for None and for code without a file, such as "<string>"."""
    if not file or file.startswith("<"):
        return False
    parts = Path(file).parts
    return not ({"site-packages", "dist-packages"} & set(parts) or file.startswith(_foreign()))


@cache
def _foreign() -> tuple[str, ...]:
    """Return the folders of Python and of tune_sparsity, each with a "/" at the end, for str.startswith."""
    paths = sysconfig.get_paths()
    package = Path(str(tune_sparsity.__file__)).parent
    ours = [package, *((package / name).resolve() for name in OURS)]  # in a checkout these are links
    return tuple(f"{folder}/" for folder in (paths["stdlib"], paths["platstdlib"], *ours))


def is_module(path: str) -> bool:
    """Return whether the file has a suffix of Python modules, such as .py or .so."""
    return path.endswith(MODULE_SUFFIXES)


def place_of(error: BaseException) -> str:
    """Return "FILE:LINE" of the innermost line of the user's own code in an error's traceback. Return "" if the
    traceback contains no such line."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users_own(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def described(error: BaseException) -> str:
    """Return "TYPE: message (FILE:LINE)" in one line. FILE:LINE is the innermost line of the user's own code in the
    traceback. Without such a line, the result is "TYPE: message"."""
    if isinstance(error, SyntaxError):
        text, place = str(error.msg), (error.filename, error.lineno)
    else:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if is_users_own(frame.filename)]
        text, place = str(error), (own[-1].filename, own[-1].lineno) if own else (None, None)
    what = " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
    return f"{what} ({place[0]}:{place[1]})" if is_users_own(place[0]) else what
