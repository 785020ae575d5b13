"""Test whole studies from the command line that are stored on a real S3 server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from optuna.storages.journal import JournalFileBackend
from safetensors.torch import load, load_file

from tests.helpers.command import EXPERIMENT, Ran, run_command
from tests.helpers.s3_servers import S3Server
from tests.helpers.waiting import until
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.storage.local_copy import CACHE_VARIABLE
from tune_sparsity.tuner.storage.s3 import S3Prefix, parse_store

pytestmark = pytest.mark.slow
STORAGE = "s3://studies/team/a"
SLOW = """
import time

def slow(outputs, targets):
    time.sleep(0.05 if len(targets) == 30 else 0)  # ten batches: half a second an epoch
    return nn.functional.cross_entropy(outputs, targets)

slowly = Experiment("slowly", load, steady.model, Recipe(epochs=12, batch_size=30), loss=slow)
"""


HASTY = """
import sys
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.storage import sync

sync.PATIENCE = 5.0
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Bench:
    """An S3 server, a working folder, and functions that run commands in this folder."""

    server: S3Server
    cwd: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**self.server.environment, CACHE_VARIABLE: str(self.cwd / "cache")}

    def run(self, *arguments: str, **environment: str) -> Ran:
        return run_command(arguments, self.cwd, **{**self.environment, **environment})

    def tell(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
        """Run a command that does not train. It runs in the test process."""
        capsys.readouterr()
        with contextlib.chdir(self.cwd):
            code = main(arguments)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err, self.cwd)

    def start(self, *arguments: str, run: Sequence[str] = ("-m", "tune_sparsity")) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        return subprocess.Popen(
            [sys.executable, *run, *arguments],
            cwd=self.cwd,
            env={**kept, **self.environment, "TUNE_SPARSITY_CHECKPOINT_SECONDS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def options(self, name: str, trials: int, experiment: str = "steady") -> list[str]:
        what = ["--target", "0.8", "--experiment", f"{self.cwd}/own.py:{experiment}", "--trials", str(trials)]
        return [*what, "--study", name, "--storage", STORAGE]

    def study(self, name: str) -> S3Prefix:
        return parse_store(f"{STORAGE}/{name}")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    cwd = tmp_path_factory.mktemp("bench")
    (cwd / "own.py").write_text(EXPERIMENT + SLOW)
    logs = tmp_path_factory.mktemp("server")
    server = S3Server(logs)
    made = Bench(server, cwd)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in made.environment.items():  # for commands in this process
            patched.setenv(name, value)
        # Commands in this process leave copies of studies here until pytest ends.
        patched.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("copies")))
        yield made
    server.kill()


@pytest.fixture(scope="module")
def ended(bench: Bench) -> Ran:
    ran = bench.run(*bench.options("ended", 4), "--json")
    assert ran.code == 0, ran.stderr
    shutil.rmtree(bench.cwd / "cache")  # whatever is asked from now on comes from the store
    return ran


def test_the_store_has_the_same_study_files_as_a_local_folder(bench: Bench, ended: Ran, tmp_path: Path) -> None:
    study = bench.study("ended")
    files = {"optuna.journal", "result.json", "trials.csv", "pareto.csv", "epochs.csv", "pareto.html", "pictures.html"}
    assert files | {"study.yaml", "best/model.json", "tracking/outbox.jsonl"} <= set(study.names())
    assert not [name for name in study.names() if name.startswith((".weights/", ".checkpoints/", ".ray/"))]
    assert json.loads(study.read("result.json")) == ended.result()
    config = yaml.safe_load(study.read("study.yaml"))
    assert config["storage"] == STORAGE
    assert bench.server.environment["AWS_SECRET_ACCESS_KEY"] not in study.read("study.yaml").decode()
    (tmp_path / "best").write_bytes(study.read("best/model.safetensors"))
    stored = load_file(tmp_path / "best")
    zeros = sum(int((stored[name.removesuffix(".mask")] == 0).sum()) for name in stored if name.endswith(".mask"))
    best = ended.result()["best"]
    assert zeros == best["weights"] - best["nonzero_weights"]


