"""Measure how much accuracy patterns of zeros cost, and how many bytes, multiply-adds and milliseconds they save.

    python -m benchmarks.training.patterns --data-dir FOLDER --out FOLDER [--goals fashion-mnist:2:4:0.5 ...]

A goal is EXPERIMENT:PATTERN:SPARSITY. The pattern may contain colons: here it is 2:4. The benchmark runs one study for
each goal, in a folder under OUT. The search judges networks on validation data. Then the best network's recipe is
trained under three other seeds, and these networks are judged on the test data. The benchmark does not run a finished
study again, and resumes an interrupted study. At the end, it measures what the zeros of each study's best network save,
for example the time of a forward pass, with dense and with sparse weights in turn. The tables are in Markdown.
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
