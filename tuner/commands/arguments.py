"""Parses the arguments of the subcommands of `tune-sparsity`."""

from __future__ import annotations

import argparse
import difflib
import re
from pathlib import Path
from typing import Any, NoReturn

_UNKNOWN = "unrecognized arguments: "
STORAGE_HELP = "folder of studies, or s3://BUCKET/PREFIX (default: ./studies)"
ADDRESS_HELP = "address of a running Ray: auto, HOST:PORT or ray://HOST:PORT (default: a private Ray is started)"
TRACKING_HELP = "MLflow's store (default: sqlite:///mlflow.db)"
WORKERS_HELP = "number of processes that train one trial together (default: 1)"
CPUS_HELP = "CPUs of each process of a trial (default: 1)"
GPUS_HELP = "GPUs of each process of a trial: auto, 0, a fraction such as 0.25, or 1 (default: auto)"
PATIENCE_HELP = "end after N trials in a row that do not improve the best result"
GROUP_HELP = (
    "cascade: pair a small network for easy examples with a large network for the others; "
    "reflect: also train the large network again"
)


def given_path(text: str) -> Path:
    """Convert the value of an option to a path. Raise argparse.ArgumentTypeError if it is empty."""
    from tune_sparsity.tuner.errors import EMPTY

    if not text.strip():
        raise argparse.ArgumentTypeError(EMPTY)
    return Path(text)


class Parser(argparse.ArgumentParser):
    """A parser of arguments that reports an error in one line. Options cannot be abbreviated, because a later version
    may have a new option that makes an abbreviation ambiguous.

    Raises:
        UsageError: from parse_args, if an argument is wrong.
    """

    def __init__(self, prog: str = "tune-sparsity", **more: Any) -> None:
        super().__init__(prog, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        from tune_sparsity.tuner.errors import UsageError

        hint = ""
        if found := re.match(f"{_UNKNOWN}(--[\\w-]+)", message):
            near = difflib.get_close_matches(found[1], re.findall(r"--[\w-]+", self.format_usage()), 1, 0.75)
            hint = f", did you mean {near[0]}?" if near else ""
        raise UsageError(f"{message}{hint} ({self.prog} --help shows all options)")

    def add_storage(self) -> None:
        """Add --storage. The parsed value is a StudyStorage."""
        from tune_sparsity.tuner.config.study_config import storage_of

        self.add_argument("--storage", metavar="DIR", type=storage_of, default="studies", help=STORAGE_HELP)
