"""Measure what patterns of zeros cost in accuracy, and what they save in milliseconds.

    python -m benchmarks.training.patterns --data-dir FOLDER --out FOLDER [--goals fashion-mnist:2:4:0.5 ...]

A goal is EXPERIMENT:PATTERN:SPARSITY. Each is a study of its own under OUT. The search judges on validation data. The
best network's recipe is then trained under three other seeds, which are judged on the test data. A study that has ended
is not run again, and one that was interrupted is resumed. Then the best network's forward passes are timed, the forms
taking turns. The tables are Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.training.sizes import STUDIES, seeds_text, studied
from tune_sparsity.tuner.config.study_config import storage_of
from tune_sparsity.tuner.reports.savings import HEADER, savings
from tune_sparsity.tuner.results.finished_study import read_ended

GOALS = (
    "fashion-mnist:unstructured:0.5",
    "fashion-mnist:2:4:0.5",
    "fashion-mnist:unstructured:0.9",
    "fashion-mnist:block:4x1:0.9",
    "fashion-mnist:block:8x8:0.9",
)


def row(experiment: str, pattern: str, sparsity: str, document: dict[str, Any]) -> str:
    best = document["best"]
    measured = (f"{best['sparsity']:.4f}", f"{100 * best['val_accuracy']:.2f}", seeds_text(document))
    return f"| {' | '.join((experiment, pattern, sparsity, *measured))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--goals", nargs="+", default=GOALS, metavar="EXPERIMENT:PATTERN:SPARSITY")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print("| experiment | pattern | asked | sparsity | validation % | test %, three seeds |")
    print("| --- | --- | --- | --- | --- | --- |")
    names = []
    for goal in options.goals:
        experiment, _, rest = goal.partition(":")
        pattern, _, sparsity = rest.rpartition(":")
        names.append(name := f"{experiment}-{pattern.replace(':', '-')}-{sparsity}")
        wanted = ["--target", sparsity, "--pattern", pattern, *STUDIES[experiment]]
        document = studied(name, experiment, wanted, data_dir=options.data_dir.resolve(), out=out)
        print(row(experiment, pattern, sparsity, document), flush=True)
    for name in names:
        rows, missing = savings(read_ended(name, storage_of(str(out))))
        print(f"\n{name}{missing and ': '}{missing}\n\n| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
        print("\n".join(f"| {' | '.join(one)} |" for one in rows), flush=True)


if __name__ == "__main__":
    main()
