"""How every command of `tune-sparsity` reads its arguments."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

STORAGE_HELP = "folder of studies, or s3://BUCKET/PREFIX (./studies)"


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line. Options are not abbreviated: a new one would make others unclear.

    Raises:
        UsageError: from parse_args, for what it does not accept.
    """

    def __init__(self, prog: str = "tune-sparsity", **more: Any) -> None:
        super().__init__(prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        from tune_sparsity.tuner.errors import UsageError

        raise UsageError(f"{message} (tune-sparsity --help shows all options)")
