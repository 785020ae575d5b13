"""Compare the trials per hour of tune-sparsity with those of a script as a competent user writes it
(benchmarks/user_script.py).

    python -m benchmarks.throughput --data-dir DIR [--experiment digits] [--seeds 3] [--only ours] [--out FOLDER]
    python -m benchmarks.throughput --data-dir DIR --only ours --trials 500 --epochs 1    # whether memory grows
    taskset -c 0 python -m benchmarks.throughput --data-dir DIR --experiment fashion-mnist --only ours --label one-core

Both sides have the same network, data, epochs, number of trials and target, and take turns. Each study is a command in
a fresh process. Its time is measured from outside, and includes start-up. Every study is a line of OUT/throughput.jsonl
and is not run again. You can therefore stop the benchmark and start it again later.

The tables are in Markdown. They show trials per hour, the accuracies of the network that each side reports, the time
until a network with the target's sparsity has a validation accuracy of 89 % (meant for Fashion-MNIST), the largest
memory of driver and workers together, and the parts of the wall clock time. For the script, the time of a part of the
trainings is the sum over all trials, divided by the number of trials that ran at once. For tune-sparsity, the times are
those of `seconds` in result.json. The time of the trainings is divided into its parts by the shares of
`benchmarks.profile`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.profile import profile, shares
from tune_sparsity.tuner.study.layout import RESULT_JSON

SIZES = {"digits": (32, 30), "fashion-mnist": (16, 8)}  # trials, epochs
SIDES = ("user", "ours")
PARTS = (
    *("start-up", "data", "forward and backward", "optimizer", "topology", "validation"),
    *("sampling", "tracking", "idle and other"),
)
Line = dict[str, Any]


def memory_of_tree(root: int) -> int:
    """Return the bytes of memory of a process and all its descendants. Of a page that n processes share, each process
    counts 1/n."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                children[int((entry / "stat").read_text().rpartition(")")[2].split()[1])].append(int(entry.name))
            except (OSError, IndexError):
                continue  # the process has ended meanwhile
    total, todo = 0, [root]
    while todo:
        process = todo.pop()
        todo += children[process]
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return 1024 * total


def run(
    command: list[str],
    environment: dict[str, str],
    log: Path,
    every: float = 5.0,
    memory_of: Callable[[int], int] = memory_of_tree,
) -> tuple[float, list[int], str]:
    """Run a command. Return its wall seconds, the memory of all its processes, measured every `every` seconds, and its
    standard output."""
    memory: list[int] = []
    start = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **environment}
        )
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(every):
                memory.append(memory_of(process.pid))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        output, _ = process.communicate()
        ended.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: see {log}")
    return time.monotonic() - start, memory, output


def study(side: str, options: argparse.Namespace, seed: int) -> Line:
    """Run one study of one side. Return its line for OUT/throughput.jsonl."""
    trials, epochs = size(options)
    name = f"{side}-{options.experiment}-{trials}x{epochs}-seed{seed}-{int(time.time())}"
    folder = options.out / name
    folder.mkdir(parents=True)
    given = ["--experiment", options.experiment, "--data-dir", str(options.data_dir)]
    given += ["--trials", str(trials), "--epochs", str(epochs), "--target", str(options.target), "--seed", str(seed)]
    if side == "user":
        command = [sys.executable, "-m", "benchmarks.user_script", *given, "--out", str(folder)]
    else:
        command = [
            sys.executable,
            "-m",
            "tune_sparsity.tuner.cli",
            *given,
            "--storage",
            str(folder),
            "--study",
            "study",
            "--json",
        ]
        command += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    launched = time.time()
    wall, memory, output = run(command, {}, options.out / f"{name}.log")
    found = json.loads(output.splitlines()[-1] if side == "user" else output)  # Ray prints messages before the result
    cores = len(os.sched_getaffinity(0))
    line = {
        **key(side, options, seed),
        "cores": cores,
        "wall": wall,
        "memory": memory,
        "best": {part: found["best"][part] for part in ("val_accuracy", "test_accuracy", "sparsity")},
    }
    if side == "user":
        return {
            **line,
            "trials_run": found["trials"],
            "reached": found["reached"],
            "split": user_split(found, wall, cores),
        }
    document = json.loads((folder / "study" / RESULT_JSON).read_text())
    return {
        **line,
        "trials_run": sum(document["states"].values()),
        "reached": reached(folder, 0.89, launched),
        "seconds": document["seconds"],
        "split": our_split(document["seconds"], wall, profile_of(options)),
    }


def size(options: argparse.Namespace) -> tuple[int, int]:
    trials, epochs = SIZES[options.experiment]
    return options.trials or trials, options.epochs or epochs


