"""Measure what accuracy a file of so many bytes can have: studies with --max-bytes, their best under more seeds.

    python -m benchmarks.training.sizes --data-dir FOLDER --out FOLDER [--goals fashion-mnist:10000 digits:1500 ...]

A goal is EXPERIMENT:BYTES. Each is a study of its own under OUT, with the command's defaults but for what is in
`STUDIES`. The search judges on validation data. The best network's recipe is then trained under three other seeds,
which are judged on the test data. A study that has ended is not run again, and one that was interrupted is resumed. The
table is Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STUDIES = {
    "digits": ["--trials", "40"],
    "fashion-mnist": ["--trials", "24", "--epochs", "8"],
    "mnist": ["--trials", "16"],
    "mnist-lenet5": ["--trials", "12"],
}
"""The options of each experiment's studies."""
GOALS = (
    *("fashion-mnist:10000", "digits:1500", "mnist:27000", "mnist:8500", "mnist:4000", "mnist:2000"),
    *("mnist-lenet5:4100", "mnist-lenet5:1500"),
)


def studied(name: str, experiment: str, wanted: Sequence[str], *, data_dir: Path, out: Path) -> dict[str, Any]:
    """Return a study's result.json, of a study that is run or resumed unless it has ended.

    Args:
        wanted: options of the command, which say what to find and how.
    """
    result = out / name / "result.json"
    command = [sys.executable, "-m", "tune_sparsity"]
    where = ["--storage", str(out)]
    if not result.exists():
        if (out / name).exists():
            command += ["resume", name, *where]
        else:
            command += ["--experiment", experiment, *wanted, "--final-seeds", "3"]
            command += ["--data-dir", str(data_dir), "--study", name, *where]
            command += ["--tracking-uri", f"sqlite:///{out / 'mlflow.db'}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    document: dict[str, Any] = json.loads(result.read_text())
    return document


def seeds_text(document: dict[str, Any]) -> str:
    """Return the mean test accuracy of the best network's recipe under more seeds, with its range, in per cent."""
    seeds = document["final_seeds"][0]["test_accuracy"]
    return f"{100 * seeds['mean']:.2f} ({100 * seeds['min']:.2f} to {100 * seeds['max']:.2f})"


def row(experiment: str, most: int, document: dict[str, Any]) -> str:
    best = document["best"]
    if best is None:
        return f"| {experiment} | {most:,} | no network fits | | | | |"
    told = (f"{best['size_bytes']:,}", best["params"].get("weight_bits", 32), f"{best['sparsity']:.4f}")
    accuracies = f"{100 * best['val_accuracy']:.2f} | {seeds_text(document)}"
    return f"| {experiment} | {most:,} | {' | '.join(map(str, told))} | {accuracies} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--goals", nargs="+", default=GOALS, metavar="EXPERIMENT:BYTES")
    parser.add_argument("--space", help="in the place of the methods' own, as lpss: weights of 32 bits alone")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print("| experiment | bytes at most | bytes | bits | sparsity | validation % | test %, three seeds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for goal in options.goals:
        experiment, _, most = goal.partition(":")
        name = "-".join(filter(None, (experiment, most, options.space)))
        own = ["--space", options.space] if options.space else []
        wanted = ["--max-bytes", most, *STUDIES[experiment], *own]
        document = studied(name, experiment, wanted, data_dir=options.data_dir.resolve(), out=out)
        print(row(experiment, int(most), document), flush=True)


if __name__ == "__main__":
    main()
