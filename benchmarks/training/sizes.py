"""Measure how accurate a network can be if its file has at most a given number of bytes.

    python -m benchmarks.training.sizes --data-dir FOLDER --out FOLDER [--goals fashion-mnist:10000 digits:1500 ...]

A goal is EXPERIMENT:BYTES. The benchmark runs one study with --max-bytes BYTES for each goal, in a folder under OUT.
`STUDIES` has the number of trials and epochs of each experiment. The search judges networks on validation data. Then
the best network's recipe is trained under three other seeds, and these networks are judged on the test data. The
benchmark does not run a finished study again, and resumes an interrupted study. The table is in Markdown.
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
    """Return the result.json of a study. If the study has not ended, run or resume it first.

    Args:
        wanted: the options of the command for the goal and the search.
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
    """Return the test accuracy of the best network's recipe under other seeds: the mean and the range in per cent."""
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
    parser.add_argument("--space", help="a search space instead of the default one; in lpss, all weights have 32 bits")
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
