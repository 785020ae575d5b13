"""The command `tune-sparsity`: options in, exit code out. Heavy imports wait until they are needed."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from tune_sparsity.tuner.commands.search import search
from tune_sparsity.tuner.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USAGE, UsageError, unknown

_OF_TORCHSCRIPT = r"`torch\.jit\."
"""The beginning of torch's warnings about TorchScript. We refuse such networks in a line of our own."""

_SUBCOMMANDS = {
    **{"resume": "resume", "send": "send", "list": "list_names", "doctor": "doctor", "check": "check"},
    **{"export": "export", "report": "report", "compare": "compare", "ui": "ui"},
}
"""Each subcommand, and its function in the module of `tuner.commands` of the same name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", _OF_TORCHSCRIPT, FutureWarning)
    try:
        if sys.platform not in ("linux", "darwin"):
            raise UsageError(f"this system, {sys.platform}, is not supported: use Linux or macOS, or WSL on Windows")
        if arguments and not arguments[0].startswith("-"):
            return _subcommand(arguments[0], arguments[1:])
        return search(arguments)
    except UsageError as error:
        print(f"tune-sparsity: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("tune-sparsity: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has left
        return EXIT_DONE


def _subcommand(name: str, arguments: list[str]) -> int:
    if name not in _SUBCOMMANDS:
        raise UsageError(unknown("command", name, _SUBCOMMANDS) + ", or options that begin a study: --target 0.9")
    module = import_module(f"tune_sparsity.tuner.commands.{name}")
    return int(getattr(module, _SUBCOMMANDS[name])(arguments))


def entry() -> NoReturn:
    """Run the command as a process of its own, which is gone as soon as it has said all: to take torch's, Ray's and
    Optuna's objects apart, or to look through them for garbage while they are made, takes seconds."""
    gc.set_threshold(100_000, 50, 100)
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # whoever read it has left
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