def test_report_compare_and_export_read_from_the_store(
    bench: Bench, ended: Ran, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench.run("report", "ended", "--storage", STORAGE, TMPDIR=str(tmp_path)).code == 0
    assert not list(tmp_path.iterdir())  # the copy of the study is gone
    report = bench.tell(capsys, "report", "ended", "--storage", STORAGE)
    assert (report.code, report.stdout) == (0, "ended/report.html\n"), report.stderr
    page = (bench.cwd / "ended" / "report.html").read_text()
    assert f"a copy of {STORAGE}/ended/" in page
    assert "tmp/" not in page.replace(str(bench.cwd), "")
    export = bench.tell(capsys, "export", "ended", "--format", "safetensors", "--storage", STORAGE, "--json")
    assert export.code == 0, export.stderr
    exported = load_file(bench.cwd / "ended" / "export" / "best.safetensors")
    written = load(bench.study("ended").read("best/model.safetensors"))
    assert exported
    assert all(torch.equal(tensor, written[name]) for name, tensor in exported.items())
    again = bench.run(*bench.options("other", 2), "--warm-start", "ended")
    assert again.code == 0, again.stderr
    compared = bench.tell(capsys, "compare", "ended", "other", "--storage", STORAGE, "--json")
    assert compared.code == 0, compared.stderr
    assert {row["study"] for row in json.loads(compared.stdout)["rows"]} == {"ended", "other"}
    assert (bench.cwd / "compare-ended-other.html").is_file()


@pytest.mark.usefixtures("ended")
def test_send_reads_the_record_from_the_store_and_writes_sent_json_there(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{bench.cwd}/second.db"
    sent = bench.tell(capsys, "send", "ended", "--storage", STORAGE, "--tracking-uri", uri)
    assert sent.code == 0, sent.stderr
    assert json.loads(bench.study("ended").read("tracking/sent.json"))["uri"] == uri


def test_resume_in_an_empty_folder_adds_trials_and_repeats_none(bench: Bench, ended: Ran) -> None:
    shutil.rmtree(bench.cwd / "cache", ignore_errors=True)
    resumed = bench.run("resume", "ended", "--storage", STORAGE, "--trials", "6", "--json")
    assert resumed.code == 0, resumed.stderr
    assert sum(resumed.result()["states"].values()) == 6
    rows = bench.study("ended").read("trials.csv").decode().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(number) for number in range(6)]


def test_a_killed_study_resumes_with_only_the_files_of_the_store(bench: Bench) -> None:
    study = bench.study("killed")
    process = bench.start(*bench.options("killed", 3, "slowly"), "--scheduler", "none", "--concurrency", "1")
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        running = any(name.startswith(".checkpoints/") for name in study.names())
        if running and "optuna.journal" in study.names() and finished(study, bench.cwd / "kept.journal"):
            break  # one trial has ended, and another is in its midst
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # meanwhile the workers notice that the command was killed
    kept = finished(study, bench.cwd / "kept.journal")
    assert kept, "no trial had arrived"
    shutil.rmtree(bench.cwd / "cache")
    resumed = bench.run("resume", "killed", "--storage", STORAGE, "--json")
    assert resumed.code == 0, resumed.stderr
    assert resumed.result()["states"] == {"completed": 3, "pruned": 0, "failed": 0}
    after = finished(study, bench.cwd / "after.journal")
    assert {number: after[number] for number in kept} == kept
    assert sorted(after) == [0, 1, 2]
    assert not [name for name in study.names() if name.startswith(".checkpoints/")]


def finished(study: S3Prefix, file: Path) -> dict[int, list[float]]:
    """Return the completed trials and their values from Optuna's journal in the store."""
    file.write_bytes(study.read("optuna.journal"))
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    name = study.prefix.rpartition("/")[2]
    if name not in optuna.get_all_study_names(storage):
        return {}
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return {trial.number: trial.values for trial in trials if trial.state is optuna.trial.TrialState.COMPLETE}


@pytest.mark.long
def test_a_store_that_becomes_unreachable_does_not_stop_the_study(bench: Bench) -> None:
    own = S3Server(bench.cwd)
    try:
        lonely = Bench(own, bench.cwd)
        process = lonely.start(*bench.options("lonely", 2, "slowly"), "--scheduler", "none", run=("-c", HASTY))
        study = S3Prefix("studies", "team/a/lonely", own.endpoint, "us-east-1")
        until(lambda: "optuna.journal" in study.names(), process, seconds=200)
    finally:
        own.kill()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    (line,) = [line for line in said.splitlines() if " not sent to " in line]
    assert f" files were not sent to {STORAGE}/lonely, because " in line
    assert "the store does not answer" in line
    assert f"tune-sparsity resume lonely --storage {STORAGE}" in line
    (folder,) = (bench.cwd / "cache").glob("*/lonely")
    assert sum(json.loads((folder / "result.json").read_text())["states"].values()) == 2


WRONG = {
    "no bucket": (["--target", ".9", "--storage", "s3://"], {}, "the bucket is missing"),
    "another scheme": (["--target", ".9", "--storage", "gs://studies/a"], {}, "no other object stores"),
    "unknown bucket": (["--target", ".9", "--storage", "s3://not-there/a"], {}, "there is no such bucket"),
    "unreachable": (
        ["--target", ".9", "--storage", "s3://studies"],
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        "nothing answers at http://127.0.0.1:9",
    ),
    "resume none": (["resume", "nothing", "--storage", STORAGE], {}, "no study 'nothing' in s3://studies/team/a"),
    "report none": (["report", "nothing", "--storage", STORAGE], {}, "no study 'nothing' in s3://studies/team/a"),
    "report a path": (["report", "../a/ended", "--storage", STORAGE], {}, "no study's name"),
    "report nowhere": (["report", "x", "--storage", "s3://not-there"], {}, "no such bucket"),
    "study that exists": (["--target", ".9", "--study", "ended", "--storage", STORAGE], {}, "exists in s3://"),
}


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_in_a_command_prints_one_line_and_writes_nothing(
    case: str, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, environment, said = WRONG[case]
    there = parse_store("s3://studies").names()
    with monkeypatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        ran = bench.tell(capsys, *arguments)
    assert (ran.code, ran.stdout) == (2, ""), ran.stderr
    (line,) = ran.stderr.splitlines()
    assert said in line
    assert parse_store("s3://studies").names() == there


def test_doctor_reports_whether_the_store_is_reachable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    well = bench.tell(capsys, "doctor", "--storage", STORAGE)
    assert f"ok   storage: this machine can write to {STORAGE}" in well.stdout
    assert f"ok   shared storage: {STORAGE} is reached from all nodes" in well.stdout
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    # With --address, doctor does not start a Ray of its own, which would take seconds.
    away = bench.tell(capsys, "doctor", "--storage", STORAGE, "--address", "127.0.0.1:9")
    assert away.code == 1
    assert "fix  storage: --storage s3://studies/team/a: nothing answers at http://127.0.0.1:9" in away.stdout
