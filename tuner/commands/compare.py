"""Runs `tune-sparsity compare`, which compares studies of one experiment."""

from __future__ import annotations

import json

from tune_sparsity.tuner.commands.console import write_page
from tune_sparsity.tuner.reports.comparison import as_lines, check_alike, compare_page, differences, notes_on
from tune_sparsity.tuner.reports.text import shown_path
from tune_sparsity.tuner.results.finished_study import read_ended


def compare(arguments: list[str]) -> int:
    """Run the subcommand `compare`. Return the exit code."""
    from tune_sparsity.tuner.commands.arguments import Parser, given_path

    parser = Parser("tune-sparsity compare", description="Compares studies of one experiment with the first study.")
    parser.add_argument("studies", metavar="STUDY", nargs="+", help="two or more studies, by name or by folder")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=given_path,
        help="the HTML page to write (default: compare-A-B.html for the studies A and B, next to study A; if "
        "--storage is s3://..., in the current folder)",
    )
    parser.add_storage()
    parser.add_argument("--json", action="store_true", help="print the table as JSON on stdout")
    options = parser.parse_args(arguments)
    studies = [read_ended(name, options.storage) for name in options.studies]
    check_alike(studies)
    records = [study.records() for study in studies]
    rows = differences(studies, records)
    names = "-".join(study.config.study for study in studies)
    path = options.out or studies[0].config.storage.results(f"compare-{names[:150]}.html")
    write_page(path, compare_page(studies, records, rows))
    if options.json:
        print(json.dumps({"experiment": studies[0].result["experiment"], "page": str(path), "rows": rows}, indent=2))
    else:
        print("\n".join([*as_lines(rows, studies[0].goal.objective), *notes_on(studies), "", shown_path(path)]))
    return 0
