"""Runs the command `tune-sparsity`. Modules that take long to import are imported only when they are needed."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from tune_sparsity.tuner.commands.search import search
from tune_sparsity.tuner.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USAGE, UsageError, unknown
from tune_sparsity.tuner.system.leaving import leave

_OF_TORCHSCRIPT = r"`torch\.jit\."
"""The beginning of torch's warnings about TorchScript. The command refuses such networks with its own message."""

_SUBCOMMANDS = {
    **{"resume": "resume", "send": "send", "list": "list_names", "doctor": "doctor", "check": "check"},
    **{"export": "export", "report": "report", "compare": "compare", "ui": "ui"},
}
"""Each subcommand and its function. The function is in the module of `tuner.commands` with the subcommand's name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: the arguments after the command's name. If None, these are the arguments of the process.
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of the output has ended
        return EXIT_DONE


def _subcommand(name: str, arguments: list[str]) -> int:
    if name not in _SUBCOMMANDS:
        raise UsageError(
            unknown("command", name, _SUBCOMMANDS)
            + ". To begin a study, give options without a command: tune-sparsity --target 0.9"
        )
    module = import_module(f"tune_sparsity.tuner.commands.{name}")
    return int(getattr(module, _SUBCOMMANDS[name])(arguments))


def entry() -> NoReturn:
    """Run the command in this process, and end the process at once after its output. Garbage collection is off during
    the imports, because it would take seconds."""
    gc.set_threshold(100_000, 50, 100)
    leave(main())


if __name__ == "__main__":
    entry()
