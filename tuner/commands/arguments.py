"""Parses the arguments of the subcommands of `tune-sparsity`."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

STORAGE_HELP = "folder of studies, or s3://BUCKET/PREFIX (./studies)"


class Parser(argparse.ArgumentParser):
    """A parser of arguments that reports an error in one line. Options cannot be abbreviated, because a new option
    could make an abbreviation ambiguous.

    Raises:
        UsageError: from parse_args, if an argument is wrong.
    """

    def __init__(self, prog: str = "tune-sparsity", **more: Any) -> None:
        super().__init__(prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        from tune_sparsity.tuner.errors import UsageError

        raise UsageError(f"{message} (tune-sparsity --help shows all options)")
