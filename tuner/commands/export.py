"""Runs `tune-sparsity export`, which writes a network for other programs."""

from __future__ import annotations

import json
import sys

from tune_sparsity.tuner.errors import UsageError, unknown
from tune_sparsity.tuner.results.export import SUFFIXES, ExportFailed, export_network
from tune_sparsity.tuner.results.export_text import as_text
from tune_sparsity.tuner.results.group_export import export_group, group_named, group_text


def export(arguments: list[str]) -> int:
    """Run the subcommand `export`. Return 0, or 1 if the exported file does not give the same outputs as the
    network."""
    from tune_sparsity.tuner.commands.arguments import Parser, given_path
    from tune_sparsity.tuner.results.finished_study import read_ended

    parser = Parser("tune-sparsity export", description="Writes a network of a study as a file, and checks the file.")
    parser.add_argument("study", metavar="STUDY", help="the study's name, or its folder")
    parser.add_argument("--format", metavar="F", required=True, help=f"format of the file: {', '.join(SUFFIXES)}")
    parser.add_argument(
        "--network",
        metavar="NAME",
        default="best",
        help="the name of a network, such as best, best-0.9 or front/t0003; the name group means the pair of networks "
        "that --group recommends (default: best)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=given_path,
        help="the file to write (default: a file in the subfolder export/ of the study's folder; if --storage is "
        "s3://..., in ./STUDY/export/)",
    )
    parser.add_storage()
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder of data sets, whose validation data are used to check the exported file",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on stdout")
    options = parser.parse_args(arguments)
    if options.format not in SUFFIXES:
        raise UsageError(f"--format: {unknown('format', options.format, SUFFIXES)}")
    study = read_ended(options.study, options.storage, {"data_dir": options.data_dir} if options.data_dir else None)
    name, grouped = options.network, options.network.partition("-")[0] == "group"
    if grouped:
        group_named(study, name)
    elif name not in study.networks:
        there = ", ".join(study.networks) or "none, because no trial was feasible"
        raise UsageError(f"--network: study {options.study} has no network {name!r}. Its networks: {there}")
    if options.format == "onnx":
        from tune_sparsity.tuner.results.export_formats import require_onnx

        require_onnx()
    stem, kind = name.replace("/", "-"), options.format
    # A group becomes a folder, except in the ONNX format, in which it is one file.
    stem += f"-{kind}" if grouped and kind != "onnx" else SUFFIXES[kind]
    path = options.out or study.results / "export" / stem
    try:
        document = (export_group if grouped else export_network)(study, name, kind, path)
    except ExportFailed as error:
        print(f"tune-sparsity: {error}", file=sys.stderr)
        return 1
    text = group_text if grouped else as_text
    print(json.dumps(document, indent=2) if options.json else text(document, study.goal.objective))
    return 0
