"""Runs `tune-sparsity resume`, which continues a study."""

from __future__ import annotations

import argparse

from tune_sparsity.tuner.commands.arguments import GROUP_HELP, PATIENCE_HELP, STORAGE_HELP, Parser
from tune_sparsity.tuner.commands.search import run


def resume(arguments: list[str]) -> int:
    """Run the subcommand `resume`. Return the exit code."""
    parser = Parser(
        "tune-sparsity resume", description="Continues a study that was interrupted. Ended trials are not repeated."
    )
    parser.add_argument("study", metavar="STUDY", help="the study's name, or its folder")
    parser.add_argument("--storage", metavar="DIR", default="studies", help=STORAGE_HELP)
    parser.add_argument("--trials", metavar="N", default=argparse.SUPPRESS, help="a new total number of trials")
    parser.add_argument(
        "--time-budget",
        metavar="T",
        default=argparse.SUPPRESS,
        help="a new time budget for all parts of the study together, e.g. 30m",
    )
    parser.add_argument("--patience", metavar="N", default=argparse.SUPPRESS, help=PATIENCE_HELP)
    parser.add_argument("--group", metavar="NAME", default=argparse.SUPPRESS, help=GROUP_HELP)
    parser.add_argument(
        "--data-dir", metavar="DIR", default=argparse.SUPPRESS, help="where data sets are, or are downloaded to"
    )
    parser.add_argument("--address", metavar="ADDRESS", default=argparse.SUPPRESS, help="address of a running Ray")
    parser.add_argument(
        "--tracking-uri", metavar="URI", default=argparse.SUPPRESS, help="MLflow's store (default: the study's store)"
    )
    parser.add_argument(
        "--register", metavar="NAME", default=argparse.SUPPRESS, help="put the best network into MLflow's registry"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    options = vars(parser.parse_args(arguments))
    as_json = options.pop("json")
    from tune_sparsity.tuner.config.files import check_withheld, read_study
    from tune_sparsity.tuner.config.study_config import storage_of

    config = read_study(options.pop("study"), storage_of(options.pop("storage")), options)
    check_withheld(config)
    return run(config.resolved(), as_json=as_json, resume=True)
