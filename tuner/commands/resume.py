"""`tune-sparsity resume`: goes on with a study."""

from __future__ import annotations

import argparse

from tune_sparsity.tuner.commands.arguments import STORAGE_HELP, Parser
from tune_sparsity.tuner.commands.search import run


def resume(arguments: list[str]) -> int:
    """Run the subcommand. Return the exit code."""
    parser = Parser("tune-sparsity resume", description="Goes on with a study: finished trials stay as they are.")
    parser.add_argument("study", metavar="STUDY", help="its name, or its folder")
    parser.add_argument("--storage", metavar="DIR", default="studies", help=STORAGE_HELP)
    parser.add_argument("--trials", metavar="N", default=argparse.SUPPRESS, help="a new number of trials in all")
    parser.add_argument("--time-budget", metavar="T", default=argparse.SUPPRESS, help="a new budget for all of it")
    parser.add_argument("--patience", metavar="N", default=argparse.SUPPRESS, help="trials without gain to end after")
    parser.add_argument(
        "--group", metavar="NAME", default=argparse.SUPPRESS, help="cascade, of networks that are there; or reflect"
    )
    parser.add_argument("--data-dir", metavar="DIR", default=argparse.SUPPRESS)
    parser.add_argument("--address", metavar="ADDRESS", default=argparse.SUPPRESS, help="of the cluster to go on with")
    parser.add_argument("--tracking-uri", metavar="URI", default=argparse.SUPPRESS)
    parser.add_argument("--register", metavar="NAME", default=argparse.SUPPRESS, help="in MLflow's registry")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    options = vars(parser.parse_args(arguments))
    as_json = options.pop("json")
    from tune_sparsity.tuner.config.files import check_withheld, read_study
    from tune_sparsity.tuner.config.study_config import storage_of

    config = read_study(options.pop("study"), storage_of(options.pop("storage")), options)
    check_withheld(config)
    return run(config.resolved(), as_json=as_json, resume=True)
