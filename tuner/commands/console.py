"""Prints messages and writes HTML pages for the commands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.system.files import write_atomically


def write_page(path: Path, text: str) -> None:
    """Write an HTML page to the file that --out names. Raise UsageError if the file cannot be written."""
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written ({error.strerror or error})") from None


def say_missing(problems: list[str], config: Any) -> None:
    """Print which of a study's data are missing in MLflow, and how to send them to MLflow.

    Args:
        problems: one line for each missing part.
        config: the study's configuration.
    """
    from tune_sparsity.tuner.reports.text import command

    for problem in problems:
        say(f"Not in MLflow: {problem}")
    if problems:
        where = f"{config.study} --storage {shlex.quote(str(config.storage))}"
        waits = f"{config.storage.address(config.study)}/tracking"
        say(f"This part is in {waits}. To send it: {command('tune-sparsity')} send {where}")


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)
