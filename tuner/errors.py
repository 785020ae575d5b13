"""Turns errors into one line for the user. Defines the exit codes of the command."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INFEASIBLE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
EMPTY = "the value is empty: leave the option out, or give a value"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class UsageError(Exception):
    """A mistake by the user. The message, in one line, says what is wrong and what is accepted. The exit code is 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for an unknown name. The message suggests similar names and lists all known names.

    Args:
        kind: the kind of name, such as "method".
        name: the unknown name.
        known: all known names.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"unknown {kind} {name!r}{hint}: accepted are {', '.join(known)}"


def disk_error(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, means that the disk is full or can no longer be written to."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message, without passwords and control characters, in
    at most 300 characters."""
    text = " ".join((str(error).splitlines() or [""])[0].split())
    text = "".join(letter for letter in text if letter.isprintable())
    return redact(f"{type(error).__name__}: {text}")[:300]


def redact(text: str) -> str:
    """Return the text with "***" in place of each user name, password and token in a URI."""
    text = re.sub(r"://(?:[^\s/@]*:[^\s]*|[^\s/?#]*)@", "://***@", text)
    return re.sub(r"(?i)\b(\w*(?:password|token|secret)\w*)=[^&\s']+", r"\1=***", text)