def key(side: str, options: argparse.Namespace, seed: int) -> Line:
    """Return the settings of a study. A study with equal settings is not run again."""
    trials, epochs = size(options)
    named = {"side": side, "experiment": options.experiment, "trials": trials, "epochs": epochs}
    return {**named, "target": options.target, "seed": seed, "label": options.label}


def user_split(found: Line, wall: float, cores: int) -> dict[str, float]:
    worker = {part: seconds / min(cores, found["trials"]) for part, seconds in found["worker_seconds"].items()}
    split = {
        "start-up": found["startup"],
        "data": worker["data"] + worker["setup"],
        "forward and backward": worker["forward_backward"],
        "optimizer": worker["optimizer"],
        "topology": worker["topology"],
        "validation": worker["validation"],
        **{part: found["driver_seconds"].get(part, 0.0) for part in ("sampling", "tracking")},
    }
    return {**split, "idle and other": wall - sum(split.values())}


def our_split(seconds: dict[str, float], wall: float, parts: dict[str, float]) -> dict[str, float]:
    split = {"start-up": seconds.get("startup", 0.0) + wall - seconds["total"]}
    split |= {part: seconds["training"] * share for part, share in parts.items()}
    split |= {part: seconds[part] for part in ("sampling", "tracking")}
    return {**split, "idle and other": wall - sum(split.values())}


def profile_of(options: argparse.Namespace) -> dict[str, float]:
    return shares(profile(options.experiment, options.data_dir, size(options)[1], options.target))


def reached(folder: Path, accuracy: float, launched: float) -> float | None:
    """Return the seconds until a trial of the study had completed with at least this validation accuracy, according to
    the end times of MLflow's runs. Return None if no trial reached it."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    good = [
        run.info.end_time
        for run in client.search_runs(ids, "tags.state = 'completed'", max_results=1000)
        if run.data.metrics.get("val_accuracy", 0.0) >= accuracy
    ]
    return min(good) / 1000 - launched if good else None


def memory_of(samples: list[int]) -> str:
    """Return the largest of these samples of the memory, and two medians: that of the samples from 20 to 40 % of the
    time, and that of the last 20 %. The two are equal if the memory does not grow."""
    if not samples:
        return "-"
    fifth = max(1, len(samples) // 5)
    at_most, early, late = (
        value / 2**20
        for value in (
            max(samples),
            statistics.median(samples[fifth : 2 * fifth] or samples),
            statistics.median(samples[-fifth:]),
        )
    )
    return f"{at_most:.0f} ({early:.0f}, {late:.0f})"


def table(lines: list[Line]) -> str:
    """The record in Markdown."""
    rows = [
        "| experiment | side | trials/hour | validation % | test % | s to 89 % | MiB at most (early, late) |",
        "| --- " * 7 + "|",
    ]
    for experiment in dict.fromkeys(line["experiment"] for line in lines):
        for side in SIDES:
            mine = [line for line in lines if (line["experiment"], line["side"]) == (experiment, side)]
            if not mine:
                continue
            per_hour = [3600 * line["trials_run"] / line["wall"] for line in mine]
            accuracies = [
                statistics.mean(100 * line["best"][which] for line in mine)
                for which in ("val_accuracy", "test_accuracy")
            ]
            times = [line["reached"] for line in mine if line["reached"] is not None]
            until = f"{statistics.median(times):.0f} ({len(times)} of {len(mine)})" if times else "never"
            memory = "; ".join(memory_of(line["memory"]) for line in mine)
            row = f"| {experiment} | {side} | {statistics.median(per_hour):.0f} | {accuracies[0]:.2f} | "
            rows.append(f"{row}{accuracies[1]:.2f} | {until} | {memory} |")
    rows += ["", f"| seconds | {' | '.join(PARTS)} |", "| --- " * (1 + len(PARTS)) + "|"]
    for line in lines:
        cells = " | ".join(f"{line['split'][part]:.1f}" for part in PARTS)
        rows.append(f"| {line['experiment']}, {line['side']}, seed {line['seed']}: {line['wall']:.1f} | {cells} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--experiment", choices=list(SIZES), default="digits")
    parser.add_argument("--only", choices=SIDES, help="one side alone")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--label", default="", help="tells measurements apart, as of one core and of two")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    options = parser.parse_args()
    options.data_dir, options.out = options.data_dir.absolute(), options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    record = options.out / "throughput.jsonl"
    lines: list[Line] = [json.loads(text) for text in record.read_text().splitlines()] if record.exists() else []
    for seed in range(options.seeds):
        for side in (options.only,) if options.only else SIDES:
            wanted = key(side, options, seed)
            if any(wanted.items() <= line.items() for line in lines):
                continue
            line = study(side, options, seed)
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
            lines.append(line)
    print(table([line for line in lines if line["label"] == options.label]))


if __name__ == "__main__":
    main()
