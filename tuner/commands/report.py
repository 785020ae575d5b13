"""Runs `tune-sparsity report`, which writes an HTML page about a study, to send to a colleague."""

from __future__ import annotations

from tune_sparsity.tuner.commands.console import write_page
from tune_sparsity.tuner.reports.study_page import report_page
from tune_sparsity.tuner.reports.text import shown_path
from tune_sparsity.tuner.results.finished_study import read_ended

REPORT_HTML = "report.html"


def report(arguments: list[str]) -> int:
    """Run the subcommand `report`. Return the exit code."""
    from tune_sparsity.tuner.commands.arguments import Parser, given_path

    parser = Parser("tune-sparsity report", description="Writes one HTML page about a study, to send to a colleague.")
    parser.add_argument("study", metavar="STUDY", help="the study's name, or its folder")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=given_path,
        help="the page to write (default: report.html in the study's folder; if --storage is s3://..., in ./STUDY/)",
    )
    parser.add_storage()
    parser.add_argument(
        "--no-times",
        action="store_true",
        help="leave out the table of the bytes and milliseconds that zeros save, which needs measurements",
    )
    options = parser.parse_args(arguments)
    study = read_ended(options.study, options.storage)
    path = options.out or study.results / REPORT_HTML
    write_page(path, report_page(study, measure=not options.no_times))
    print(shown_path(path))
    return 0
