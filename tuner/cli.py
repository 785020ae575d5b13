"""The command `tune-sparsity`: options in, exit code out. Heavy imports wait until they are needed."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from tune_sparsity.tuner.commands.console import EXIT_DONE, EXIT_INTERRUPTED, EXIT_USAGE
from tune_sparsity.tuner.commands.doctor import doctor
from tune_sparsity.tuner.commands.list import list_names
from tune_sparsity.tuner.commands.resume import resume
from tune_sparsity.tuner.commands.search import search
from tune_sparsity.tuner.commands.send import send


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    from tune_sparsity.tuner.errors import UsageError

    try:
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
    from importlib import import_module

    from tune_sparsity.tuner.errors import UsageError, unknown

    commands = {"resume": resume, "send": send, "list": list_names, "doctor": doctor}
    modules = ("check", "export", "report", "compare", "ui")  # a command a module, of the same name
    if name not in (*commands, *modules):
        raise UsageError(
            unknown("command", name, (*commands, *modules)) + ", or options that begin a study: --target 0.9"
        )
    run = commands[name] if name in commands else getattr(import_module(f"tune_sparsity.tuner.{name}"), name)
    return int(run(arguments))


def entry() -> NoReturn:
    """The command as a process of its own, which is gone as soon as it has said all: to take torch's, Ray's and
    Optuna's objects apart, or to look through them for garbage while they are made, takes seconds."""
    gc.set_threshold(100_000, 50, 100)
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # whoever read it has left
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()
