"""Break studies on purpose and resume them. Count what is lost, duplicated, left running or corrupted.

    python -m benchmarks.chaos [--driver 20] [--worker 10] [--disk 5] [--first 0] [--out FOLDER] [--experiment NAME]

The command `tune-sparsity` runs every study, with one trial at a time, the same options and the same seed. The first
study is not broken. Each other study is broken at a random moment, in one of three ways:

- `driver`: the driver is killed (SIGKILL).
- `worker`: the process of the running trial is killed.
- `disk`: the disk of the study, a small tmpfs, becomes full, and stays full until the command has ended. Only root can
  mount it.

If the command ended with an error, the study is then resumed. Every study is a line of FOLDER/chaos.jsonl, and is not
run again. The table is printed in Markdown. The exit code is 1 if one of these faults was found, if the tables of a
study differ from those of the unbroken study, or if a study could not be resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tune_sparsity.tuner.search.journal import records_of
from tune_sparsity.tuner.study.epochs import read_epochs
from tune_sparsity.tuner.study.layout import EPOCHS_CSV

SHAPE = ["--target", "0.9", "--trials", "6", "--epochs", "24", "--concurrency", "1", "--seed", "0"]
# With the default interval of 5 s, trials of a second would write no checkpoint.
ENVIRONMENT = {"TUNE_SPARSITY_CHECKPOINT_SECONDS": "0.2"}
ROOM = 24 << 20  # bytes of the tmpfs; each HTML page takes 5 MB
KINDS = ("driver", "worker", "disk")
PATIENCE = 300.0  # the longest wait for an event, in seconds


@dataclass
class Broken:
    """The result of one broken study."""

    kind: str
    index: int
    moment: float = 0.0  # when it is broken, as a fraction of the unbroken study's seconds; in [0, 1]
    codes: list[int] = field(default_factory=list)  # exit codes of the command and of `resume`
    finished_before: int = 0
    lost: int = 0  # ended trials whose records have changed or are missing afterwards
    duplicates: int = 0
    running: int = 0  # trials and runs that Optuna and MLflow still call running at the end
    corrupted: list[str] = field(default_factory=list)
    same_front: bool = False
    said: str = ""  # the last line of standard error of the broken command

    @property
    def sound(self) -> bool:
        counts = self.lost + self.duplicates + self.running + len(self.corrupted)
        return self.codes[-1] == 0 and counts == 0 and self.same_front


class Chaos:
    """Runs studies in the folder `out`, and keeps their results there.

    Args:
        out: the folder.
        experiment: the value of `--experiment` for all studies.
    """

    def __init__(self, out: Path, experiment: str) -> None:
        self.out, self.shape = out, [*SHAPE, "--experiment", experiment]
        out.mkdir(parents=True, exist_ok=True)
        self.lines = out / "chaos.jsonl"
        self.uri = f"sqlite:///{out / 'mlflow.db'}"

    def known(self) -> list[dict[str, Any]]:
        text = self.lines.read_text() if self.lines.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def begin(self, arguments: list[str], storage: Path, log: Path) -> subprocess.Popen[bytes]:
        options = ["--storage", str(storage), "--tracking-uri", self.uri]
        with log.open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "tune_sparsity", *arguments, *options],
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, **ENVIRONMENT},
            )

    def reference(self) -> dict[str, Any]:
        """Return the tables of the unbroken study, and the seconds from the creation of its journal to its end."""
        for line in self.known():
            if line["kind"] == "reference":
                return line
        name, log = "reference", self.out / "reference.log"
        shutil.rmtree(self.out / name, ignore_errors=True)
        process = self.begin([*self.shape, "--study", name], self.out, log)
        wait_for(lambda: (self.out / name / "optuna.journal").exists(), process)
        began = time.monotonic()
        code = process.wait(PATIENCE)
        if code:
            raise SystemExit(f"the unbroken study ended with {code}: {log}")
        line = {"kind": name, "seconds": time.monotonic() - began, "tables": tables(self.out / name)}
        self.keep(line)
        return line

    def keep(self, line: dict[str, Any]) -> None:
        with self.lines.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def run(self, kind: str, index: int) -> Broken:
        """Break one study, resume it if its command failed, and check its files and records."""
        unbroken = self.reference()
        result = Broken(kind, index, random.Random(f"{kind}{index}").random())
        name = f"{kind}{index:02d}"
        storage = self.out / "disk" if kind == "disk" else self.out
        folder, log = storage / name, self.out / f"{name}.log"
        while True:
            shutil.rmtree(folder, ignore_errors=True)
            forget(self.uri, name)  # the runs that an interrupted call of this benchmark has left in MLflow
            with small_disk(storage) if kind == "disk" else contextlib.nullcontext():
                process = self.begin([*self.shape, "--study", name], storage, log)
                wait_for(lambda: (folder / "optuna.journal").exists(), process)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(result.moment * unbroken["seconds"])
                if process.poll() is not None:  # this study has ended earlier than the unbroken study
                    result.moment *= 0.8
                    continue
                before = BREAK[kind](process, folder)
                result.codes.append(process.wait(PATIENCE))
                result.said = (log.read_text(errors="replace").splitlines() or [""])[-1]
                if "Traceback" in log.read_text(errors="replace"):
                    result.corrupted.append("a traceback was printed")
                if kind == "disk":
                    before = finished(folder)
                    result.corrupted += corrupted(folder)
                    (storage / "filler").unlink()
                if result.codes[-1] != 0:
                    again = self.begin(["resume", name], storage, self.out / f"{name}-resumed.log")
                    result.codes.append(again.wait(PATIENCE))
                self.judge(result, folder, before, unbroken["tables"])
            break
        self.keep(asdict(result) | {"sound": result.sound})
        return result

    def judge(self, result: Broken, folder: Path, before: dict[int, str], tables_before: Any) -> None:
        after = finished(folder)
        result.finished_before = len(before)
        result.lost = sum(after.get(number) != record for number, record in before.items())
        result.corrupted += corrupted(folder)
        result.same_front = tables(folder) == tables_before
        rows = Counter(row["number"] for row in read_table(folder / "trials.csv"))
        runs = mlflow_runs(self.uri, folder.name)
        names = Counter(run.data.tags.get("trial", "") for run in runs)  # the parent's is ""
        result.duplicates = sum(count - 1 for counts in (rows, names) for count in counts.values())
        result.running = sum(run.info.status == "RUNNING" for run in runs) + optuna_running(folder)


def wait_for(there: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := there():
            return found
        if process.poll() is not None:
            return None
        time.sleep(0.02)
    raise SystemExit("nothing happened for five minutes")


# Ways to break a study. `kill_driver` and `kill_worker` return the records of the trials that had ended.


def kill_driver(process: subprocess.Popen[bytes], folder: Path) -> dict[int, str]:
    process.send_signal(signal.SIGKILL)
    process.wait()
    return finished(folder)


def kill_worker(process: subprocess.Popen[bytes], folder: Path) -> dict[int, str]:
    def workers() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "TrialTrainable" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    with contextlib.suppress(psutil.Error):
        for worker in wait_for(workers, process) or []:
            worker.kill()
    return finished(folder)


def fill_disk(process: subprocess.Popen[bytes], folder: Path) -> dict[int, str]:
    with (folder.parent / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return {}


BREAK = {"driver": kill_driver, "worker": kill_worker, "disk": fill_disk}


@contextlib.contextmanager
def small_disk(folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# Checks after a study


def finished(folder: Path) -> dict[int, str]:
    """Return the record of each ended trial, as a text, by the number of the trial. It is read from the journal."""
    return {record.number: repr(record) for record in records_of(folder)}


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables(folder: Path) -> list[list[dict[str, str]]]:
    """Return the rows of trials.csv and pareto.csv, without the column `seconds`."""
    found = [read_table(folder / name) for name in ("trials.csv", "pareto.csv")]
    return [[{key: value for key, value in row.items() if key != "seconds"} for row in rows] for rows in found]


def corrupted(folder: Path) -> list[str]:
    """Return the names of the files that cannot be read in their formats, each with the kind of the error."""
    from safetensors import safe_open

    from tune_sparsity.tuner.storage.places import Folder
    from tune_sparsity.tuner.worker.checkpoints import read

    def tensors(path: Path) -> None:
        if path.parent.name == ".checkpoints":
            read(Folder(path.parent), path.name)
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict
                file.get_tensor(name)

    def table(path: Path) -> None:
        if path.name == EPOCHS_CSV:  # rows are appended, so one may be incomplete; its reader leaves it out
            read_epochs(path)
            return
        rows = read_table(path)
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("a row is cut off")

    readers: dict[str, Callable[[Path], Any]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": lambda path: yaml.safe_load(path.read_text())["target"],
        ".csv": table,
        ".safetensors": tensors,
        ".html": lambda path: path.read_text().rindex("</html>"),
    }
    bad = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (reader := readers.get(path.suffix)) and not path.name.endswith(".tmp"):
            try:
                reader(path)
            except Exception as error:
                bad.append(f"{path.relative_to(folder)}: {type(error).__name__}")
    return bad


def mlflow_runs(uri: str, study: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.study = '{study}'", max_results=1000))


def forget(uri: str, study: str) -> None:
    from mlflow import MlflowClient

    for run in mlflow_runs(uri, study):
        MlflowClient(tracking_uri=uri).delete_run(run.info.run_id)


def optuna_running(folder: Path) -> int:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    (name,) = optuna.get_all_study_names(storage)
    states = [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials]
    return states.count("RUNNING")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, number in zip(KINDS, (20, 10, 5), strict=True):
        parser.add_argument(f"--{kind}", type=int, default=number, metavar="N")
    parser.add_argument("--first", type=int, default=0, help="of the moments, so that several runs share the work")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/chaos"))
    parser.add_argument("--experiment", default="digits", help="also a file's, as the command takes it")
    options = parser.parse_args()
    chaos = Chaos(options.out.absolute(), options.experiment)
    print("| broken | studies | trials lost | duplicates | left running | corrupted files | same tables |", flush=True)
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    sound = True
    for kind in KINDS:
        for index in range(options.first, options.first + getattr(options, kind)):
            if not any((line["kind"], line.get("index")) == (kind, index) for line in chaos.known()):
                result = chaos.run(kind, index)
                print(re.sub(r"\s+", " ", str(result)), file=sys.stderr, flush=True)
        lines = [line for line in chaos.known() if line["kind"] == kind]
        sums = [sum(line[name] for line in lines) for name in ("lost", "duplicates", "running")]
        bad = sum(len(line["corrupted"]) for line in lines)
        same = sum(line["same_front"] for line in lines)
        sound = sound and all(line["sound"] for line in lines)
        print(f"| {kind} | {len(lines)} | {' | '.join(map(str, sums))} | {bad} | {same} |", flush=True)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
