"""Runs `tune-sparsity check`, which prints one line for each check of an experiment."""

from __future__ import annotations

import json
import sys
from collections import Counter


def check(arguments: list[str]) -> int:
    """Run the subcommand `check`.

    Returns:
        0 if no check fails, even if there are warnings. 1 if at least one check fails.

    Raises:
        UsageError: if the experiment's file does not exist or cannot be imported, if the file defines no experiment of
            the given name, or if the experiment's data cannot be loaded.
    """
    from tune_sparsity.tuner.commands.arguments import Parser, given_path
    from tune_sparsity.tuner.errors import UsageError

    parser = Parser(
        "tune-sparsity check",
        description="Checks an experiment, and says how to correct each problem.",
        epilog="exit codes: 0 no check fails (there may be warnings), 1 a check fails, 2 wrong use",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="built-in name, path/to/file.py:name or module:name")
    parser.add_argument("--data-dir", metavar="DIR", type=given_path, help="where data sets are, or are downloaded to")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON on stdout")
    options = parser.parse_args(arguments)

    import torch

    from tune_sparsity.experiments import DataUnavailable, find
    from tune_sparsity.experiments.checks import Finding, Level, inspect

    torch.set_num_threads(1)  # as in a trial
    found: list[Finding] = []
    try:
        for finding in inspect(find(options.experiment), options.data_dir):
            found.append(finding)
            if not options.json:
                print(f"{finding.level:<8} {finding.check:<13} {finding.text}", flush=True)
    except (DataUnavailable, ValueError, OSError) as error:
        raise UsageError(str(error)) from None
    levels = Counter(finding.level for finding in found)
    sound = not levels[Level.FAILED]
    if options.json:
        document = {
            "experiment": options.experiment,
            "sound": sound,
            "checks": [{"check": one.check, "level": one.level.value, "text": one.text} for one in found],
        }
        print(json.dumps(document, indent=2))
    else:
        told = ", ".join(f"{levels[level]} {level}" for level in Level if levels[level])
        print(f"{options.experiment} is {'valid' if sound else 'not valid'}: {told}", file=sys.stderr)
    return 0 if sound else 1
