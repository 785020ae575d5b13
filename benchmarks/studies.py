"""Measure the command `tune-sparsity` itself in whole studies, under several seeds.

    python -m benchmarks.studies --data-dir DIR [--only NAME ...] [--seeds 3] [--out FOLDER]

Every study runs the command that a user would type, in a folder of its own. A study whose folder has a result.json is
not run again. You can therefore stop the benchmark and start it again later. The table is printed in Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SPLITS = Path(__file__).with_name("training") / "random_splits.py"
STUDIES = {
    "digits": ["--target", "0.9"],
    "fashion-mnist": ["--target", "0.9", "--experiment", "fashion-mnist", "--trials", "16", "--epochs", "8"],
    "mnist": ["--target", "0.9", "--experiment", "mnist", "--trials", "16", "--epochs", "8"],
    **{f"digits at {t}": ["--target", t] for t in ("0.5", "0.8", "0.95", "0.98")},
    **{
        f"{name} at {t}": ["--target", t, "--experiment", name, "--trials", trials]
        for name, trials in (("uci-mushroom", "8"), ("uci-climate", "32"), ("uci-dna", "16"))
        for t in ("0.5", "0.8", "0.9")
    },
    **{
        f"random uci-dna at {t}": ["--target", t, "--experiment", f"{SPLITS}:dna{{seed}}", "--trials", "16"]
        for t in ("0.5", "0.8", "0.9")
    },
}
"""The options of each study. {seed} is the seed of the study."""


def run(name: str, seed: int, out: Path, data_dir: Path) -> dict[str, Any]:
    """The result of one study, from its file if it has been run before."""
    study = f"{name.replace(' ', '-')}-seed{seed}"
    result = out / study / "result.json"
    if not result.exists():
        options = ["--seed", str(seed), "--storage", str(out), "--study", study, "--data-dir", str(data_dir)]
        own = [option.replace("{seed}", str(seed)) for option in STUDIES[name]]
        command = [sys.executable, "-m", "tune_sparsity", *own, *options]
        subprocess.run([*command, "--tracking-uri", f"sqlite:///{out}/mlflow.db", "--json"], check=True, stdout=-3)
    document: dict[str, Any] = json.loads(result.read_text())
    return document


def spread(values: list[float]) -> str:
    """Mean and the range from least to most, in per cent."""
    low, high = min(values), max(values)
    return f"{100 * statistics.mean(values):.2f} ({100 * low:.2f} to {100 * high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    print("| study | test accuracy % | validation accuracy % | zeros / weights (wanted) | seconds |", flush=True)
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in options.only:
        results = [run(name, seed, out, options.data_dir.absolute()) for seed in range(options.seeds)]
        best = [result["best"] for result in results]
        zeros = "; ".join(
            f"{b['weights'] - b['nonzero_weights']}/{b['weights']} ({b['params']['final_sparsity']:.5f})" for b in best
        )
        seconds = ", ".join(f"{result['seconds']['total']:.0f}" for result in results)
        test = spread([b["test_accuracy"] for b in best])
        print(f"| {name} | {test} | {spread([b['val_accuracy'] for b in best])} | {zeros} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
